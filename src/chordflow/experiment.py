"""A run from its configuration: build the objects, integrate the flows, compare with the theory, keep everything."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from chordflow import data, figures, geometry, models, record
from chordflow.clocks import AbstractClock
from chordflow.comparison import Comparison, compare, gradient_times, saved_scalars, table_lines
from chordflow.config import LOSSES, Config, ConfigError, make_clock, parse_flow
from chordflow.flows import Flow
from chordflow.integration import evolve, expected_steps
from chordflow.problem import Problem
from chordflow.results import RESULTS, is_okay
from chordflow.solve import RankPolicy
from chordflow.trajectory import Trajectory
from chordflow.velocities import Straight

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPECTRUM_SAVES, FEW_SPECTRUM_SAVES, MANY_OUTPUTS = 11, 5, 1000
"""A spectrum is a decomposition, which for more than a thousand outputs takes seconds: then fewer of them."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """A configuration turned into objects: data, network, and one problem per sample size."""

    config: Config
    dataset: data.Dataset
    apply: Callable[[Any, Any], Array]
    params: PyTree

    @classmethod
    def build(cls, config: Config) -> "Setting":
        """Load the data and make the network; every mistake is a one-line ValueError that names the key."""
        options = {key: getattr(config.data, key) for key in ("path", "task", "target", "standardise")}
        d = config.data
        dataset = data.load(
            d.name, samples=d.samples, seed=d.seed, smoothing=d.smoothing, max_test=d.max_test, **options
        )
        if config.loss == "cross_entropy" and dataset.task != "classification":
            raise ConfigError(f"loss = cross_entropy: data.name = {d.name} is a {dataset.task} task, needs classes")
        network = dict(config.model)
        name = network.pop("name", "mlp")
        model = models.build(name, dataset.input_shape, dataset.num_outputs, seed=config.seed, **network)
        return cls(config, dataset, model.apply, model.params)

    def problem(self, samples: int | None = None) -> Problem:
        """The problem on the first ``samples`` (all if None)."""
        rows = slice(samples)
        loss = LOSSES[self.config.loss]()
        return Problem(self.apply, self.dataset.inputs[rows], self.dataset.targets[rows], loss=loss)

    def samples_for(self, flow: Flow) -> int:
        """N of a flow: all samples, or ``data.stiff_samples`` where the flow has a part as stiff as DDᵀ."""
        N = len(self.dataset.targets)
        stiff = self.config.data.stiff_samples
        blend = flow.filter.blend()
        is_stiff = blend is None or float(blend.transpose) > 0
        return min(N, stiff) if is_stiff and stiff is not None else N

    def clock_for(self, flow: Flow) -> AbstractClock | None:
        """The configured clock; None for gradient-flow time, and for the straight flow, which has its own t."""
        return None if isinstance(flow.velocity, Straight) else make_clock(self.config.clock, self.samples_for(flow))

    def end(self, name: str) -> float:
        """Where a flow ends, in its own variable: 1 for straight, else ``t1`` or s = N (5 N for adapted)."""
        flow = parse_flow(name, self.config.eps)
        clock, t1 = self.clock_for(flow), self.config.t1
        if isinstance(flow.velocity, Straight):
            return 1.0
        if t1 is None:
            s = (5.0 if name == "adapted" else 1.0) * self.samples_for(flow)
            return s if clock is None else float(clock.t(jnp.asarray(s)))
        if clock is not None and t1 >= clock.end:
            raise ConfigError(f"t1 = {t1:g}: expected below {clock.end:g} on the {self.config.clock} clock")
        return t1


@dataclass(frozen=True)
class FlowRun:
    """One finished flow of a run."""

    name: str
    flow: Flow
    problem: Problem
    clock: AbstractClock | None
    trajectory: Trajectory
    comparison: Comparison
    spectrum_times: Float[np.ndarray, " t"]
    sigmas: Float[np.ndarray, "t k"]
    seconds: float

    @property
    def s(self) -> np.ndarray:
        """Gradient-flow time of each save."""
        return gradient_times(self.flow, self.clock, self.trajectory.ts, float(self.problem.num_samples))


def run(config: Config, *, say: Say = print, progress: bool = False) -> Path:
    """Do what a configuration says and return the run folder; the folder exists before the first computation.

    A flow that cannot run on the problem is named with its reason and left out; a flow that ends early keeps what it
    reached. Only if no flow at all could be run does it raise.
    """
    setting = Setting.build(config)
    for name in config.flows:
        setting.end(name)
    out = config.out or f"runs/{config.data.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = record.create(_free(out) if config.out is None else out, config.to_dict())
    say(f"run folder {folder.path}")
    runs: list[FlowRun] = []
    for name in config.flows:
        done = run_flow(setting, name, say=say, progress=progress)
        if done is not None:
            runs.append(done)
            folder.write_dataset(_file_name(name), flow_dataset(done))
            folder.write_summary({"flows": {r.name: flow_summary(r) for r in runs}})
    if not runs:
        raise ConfigError(f"flows = {list(config.flows)}: none of them can run on this problem, see the reasons above")
    for line in table_lines({f"{r.name} N={int(r.problem.num_samples)}": r.comparison.rows for r in runs}):
        say(line)
    for name, figure in draw(runs).items():
        figures.save(figure, folder.path / name)
    say(f"config, summary, datasets and figures: {folder.path}")
    return folder.path


def run_flow(setting: Setting, name: str, *, say: Say = print, progress: bool = False) -> FlowRun | None:
    """Integrate one flow and compare it with the theory; None, with the reason said, where it cannot run."""
    config = setting.config
    flow = parse_flow(name, config.eps)
    N = setting.samples_for(flow)
    problem = setting.problem(N)
    own = isinstance(flow.velocity, Straight)
    clock, t1 = setting.clock_for(flow), setting.end(name)
    try:
        flow.velocity.bind(problem, problem.outputs(setting.params))
    except ValueError as reason:
        say(f"{name}: left out. {reason}")
        return None
    n, K = problem.num_outputs, problem.ravel(setting.params)[0].size
    steps = expected_steps(problem, setting.params, flow, t1, clock=clock)
    expected = f"about {steps:.0f} steps for stability" if steps > 50 else "some tens of steps for accuracy"
    say(f"{name}: {N} samples, n = {n}, K = {K}, to {'t' if own or clock else 's'} = {t1:g}; expected {expected}")
    start = time.perf_counter()
    trajectory = evolve(
        problem,
        setting.params,
        flow,
        ts=_save_times(t1, config.saves, flow, clock),
        clock=clock,
        rtol=config.rtol,
        atol=config.atol,
        max_steps=config.max_steps,
        save=_saves(setting),
        progress=progress,
        throw=False,
    )
    jax.block_until_ready(trajectory.ts)
    seconds = time.perf_counter() - start
    stats = trajectory.stats
    say(f"{name}: {int(stats['num_steps'])} steps ({int(stats['num_rejected'])} rejected) in {seconds:.1f} s")
    if not bool(is_okay(trajectory.result)):
        say(f"{name}: ended at {float(stats['t_last']):g}. {RESULTS[trajectory.result]}")
    spectrum_times, sigmas = _spectra(problem, trajectory)
    return FlowRun(
        name,
        flow,
        problem,
        clock,
        trajectory,
        compare(problem, setting.params, flow, trajectory, clock),
        spectrum_times,
        sigmas,
        seconds,
    )


def _spectra(problem: Problem, trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """Times and singular values of some saves; by the Gram matrix where D is large and G sees them all."""
    n, K = problem.jacobian(trajectory.params).shape
    many = min(n, K) > MANY_OUTPUTS
    count = FEW_SPECTRUM_SAVES if many else SPECTRUM_SAVES
    picked = np.unique(np.linspace(0, len(trajectory.ts) - 1, count).astype(int))
    spectra = []
    for i in picked:
        params = jax.tree.map(lambda p, i=i: p[i], trajectory.saved["params"])
        sigma = geometry.spectrum_from_gram(problem, params) if many else geometry.spectrum(problem, params)
        spectra.append(geometry.spectrum(problem, params) if bool(jnp.isnan(sigma).any()) else sigma)
    return np.asarray(trajectory.ts)[picked], np.asarray(spectra)


def _save_times(t1: float, count: int, flow: Flow, clock: AbstractClock | None) -> np.ndarray:
    """Where something happens: towards t = 1 of the chord for straight, from the start for descent flows."""
    u = np.linspace(0.0, 1.0, count)
    if isinstance(flow.velocity, Straight):
        return 1.0 - (1.0 - u) ** 2
    return t1 * (u**2 if clock is None else u)


def _saves(setting: Setting) -> dict[str, Any]:
    saves: dict[str, Any] = {"outputs": None, "cost": None, "params": None}
    if len(setting.dataset.test_targets):
        saves |= _test_saves(setting.apply, setting.dataset, LOSSES[setting.config.loss]())
    return saves


def _test_saves(apply: Callable, dataset: data.Dataset, loss: Any) -> dict[str, Any]:
    """Held-out cost, and accuracy for classification, as functions of (t, params)."""
    inputs, targets = jnp.asarray(dataset.test_inputs), jnp.asarray(dataset.test_targets)

    def outputs(params: PyTree) -> Array:
        return jax.vmap(lambda sample: apply(params, sample))(inputs)

    def cost(t: Array, params: PyTree) -> Array:
        del t
        return jnp.mean(jax.vmap(loss.value)(outputs(params), targets))

    def accuracy(t: Array, params: PyTree) -> Array:
        del t
        hits = jnp.argmax(outputs(params), axis=1) == jnp.argmax(targets, axis=1)
        return jnp.mean(hits.astype(targets.dtype))

    return {"test_cost": cost} | ({"test_accuracy": accuracy} if dataset.task == "classification" else {})


def flow_dataset(done: FlowRun) -> Any:
    """Everything saved of a flow, with its prediction and spectra, as one labelled xarray dataset."""
    dataset = done.trajectory.to_xarray()
    dataset = dataset.assign_coords(s=("time", done.s))
    if done.comparison.predicted is not None:
        dataset["predicted_outputs"] = (dataset["outputs"].dims, done.comparison.predicted)
    dataset = dataset.assign_coords(spectrum_time=("spectrum_time", done.spectrum_times))
    dataset["sigma"] = (("spectrum_time", "singular_value"), done.sigmas)
    dataset["seconds"] = ((), done.seconds)
    dataset.attrs |= {"flow": done.name, "prediction": done.comparison.what}
    return dataset


def flow_summary(done: FlowRun) -> dict[str, Any]:
    """Outcome, numbers and table of a flow."""
    return {
        "result": done.trajectory.result_name,
        "samples": int(done.problem.num_samples),
        "stats": saved_scalars(done.trajectory),
        "comparison": [row._asdict() for row in done.comparison.rows],
    }


def draw(runs: list[FlowRun]) -> dict[str, "Figure"]:
    """The figures of a run: outputs in one plane, cost on both clocks, spectra over time."""
    common = min(len(r.problem.terms[0].targets) for r in runs)
    outputs = {r.name: np.asarray(r.trajectory.outputs)[:, :common] for r in runs}
    first = runs[0].trajectory.outputs[0][:common]
    goal = runs[0].problem.loss
    target = jax.vmap(goal.equilibrium)(first, runs[0].problem.terms[0].targets[:common])
    drawn: dict[str, Any] = {}
    if target is not None and np.isfinite(target).all():
        drawn["outputs"] = figures.output_plane(outputs, chord=(np.asarray(first), np.asarray(target)))
    minimum = [float(m) if (m := r.problem.minimum()) is not None else 0.0 for r in runs]
    # Each flow against s/N, so that flows on different numbers of samples share one axis.
    curves = {
        r.name: (r.s / float(r.problem.num_samples), np.asarray(r.trajectory.costs) - low)
        for r, low in zip(runs, minimum, strict=True)
    }
    predictions = {
        r.name: (r.s / float(r.problem.num_samples), _costs(r.problem, r.comparison.predicted) - low)
        for r, low in zip(runs, minimum, strict=True)
        if r.comparison.predicted is not None
    }
    drawn["cost"] = figures.cost_curves(curves, 1.0, predictions=predictions)
    for r in runs:
        lam = float(RankPolicy.of(r.flow.filter, r.trajectory.stats["sigma_max"], 0.0).lam)
        label = "t" if isinstance(r.flow.velocity, Straight) or r.clock is not None else "s"
        drawn[f"spectrum-{_file_name(r.name)}"] = figures.spectrum_map(
            r.spectrum_times, r.sigmas, lam, time_label=label
        )
    return drawn


def _costs(problem: Problem, outputs: np.ndarray) -> np.ndarray:
    """C along given outputs (T, N, Q)."""
    return np.asarray(jax.vmap(problem.cost_at)(jnp.asarray(outputs)))


def _file_name(flow: str) -> str:
    return flow.replace("(", "-").replace(")", "").replace(" ", "")


def _free(out: str) -> str:
    """A default folder that is not taken: two runs within a second get different ones."""
    taken = (out, *(f"{out}-{i}" for i in range(2, 1000)))
    return next(path for path in taken if not Path(path).exists())
