"""A run from its configuration: build the objects, integrate the flows, compare with the theory, keep everything."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from chordflow import environment, figures, record
from chordflow.comparison import compare, table_lines
from chordflow.config import Config, ConfigError
from chordflow.diagnosis import FlowRun, draw, flow_dataset, flow_summary, spectra
from chordflow.integration import expected_steps
from chordflow.interruption import Request, Stopped, on_request
from chordflow.recording import Recorder, Saves, Watcher, restored, saves_of, with_last_state
from chordflow.results import RESULTS, is_okay
from chordflow.setting import Plan, Setting
from chordflow.trajectory import Trajectory

Say = Callable[[str], None]


def run(config: Config, *, say: Say = print, watchers: Collection[Watcher] = (), overwrite: bool = False) -> Path:
    """Do what a configuration says and return the run folder.

    The folder exists, with its configuration, before anything is compiled; a mistake in the configuration removes it
    again. A flow that cannot run on the problem is named with its reason and left out; a flow that ends early keeps
    what it reached, its last good state as the last save. Only if no flow at all can run does it raise.

    Parameters
    ----------
    config
        What to do.
    say
        Takes each line that is printed.
    watchers
        Called with a dictionary for each event of the run, which it says in ``event``: start, flow, metrics (of each
        stride), flow_end, kept (a flow that was finished before the run was resumed), end.
    overwrite
        Start over where ``config.out`` is a run folder; never removes a file that no run wrote.

    Raises
    ------
    ConfigError
        A mistake in the configuration.
    RunError
        The folder cannot be made, or is taken.
    StorageError
        It cannot be written in mid-run, such as on a full disk; :func:`chordflow.resume` goes on.
    Stopped
        Ctrl-C or SIGTERM; a checkpoint was written, and :func:`chordflow.resume` goes on.
    """
    if overwrite and config.out is not None:
        Setting.build(config)  # a mistake does not cost the old run
        record.remove_run(config.out)
    with new_folder(config, config.data.name, "run") as (folder, undone):
        with undone:
            setting = Setting.build(config)
            plans = _plans(setting)
        say(f"run folder {folder.path}")
        return _Run(folder, setting, plans, saves_of(setting), say, watchers).go()


def resume(path: str | PathLike[str], *, say: Say = print, watchers: Collection[Watcher] = ()) -> Path:
    """Go on with a run that was stopped or killed, and return its folder; the end is that of one never stopped.

    Every file is compared with its sum first. A damaged one is named and set aside, and what it held is computed
    again: of a flow that is not finished, from its last checkpoint that is whole. Where nothing is missing, it says so.
    Modules that the configuration names are imported from where Python finds them, never from the folder.

    Parameters
    ----------
    path
        A run folder.
    say, watchers
        As for :func:`chordflow.experiment.run`.

    Raises
    ------
    RunError
        There is no run folder, it cannot be resumed, another process is writing it, or its configuration was altered.
    StorageError, Stopped
        As :func:`chordflow.experiment.run`.

    Examples
    --------
    >>> import tempfile
    >>> config = Config.from_dict({"data": {"samples": 2}, "model": {"widths": [2]}, "flows": "straight", "saves": 2,
    ...                            "out": tempfile.mkdtemp()})
    >>> path = run(config, say=lambda line: None)
    >>> resume(path).name == path.name  # doctest: +ELLIPSIS
    run folder ... is finished
    True
    """
    folder = record.Run(Path(path).expanduser())
    if _command(folder) == "run" and (folder.path / "summary.json").exists() and not _summary_is_whole(folder):
        say(f"{folder.path / 'summary.json'} is truncated or damaged: made again")
        with folder.locked():
            folder.set_aside(["summary.json"])
    folder = record.open_run(folder.path)
    if folder.format == 1 and not folder.is_finished:
        raise record.RunError(f"{folder.path} is of format 1, which has no checkpoints: run again")
    with folder.locked():
        if folder.is_finished and not folder.damage:
            say(f"run folder {folder.path} is finished")
            return folder.path
        if (command := _command(folder)) != "run":
            raise record.RunError(f"{folder.path} is of `chordflow {command}`, which is not resumed: do it again")
        damaged = _examine(folder, say)
        config = Config.from_dict(folder.config)
        now = environment.describe(config.seed)
        folder.found({"command": "run", **now})
        differences = environment.differences(folder.environment, now)
        folder.note_resumed(differences)
        for difference in differences:
            say(f"not as it was started: {difference}; the last digits may differ")
        setting = Setting.build(config)
        plans = _plans(setting)
        say(f"run folder {folder.path}")
        return _Run(folder, setting, plans, saves_of(setting), say, watchers, damaged).go()


def _command(folder: record.Run) -> str:
    """Which command made the folder; where that cannot be read, ``run``, which repairs it."""
    try:
        return folder.environment.get("command", "run")
    except record.RunError:
        return "run"


def _summary_is_whole(folder: record.Run) -> bool:
    try:
        return bool(folder.format)
    except record.RunError:
        return False


def _examine(folder: record.Run, say: Say) -> set[str]:
    """Clear away what was not finished, name what is damaged and set it aside; names in the folder."""
    damaged = folder.damaged()
    for line in folder.lines_of(damaged):
        say(line)
    if "config.toml" in damaged:
        raise record.RunError(f"{folder.path / 'config.toml'} is not what the run began with: restore it, or run anew")
    folder.set_aside(name for name in damaged if "/" not in name)
    folder.mend()
    return set(damaged)


def _plans(setting: Setting) -> dict[Plan, str | None]:
    """The flows, each with the reason why it cannot run, or None; raises if none can."""
    flows = setting.config.flows
    obstacles = {plan: plan.obstacle(setting.params) for plan in map(setting.plan, flows)}
    if None not in obstacles.values():
        reason = next(iter(obstacles.values()))
        raise ConfigError(f"flows = {','.join(flows)}: none can run on this problem. {reason}")
    return obstacles


class _Run(NamedTuple):
    """A run in its folder, new or resumed."""

    folder: record.Run
    setting: Setting
    plans: dict[Plan, str | None]
    saves: Saves
    """The same functions for all flows, so that one program serves them."""
    say: Say
    watchers: Collection[Watcher]
    damaged: Collection[str] | None = None
    """Files not to be trusted, of a run that is resumed."""

    def go(self) -> Path:
        """Do what is not done yet."""
        for plan, obstacle in self.plans.items():
            if obstacle is not None:
                self.say(f"{plan.name}: left out. {obstacle}")
        plans = [plan for plan, obstacle in self.plans.items() if obstacle is None]
        left_out = {plan.name: reason for plan, reason in self.plans.items() if reason is not None}
        names = [plan.name for plan in plans]
        self._tell("start", folder=str(self.folder.path), flows=names, left_out=left_out)
        with on_request(self.say) as request:
            runs = [self._flow(plan, request) for plan in plans]
            if request:
                raise self._stopped(request)
            for line in table_lines({f"{r.plan.name} N={int(r.num_samples)}": r.comparison.rows for r in runs}):
                self.say(line)
            self.folder.write_summary({"flows": {r.plan.name: flow_summary(r) for r in runs}})
            files = [
                path for name, figure in draw(runs).items() for path in figures.save(figure, self.folder.path / name)
            ]
            self.folder.seal(*files)
        self._tell("end", folder=str(self.folder.path), results={r.plan.name: r.trajectory.result_name for r in runs})
        self.say(f"config, summary, datasets and figures: {self.folder.path}")
        return self.folder.path

    def _flow(self, plan: Plan, request: Request) -> FlowRun:
        """One flow: integrated, or read where it is finished."""
        if request:
            raise self._stopped(request)
        folder, name = self.folder, record.dataset_name(plan.name)
        if folder.has(name):
            dataset = folder.dataset(name)
            trajectory = restored(self.setting, plan, self.saves, dataset)
            done = self._compared(plan, trajectory, float(dataset["seconds"]))
            self._tell("kept", flow=plan.name, result=trajectory.result_name)
        else:
            done = self._compared(plan, *self._integrated(plan, request))
            folder.write_dataset(name, flow_dataset(done))
        flows = folder.summary.get("flows", {})
        if plan.name not in flows:
            flows[plan.name] = flow_summary(done)
            folder.write_summary({"flows": {p.name: flows[p.name] for p in self.plans if p.name in flows}})
        folder.of_flow(plan.name).remove()
        return done

    def _integrated(self, plan: Plan, request: Request) -> tuple[Trajectory, float]:
        self._announce(plan)
        recorder = Recorder(self.setting, plan, self.saves, self.folder, self.watchers, request)
        lines = recorder.begin(self.damaged or ())
        for line in lines if self.damaged is not None else ():
            self.say(line)
        try:
            trajectory, seconds = recorder.integrate()
        except Stopped:
            raise self._stopped(request) from None
        stats, name = trajectory.stats, plan.name
        steps, rejected, t = int(stats["num_steps"]), int(stats["num_rejected"]), float(stats["t_last"])
        self.say(f"{name}: {steps} steps ({rejected} rejected) in {seconds:.1f} s")
        result = trajectory.result_name
        if not bool(is_okay(trajectory.result)):
            self.say(f"{name}: ended at {plan.variable} = {t:g}. {RESULTS[trajectory.result]}")
        self._tell("flow_end", flow=name, result=result, t=t, steps=steps, rejected=rejected, seconds=seconds)
        return with_last_state(plan.problem, trajectory, self.saves), seconds

    def _announce(self, plan: Plan) -> None:
        problem, params = plan.problem, self.setting.params
        n, K, N = problem.num_outputs, problem.ravel(params)[0].size, int(problem.num_samples)
        steps = expected_steps(problem, params, plan.flow, plan.t1, clock=plan.clock)
        expected = f"about {steps:.0f} steps for stability" if steps > 50 else "some tens of steps for accuracy"
        line = f"{plan.name}: {N} samples, n = {n}, K = {K}, to {plan.variable} = {plan.t1:g}; expected {expected}"
        self.say(line)
        self._tell("flow", flow=plan.name, samples=N, n=n, K=K, variable=plan.variable, t1=plan.t1)

    def _compared(self, plan: Plan, trajectory: Trajectory, seconds: float) -> FlowRun:
        spectrum_times, sigmas = spectra(plan.problem, trajectory)
        comparison = compare(plan.problem, self.setting.params, plan.flow, trajectory, plan.clock)
        return FlowRun(plan, trajectory, comparison, spectrum_times, sigmas, seconds)

    def _stopped(self, request: Request) -> Stopped:
        line = f"stopped, all that was done is kept: `chordflow resume {self.folder.path}` goes on"
        return Stopped(request.signal_number or 0, line)

    def _tell(self, event: str, **what: Any) -> None:
        for watcher in self.watchers:
            watcher({"event": event, **what})


@contextmanager
def new_folder(config: Config, name: str, command: str) -> Iterator[tuple[record.Run, AbstractContextManager[None]]]:
    """The folder ``out`` of a configuration, or ``runs/NAME-TIME`` where it names none, held while the block runs.

    Inside the context that comes with it, a failure takes the folder away again, with the folders made for it.
    """
    described = {"command": command, **environment.describe(config.seed)}
    if config.out is None:
        made = [] if Path("runs").exists() else [Path("runs")]
        path = _default_out(name)
        made = [path, *made]
    else:
        path = Path(config.out).expanduser()
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
    with record.creating(path, config.to_dict(), described) as folder:
        yield folder, _undone(folder, made)


def _default_out(name: str) -> Path:
    """``runs/NAME-TIME``, made here: two runs within a second get different ones, even if they begin at once."""
    out = Path(f"runs/{record.dataset_name(name)}-{time.strftime('%Y%m%d-%H%M%S')}")
    for path in (out, *(out.with_name(f"{out.name}-{i}") for i in range(2, 1000))):
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:
            pass  # told by who makes the run
        return path
    raise record.RunError(f"{out} is taken, and so are 998 names after it: give another path, out=...")


@contextmanager
def _undone(folder: record.Run, made: Sequence[Path]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        record.clear(folder)
        with suppress(OSError):  # somebody put something there
            for path in made:
                path.rmdir()
        raise
