"""The run folder itself: made, opened, read and written."""

import json
import os
import shutil
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chordflow.files import is_litter, make_folder, remove_litter, replacing, sync
from chordflow.record.checkpoints import Progress
from chordflow.record.datasets import DATASET_NAME, dataset_name, filled, nested, read_dataset, write_dataset
from chordflow.record.errors import RunError, RunningError, storing
from chordflow.record.lock import is_locked, locked
from chordflow.record.stream import NAME as STREAM
from chordflow.record.stream import append, drop_torn_line, read_stream
from chordflow.record.sums import NAME as SUMS
from chordflow.record.sums import damage, list_damage, list_sums, read_sums
from chordflow.record.text import from_json, plain, read, to_toml

if TYPE_CHECKING:
    import xarray

FORMAT = 3
"""Version of the layout of a run folder, kept in ``summary.json``; a reader refuses a newer one."""
FIRST = ("config.toml", "environment.json")
"""What a run folder begins with, in this order; the list of sums comes next."""
KINDS = ("png", "svg")
"""Of figures."""
DAMAGED = ".damaged"
LISTED_LAST = ("summary.json", STREAM, "verification.json")
"""What changes while a run goes on, and is in the list of sums once it is finished."""


@dataclass(frozen=True)
class Run:
    """A run folder: what a run writes into and :func:`chordflow.open_run` reads.

    Nothing is kept in memory: each access reads the file, so the folder of a running job shows its present state.
    """

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as nested dictionaries of str, bool, int, float and lists.

        Raises
        ------
        RunError
            If ``config.toml`` is missing or damaged.
        """
        return read(self.path / "config.toml", tomllib.loads)

    @property
    def summary(self) -> dict[str, Any]:
        """The summary as written by :meth:`write_summary`; empty until then.

        Raises
        ------
        RunError
            If ``summary.json`` is damaged, or of a newer format than this version reads.
        """
        path = self.path / "summary.json"
        if not path.exists():  # the configuration is written first
            return {}
        summary = read(path, from_json)
        version = summary.pop("format", None)
        if type(version) is not int or version < 1:
            raise RunError(f"{path} is damaged: it has no format number; run again")
        if version > FORMAT:
            raise RunError(f"{path} has format {version}, this version reads up to {FORMAT}: upgrade chordflow")
        return summary

    @property
    def environment(self) -> dict[str, Any]:
        """What the run was started with: versions, device, dtype, seed, state of git; empty in format 1.

        ``resumed`` holds what was different where it went on, a list of lines each time that it was something else.

        Raises
        ------
        RunError
            If ``environment.json`` is damaged.
        """
        path = self.path / "environment.json"
        return read(path, from_json) if path.exists() else {}

    @property
    def format(self) -> int:
        """Version of the layout; 1 had no checkpoints and no sums, 2 no sum of the list of sums itself."""
        path = self.path / "summary.json"
        return int(read(path, from_json).get("format", FORMAT)) if path.exists() else FORMAT

    @property
    def is_finished(self) -> bool:
        """Whether all that was asked for is there; a folder of format 1 is where it has all flows."""
        if self.format == 1:
            return bool(self.flows) and set(self.config.get("flows", ())) <= set(self.flows)
        return "summary.json" in read_sums(self.path)

    @property
    def state(self) -> str:
        """``"finished"``, ``"running"`` (a process is writing it), or ``"stopped"``: `chordflow resume` goes on."""
        held = is_locked(self.path)  # first: it may be finished a moment later
        if self.is_finished:
            return "finished"
        return "running" if held else "stopped"

    @property
    def progress(self) -> list[dict[str, Any]]:
        """The stream of metrics so far: a dictionary for each stride of each flow, in order; readable at any time.

        flow, t, s (gradient-flow time), cost, deviation (so far, from the chord, relative to the largest way of an
        output; None without a chord), steps, rejected, effective_dimension (the last known, or None), seconds.

        Raises
        ------
        RunError
            If a line of ``metrics.jsonl`` is damaged; a last line that is torn is left out.
        """
        return read_stream(self.path)

    @property
    def damage(self) -> list[str]:
        """One line for each file that is missing or not as it was written; reads them all."""
        return self.lines_of(self.damaged())

    def lines_of(self, damaged: Mapping[str, str]) -> list[str]:
        """The lines of :attr:`damage` where :meth:`damaged` has been asked already, so that no file is read twice."""
        listed = [f"{self.path / name} {what}" for name, what in damaged.items()]
        what = self._list_damage()
        return listed if what is None else [f"{self.path / SUMS} {what}", *listed]

    def _list_damage(self) -> str | None:
        try:
            version = self.format
        except RunError:  # the summary is damaged
            version = FORMAT
        there = {entry.name for entry in self.path.iterdir() if not is_litter(entry)}
        if version == 1 or there <= set(FIRST):  # or it was killed as it was made
            return None
        return list_damage(self.path, bare=version == 2)

    def damaged(self) -> dict[str, str]:
        """What is wrong with which listed file, by its name in the folder."""
        found = {name: (total, damage(self.path, name, total)) for name, total in read_sums(self.path).items()}
        now = read_sums(self.path)  # a run that goes on removes files that it first takes off the list
        return {name: what for name, (total, what) in found.items() if what and now.get(name) == total}

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets that are there, sorted."""
        return tuple(sorted(path.stem for path in self.path.glob("*.nc") if not path.name.startswith(".")))

    def dataset(self, name: str) -> "xarray.Dataset":
        """Read one dataset into memory; the file is closed again.

        Raises
        ------
        RunError
            If there is no dataset of that name, or its file is truncated or damaged.
        MissingExtraError
            If xarray, h5netcdf or h5py is not installed.
        """
        if name not in self.datasets:
            there = ", ".join(self.datasets) or "none yet"
            raise RunError(f"{self.path} has no dataset {name!r}; there are: {there}")
        path = self.path / f"{name}.nc"
        total = read_sums(self.path).get(path.name)
        if total is not None and (what := damage(self.path, path.name, total)):
            raise RunError(f"{path} {what}: `chordflow resume {self.path}` makes it again, or run again")
        return read_dataset(path)

    @property
    def flows(self) -> tuple[str, ...]:
        """Names of the flows that are finished, in their order, as the configuration spells them."""
        return tuple(self.summary.get("flows", {}))

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """What came out, per finished flow: result, samples, the numbers of the run, and the compared quantities.

        ``metrics["straight"]["num_steps"]`` is a number of the run; ``metrics["straight"]["cost at the end"]`` is
        ``{"predicted": ..., "measured": ...}``, None where nothing is predicted.
        """
        return {
            name: {
                **{key: value for key, value in flow.items() if key not in ("stats", "comparison")},
                **flow.get("stats", {}),
                **{
                    row["quantity"]: {"predicted": row["predicted"], "measured": row["measured"]}
                    for row in flow.get("comparison", ())
                },
            }
            for name, flow in self.summary.get("flows", {}).items()
        }

    def trajectory(self, flow: str | None = None) -> "xarray.Dataset":
        """Everything saved of a finished flow, over ``time``; ``flow`` may be left out where there is only one.

        Raises
        ------
        RunError
            As :meth:`dataset`, and where ``flow`` is left out and there are none or several.
        """
        if flow is None:
            if len(self.datasets) != 1:
                raise RunError(f"{self.path} has the flows {', '.join(self.flows) or 'none yet'}: name one of them")
            (flow,) = self.datasets
        return self.dataset(dataset_name(flow))

    def params(self, flow: str | None = None, *, like: Any = None, save: int = -1) -> Any:
        """Parameters at a save of a finished flow, NumPy arrays; the last ones unless ``save`` says otherwise.

        Parameters
        ----------
        flow
            As for :meth:`trajectory`.
        like
            A pytree of parameters, such as an Equinox module, whose arrays are replaced and whose other leaves are
            kept. None: dictionaries and tuples, which is what the built-in networks take.
        save
            Index into ``time``.

        Raises
        ------
        RunError
            As :meth:`trajectory`; no parameters there, or an array of ``like`` that has none of its shape.
        """
        dataset = self.trajectory(flow)
        leaves = {
            tuple(json.loads(variable.attrs.get("tree_path", "[]"))): np.asarray(variable.to_numpy()[save])
            for name, variable in dataset.items()
            if "params" in (name, variable.attrs.get("quantity"))
        }
        if not leaves:
            raise RunError(f"{self.path} has no parameters for this flow, only {', '.join(map(str, dataset))}")
        return nested(leaves) if like is None else filled(like, leaves)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace ``summary.json``: nested mappings and lists of str, bool, int, float and None.

        Scalars of NumPy and JAX become Python's. Floats keep every bit; those that are not finite, which JSON has no
        word for, are stored as ``{"float": "nan"}``, ``{"float": "inf"}`` or ``{"float": "-inf"}``, and read back as
        floats.

        Raises
        ------
        RunError
            For a value of another type, naming its key: arrays belong into a dataset.
        """
        values = plain({"format": FORMAT, **summary}, "")
        if "format" in summary:
            raise RunError("summary: the key 'format' is taken by the format number; choose another")
        self._replace("summary.json", values)

    def write_dataset(self, name: str, dataset: "xarray.Dataset") -> None:
        """Replace ``NAME.nc``. Equal datasets give equal bytes; dtypes and values are kept, numbers under a checksum.

        A variable's ``encoding["chunksizes"]`` says in which pieces it lies on disk; the library chooses without.

        Raises
        ------
        RunError
            If the name is not letters, digits, ``_``, ``-`` and ``.``, starting with a letter or digit; or for an
            attribute that netCDF cannot hold: it has no Booleans and no None there.
        MissingExtraError
            If h5netcdf or h5py is not installed.
        """
        if not DATASET_NAME.fullmatch(name):
            raise RunError(f"dataset name {name!r}: expected letters, digits, '_', '-' and '.', as in 'straight'")
        path = self.path / f"{name}.nc"
        write_dataset(path, dataset)
        list_sums(self.path, [path])

    def has(self, name: str) -> bool:
        """Whether a dataset is there and counts."""
        return f"{name}.nc" in read_sums(self.path)

    def found(self, environment: Mapping[str, Any]) -> None:
        """Write what a process that was killed as it made the folder did not come to.

        Where the sum of the configuration is lost, nothing that was made with it counts.
        """
        listed = read_sums(self.path).keys()
        if not (self.path / FIRST[1]).exists():
            self._replace(FIRST[1], plain(environment, ""))
        if not listed >= set(FIRST):
            list_sums(self.path, [self.path / name for name in FIRST], lambda _: FIRST[0] not in listed)

    def note_resumed(self, differences: Sequence[str]) -> None:
        """Keep in ``environment.json`` how that of a process that goes on differs; nothing new is not kept."""
        made = self.environment
        noted = made.get("resumed", [])
        if list(differences) != (noted[-1] if noted else []):
            self._replace(FIRST[1], plain({**made, "resumed": [*noted, differences]}, ""))
            list_sums(self.path, [self.path / FIRST[1]])

    def _replace(self, name: str, values: Any) -> None:
        """Replace a file of JSON, which is not in the list of sums from here on: killed at any moment it is whole."""
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
        if name in read_sums(self.path):
            list_sums(self.path, drop=lambda listed: listed == name)
        with replacing(self.path / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def seal(self, *paths: Path) -> None:
        """Say that the run is finished: list the sums of what changed until now, and of other files that stay."""
        list_sums(self.path, [*(path for path in map(self.path.joinpath, LISTED_LAST) if path.exists()), *paths])

    def write_beside(self, name: str, values: Mapping[str, Any]) -> None:
        """Replace a file of JSON that another command than the run's makes; a run that goes on lists it at its end."""
        content = plain(values, "")
        try:
            with locked(self.path):
                self._replace(name, content)
                list_sums(self.path, [self.path / name])
        except RunningError:
            self._replace(name, content)
            # It may have ended meanwhile, with the sum of what was there before.
            with suppress(RunningError), locked(self.path):
                list_sums(self.path, [self.path / name])

    def write_progress(self, values: Mapping[str, Any]) -> None:
        """Append one line to the stream of metrics."""
        append(self.path, values)

    def of_flow(self, flow: str) -> Progress:
        """Segments and checkpoints of a flow that is not finished."""
        return Progress(self.path, flow)

    def set_aside(self, names: Iterable[str]) -> None:
        """Give damaged files the suffix ``.damaged``, so that others take their place, and take them off the list.

        What changes while a run goes on is taken off, too: without its summary in the list it is not finished.
        """
        names = set(names)
        list_sums(self.path, drop=lambda name: name in names or name in LISTED_LAST)
        for path in (self.path / name for name in names):
            if path.exists():
                os.replace(path, path.with_name(path.name + DAMAGED))
        sync(self.path)

    def mend(self) -> None:
        """Remove what a killed process left unfinished; only the one who holds :meth:`locked` may."""
        remove_litter(self.path)
        drop_torn_line(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for writing; what the disk refuses meanwhile becomes a StorageError of one line.

        Raises
        ------
        RunningError
            If another process holds it.
        StorageError
            If the disk is full, a file too large, or a file where a folder must go: what is there stays whole.
        """
        with locked(self.path), storing(self.path):
            yield


def create(path: str | PathLike[str], config: Mapping[str, Any], environment: Mapping[str, Any] | None = None) -> Run:
    """Make a run folder that holds ``config`` and an empty summary; missing parents are made too.

    Parameters
    ----------
    path
        A path that does not exist yet, or an empty folder; ``~`` is the user's home.
    config
        What :func:`to_toml` takes.
    environment
        What a summary takes: versions, device, seed.

    Raises
    ------
    RunError
        If the path is taken or cannot be written, or for a configuration that TOML cannot hold (nothing is made then).

    Examples
    --------
    >>> import tempfile
    >>> run = create(tempfile.mkdtemp() + "/first", {"seed": 0, "data": {"name": "digits"}})
    >>> run.write_summary({"cost": 1e-12, "result": "successful"})
    >>> again = open_run(run.path)
    >>> again.config, again.summary["cost"], again.datasets
    ({'seed': 0, 'data': {'name': 'digits'}}, 1e-12, ())
    """
    with creating(path, config, environment) as run:
        return run


@contextmanager
def creating(
    path: str | PathLike[str], config: Mapping[str, Any], environment: Mapping[str, Any] | None = None
) -> Iterator[Run]:
    """As :func:`create`, and hold the folder as :meth:`Run.locked` does while the block runs."""
    run, text = Run(Path(path).expanduser()), to_toml(config)
    plain(environment or {}, "")  # so that what JSON cannot hold is refused before anything is made
    with ExitStack() as held:
        try:
            make_folder(run.path)
            if any(not is_litter(entry) for entry in run.path.iterdir()):
                raise FileExistsError
            # First: from here on it is a run folder, which opens and can be resumed.
            with replacing(run.path / "config.toml", new=True) as temporary:
                temporary.write_text(text, encoding="utf-8")
            held.enter_context(locked(run.path))
            run.found(environment or {})
            run.write_summary({})
        except FileExistsError:
            raise RunError(f"run folder {run.path} exists and {_taken(run.path)}") from None
        except OSError as error:
            raise RunError(f"run folder {run.path} cannot be written ({error.strerror}): give another path") from error
        with storing(run.path):
            yield run


def _taken(path: Path) -> str:
    """By what a path is taken, and what to do about it."""
    if not path.is_dir():
        return "is a file: give another path"
    if not (path / "config.toml").is_file():
        return "is not empty: give another path"
    return f"is not empty: give another path, `chordflow resume {path}` to go on, or --overwrite to start over"


OURS = (
    *("config.toml", "environment.json", "summary.json", "metrics.jsonl", SUMS, "segments", "checkpoints"),
    *("verification.json", "report.html", "gram.nc"),
)
"""What Chordflow writes into a run folder beside the datasets and figures of flows."""
FIGURES = ("outputs", "cost")
"""Figures of a run, beside ``spectrum-NAME`` of each flow."""


def _made(run: Run) -> set[str]:
    """Names in the folder that are a run's, if they are there, whether it came to list them or not."""
    flows = [dataset_name(flow) for flow in run.config.get("flows", ())]
    figures = (*FIGURES, *(f"spectrum-{flow}" for flow in flows))
    names = {*OURS, *(f"{flow}.nc" for flow in flows), *(f"{name}.{kind}" for name in figures for kind in KINDS)}
    names |= {name.split("/")[0] for name in read_sums(run.path)}
    return names | {f"{name}{DAMAGED}" for name in names}


def remove_run(path: str | PathLike[str]) -> None:
    """Remove a run folder, to start over; a path where there is nothing is left so.

    Raises
    ------
    RunError
        If it is no run folder, is being written, or holds a file that no run wrote: nothing is removed then.
    """
    folder = Path(path).expanduser()
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    run = open_run(folder)
    made = _made(run)
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in made and not is_litter(entry))
    if foreign:
        raise RunError(
            f"run folder {folder} holds {foreign[0]}, which no run wrote: move it away, or give another path"
        )
    with run.locked():
        clear(run)


def clear(run: Run) -> None:
    """Remove what a run wrote; only the one who holds the folder may."""
    made = _made(run)
    ours = [entry for entry in run.path.iterdir() if entry.name in made or is_litter(entry)]
    # The last to go is what makes it a run folder: killed before, it can be removed again.
    for entry in sorted(ours, key=lambda entry: (entry.name == "config.toml", entry.name == SUMS)):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def open_run(path: str | PathLike[str]) -> Run:
    """The finished, running or killed run in a folder. Reads the configuration and the summary, executes nothing.

    ``run.config`` is what was asked for, ``run.metrics`` what came out in numbers, ``run.trajectory(flow)`` the
    labelled arrays of one flow and ``run.params(flow)`` its parameters at the end. No module it names is imported.

    Raises
    ------
    RunError
        If there is no such folder, it is not a run folder, or its configuration or summary is damaged or too new.
    """
    run = Run(Path(path).expanduser())
    if not run.path.is_dir():
        what = "is not a folder" if run.path.exists() else "does not exist"
        raise RunError(f"run folder {run.path} {what}: expected a folder made by `chordflow run`")
    if not (run.path / "config.toml").is_file():
        raise RunError(f"{run.path} has no config.toml: it is not a run folder, as `chordflow run` makes them")
    _ = run.config, run.summary
    return run
