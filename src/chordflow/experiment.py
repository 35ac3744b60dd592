"""A run from its configuration: build the objects, integrate the flows, compare with the theory, keep everything."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from chordflow import data, figures, geometry, models, record
from chordflow.clocks import AbstractClock
from chordflow.comparison import Comparison, compare, gradient_times, saved_scalars, table_lines
from chordflow.config import Config, ConfigError, make_clock, make_loss, parse_flow
from chordflow.flows import Flow
from chordflow.integration import evolve, expected_steps
from chordflow.losses import AbstractLoss
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


@dataclass(frozen=True, eq=False)
class Plan:
    """What one flow of a run is made of, before anything is integrated."""

    name: str
    flow: Flow
    problem: Problem
    clock: AbstractClock | None
    t1: float

    @property
    def variable(self) -> str:
        """``s`` for gradient-flow time, ``t`` for a clock and for straight and along, which have their own t."""
        return "s" if self.flow.velocity.is_autonomous and self.clock is None else "t"

    def obstacle(self, params: PyTree) -> str | None:
        """Why the problem does not allow the flow, such as a straight one to labels without a finite equilibrium.

        A path of the user's own that does not fit is a mistake and raises ConfigError.
        """
        try:
            self.flow.velocity.bind(self.problem, self.problem.outputs(params))
        except ValueError as reason:
            if not isinstance(self.flow.velocity, Straight):
                raise ConfigError(f"flows = {self.name}: {reason}") from None
            return str(reason)
        return None


@dataclass(frozen=True)
class Setting:
    """A configuration turned into objects: data, network, loss, and one problem per sample size."""

    config: Config
    dataset: data.Dataset
    apply: Callable[[Any, Any], Array]
    params: PyTree
    loss: AbstractLoss

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
        setting = cls(config, dataset, model.apply, model.params, make_loss(config.loss))
        setting._check(setting.problem())
        return setting

    def _check(self, problem: Problem) -> None:
        """The mistakes of a model and a loss of the user's own, before there is a folder."""
        dtype = problem.ravel(self.params)[0].dtype
        if dtype != np.float64:
            where = "leave out model.dtype" if "dtype" in self.config.model else "make the parameters float64"
            raise ConfigError(f"model.name: parameters are {dtype}, flows are integrated in float64: {where}")
        problem.check(self.params)
        eqx.filter_eval_shape(problem.cost, self.params)

    def problem(self, samples: int | None = None) -> Problem:
        """The problem on the first ``samples`` (all if None)."""
        rows = slice(samples)
        return Problem(self.apply, self.dataset.inputs[rows], self.dataset.targets[rows], loss=self.loss)

    def plan(self, name: str) -> Plan:
        """Objects for one flow of the configuration.

        A flow with a part as stiff as DDᵀ gets ``data.stiff_samples``. It ends at 1 in its own t (straight, along),
        else at ``t1``, by default s = N, or 5 N where nothing is stiff.
        """
        config, flow = self.config, parse_flow(name).flow(self.config.eps)
        blend = flow.filter.blend()
        stiff = blend is None or float(blend.transpose) > 0
        N, few = len(self.dataset.targets), config.data.stiff_samples
        if few is not None and few > N:
            raise ConfigError(f"data.stiff_samples = {few}: expected at most the {N} samples there are")
        N = few or N if stiff else N
        problem = self.problem(N)
        if not flow.velocity.is_autonomous:
            return Plan(name, flow, problem, None, 1.0)
        clock, t1 = make_clock(config.clock, N), config.t1
        if t1 is None:
            s = (1.0 if stiff else 5.0) * N
            t1 = s if clock is None else float(clock.t(jnp.asarray(s)))
        if clock is not None and t1 >= clock.end:
            raise ConfigError(f"t1 = {t1:g}: expected below {clock.end:g} on the {config.clock} clock")
        return Plan(name, flow, problem, clock, t1)


@dataclass(frozen=True)
class FlowRun:
    """One finished flow of a run."""

    plan: Plan
    trajectory: Trajectory
    comparison: Comparison
    spectrum_times: Float[np.ndarray, " t"]
    sigmas: Float[np.ndarray, "t k"]
    seconds: float

    @property
    def num_samples(self) -> float:
        """N."""
        return float(self.plan.problem.num_samples)

    @property
    def s(self) -> np.ndarray:
        """Gradient-flow time of each save."""
        return gradient_times(self.plan.flow, self.plan.clock, self.trajectory.ts, self.num_samples)


def run(config: Config, *, say: Say = print, progress: bool = False) -> Path:
    """Do what a configuration says and return the run folder; the folder exists before the first computation.

    A flow that cannot run on the problem is named with its reason and left out; a flow that ends early keeps what it
    reached, its last good state as the last save. Only if no flow at all can run does it raise, before there is a
    folder.
    """
    setting = Setting.build(config)
    obstacles = {plan: plan.obstacle(setting.params) for plan in map(setting.plan, config.flows)}
    plans = [plan for plan, obstacle in obstacles.items() if obstacle is None]
    for plan, obstacle in obstacles.items():
        if obstacle is not None and not plans:
            raise ConfigError(f"flows = {','.join(config.flows)}: none can run on this problem. {obstacle}")
        if obstacle is not None:
            say(f"{plan.name}: left out. {obstacle}")
    folder = make_folder(config, config.data.name)
    say(f"run folder {folder.path}")
    runs: list[FlowRun] = []
    for plan in plans:
        runs.append(done := run_flow(setting, plan, say=say, progress=progress))
        folder.write_dataset(record.dataset_name(plan.name), flow_dataset(done))
        folder.write_summary({"flows": {r.plan.name: flow_summary(r) for r in runs}})
    for line in table_lines({f"{r.plan.name} N={int(r.num_samples)}": r.comparison.rows for r in runs}):
        say(line)
    for name, figure in draw(runs).items():
        figures.save(figure, folder.path / name)
    say(f"config, summary, datasets and figures: {folder.path}")
    return folder.path


def run_flow(setting: Setting, plan: Plan, *, say: Say = print, progress: bool = False) -> FlowRun:
    """Integrate one flow and compare it with the theory."""
    config, name, problem = setting.config, plan.name, plan.problem
    n, K = problem.num_outputs, problem.ravel(setting.params)[0].size
    steps = expected_steps(problem, setting.params, plan.flow, plan.t1, clock=plan.clock)
    expected = f"about {steps:.0f} steps for stability" if steps > 50 else "some tens of steps for accuracy"
    N = int(problem.num_samples)
    say(f"{name}: {N} samples, n = {n}, K = {K}, to {plan.variable} = {plan.t1:g}; expected {expected}")
    saves = _saves(setting)
    start = time.perf_counter()
    trajectory = evolve(
        problem,
        setting.params,
        plan.flow,
        ts=_save_times(plan, config.saves),
        clock=plan.clock,
        rtol=config.rtol,
        atol=config.atol,
        max_steps=config.max_steps,
        save=saves,
        progress=progress,
        throw=False,
    )
    jax.block_until_ready(trajectory.ts)
    seconds = time.perf_counter() - start
    stats = trajectory.stats
    say(f"{name}: {int(stats['num_steps'])} steps ({int(stats['num_rejected'])} rejected) in {seconds:.1f} s")
    if not bool(is_okay(trajectory.result)):
        say(f"{name}: ended at {plan.variable} = {float(stats['t_last']):g}. {RESULTS[trajectory.result]}")
        trajectory = _with_last_state(problem, trajectory, saves)
    spectrum_times, sigmas = _spectra(problem, trajectory)
    comparison = compare(problem, setting.params, plan.flow, trajectory, plan.clock)
    return FlowRun(plan, trajectory, comparison, spectrum_times, sigmas, seconds)


def _with_last_state(problem: Problem, trajectory: Trajectory, saves: dict[str, Any]) -> Trajectory:
    """A run that ended early between two saves, with the last good state as one more save."""
    t, params = trajectory.stats["t_last"], trajectory.params
    if len(trajectory.ts) and not bool(t > trajectory.ts[-1]):
        return trajectory
    arrays = eqx.filter(params, eqx.is_array)  # as they are saved: an Equinox module holds functions too
    given = {"outputs": problem.outputs, "cost": problem.cost, "params": lambda _: arrays}
    last = {name: given[name](params) if fn is None else fn(t, params) for name, fn in saves.items()}
    rows = jax.tree.map(lambda saved, row: jnp.concatenate([saved, row[None]]), trajectory.saved, last)
    ts = jnp.concatenate([trajectory.ts, t[None]])
    return eqx.tree_at(lambda tr: (tr.ts, tr.saved), trajectory, (ts, rows))


def _spectra(problem: Problem, trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """Times and singular values of some saves; by the Gram matrix where D is large and G sees them all."""
    n, K = problem.jacobian(trajectory.params).shape
    many = min(n, K) > MANY_OUTPUTS
    count = FEW_SPECTRUM_SAVES if many else SPECTRUM_SAVES
    picked = np.unique(np.linspace(0, len(trajectory.ts) - 1, count).astype(int))
    spectra = []
    for i in picked:
        params = trajectory.params_saved(int(i))
        sigma = geometry.spectrum_from_gram(problem, params) if many else geometry.spectrum(problem, params)
        spectra.append(geometry.spectrum(problem, params) if bool(jnp.isnan(sigma).any()) else sigma)
    return np.asarray(trajectory.ts)[picked], np.asarray(spectra)


def _save_times(plan: Plan, count: int) -> np.ndarray:
    """Where something happens: towards t = 1 of the chord for straight, from the start for descent flows."""
    u = np.linspace(0.0, 1.0, count)
    if isinstance(plan.flow.velocity, Straight):
        return 1.0 - (1.0 - u) ** 2
    return plan.t1 * (u**2 if plan.variable == "s" else u)


def _saves(setting: Setting) -> dict[str, Any]:
    saves: dict[str, Any] = {"outputs": None, "cost": None, "params": None}
    if len(setting.dataset.test_targets):
        saves |= _test_saves(setting.apply, setting.dataset, setting.loss)
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
    dataset.attrs |= {"flow": done.plan.name, "prediction": done.comparison.what}
    return dataset


def flow_summary(done: FlowRun) -> dict[str, Any]:
    """Outcome, numbers and table of a flow."""
    return {
        "result": done.trajectory.result_name,
        "samples": int(done.num_samples),
        "stats": saved_scalars(done.trajectory),
        "comparison": [row._asdict() for row in done.comparison.rows],
    }


def draw(runs: list[FlowRun]) -> dict[str, "Figure"]:
    """The figures of a run: outputs in one plane, cost on both clocks, spectra over time."""
    problems = [r.plan.problem for r in runs]
    common = min(len(problem.terms[0].targets) for problem in problems)
    outputs = {r.plan.name: np.asarray(r.trajectory.outputs)[:, :common] for r in runs}
    first = runs[0].trajectory.outputs[0][:common]
    target = jax.vmap(problems[0].loss.equilibrium)(first, problems[0].terms[0].targets[:common])
    drawn: dict[str, Any] = {}
    if target is not None and np.isfinite(target).all():
        drawn["outputs"] = figures.output_plane(outputs, chord=(np.asarray(first), np.asarray(target)))
    minimum = [float(m) if (m := problem.minimum()) is not None else 0.0 for problem in problems]
    # Each flow against s/N, so that flows on different numbers of samples share one axis.
    curves = {
        r.plan.name: (r.s / r.num_samples, np.asarray(r.trajectory.costs) - low)
        for r, low in zip(runs, minimum, strict=True)
    }
    predictions = {
        r.plan.name: (r.s / r.num_samples, _costs(r.plan.problem, r.comparison.predicted) - low)
        for r, low in zip(runs, minimum, strict=True)
        if r.comparison.predicted is not None
    }
    drawn["cost"] = figures.cost_curves(curves, 1.0, predictions=predictions)
    for r in runs:
        lam = float(RankPolicy.of(r.plan.flow.filter, r.trajectory.stats["sigma_max"], 0.0).lam)
        drawn[f"spectrum-{record.dataset_name(r.plan.name)}"] = figures.spectrum_map(
            r.spectrum_times, r.sigmas, lam, time_label=r.plan.variable
        )
    return drawn


def _costs(problem: Problem, outputs: np.ndarray) -> np.ndarray:
    """C along given outputs (T, N, Q)."""
    return np.asarray(jax.vmap(problem.cost_at)(jnp.asarray(outputs)))


def make_folder(config: Config, name: str) -> record.Run:
    """The folder ``out`` of a configuration, or ``runs/NAME-TIME`` where it names none."""
    out = config.out or _free(f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    return record.create(out, config.to_dict())


def _free(out: str) -> str:
    """A default folder that is not taken: two runs within a second get different ones."""
    taken = (out, *(f"{out}-{i}" for i in range(2, 1000)))
    return next(path for path in taken if not Path(path).exists())
