"""What a finished flow is compared with and shown by: spectra, table, labelled dataset, figures."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from chordflow import figures, geometry, record, theory
from chordflow.comparison import Chord, Comparison, clock_times, gradient_times, saved_scalars
from chordflow.losses import SquaredError
from chordflow.problem import Problem
from chordflow.setting import Plan
from chordflow.solve import RankPolicy
from chordflow.trajectory import Trajectory
from chordflow.velocities import Straight

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPECTRUM_SAVES, FEW_SPECTRUM_SAVES, MANY_OUTPUTS = 11, 5, 1000
"""A spectrum is a decomposition, which for more than a thousand outputs takes seconds: then fewer of them."""
DENSE_SPECTRUM = 400
"""Larger ones by way of the Gram matrix, five times faster for 1000 outputs, unless it does not see them all."""
DIAGNOSIS_SAVES, FEW_DIAGNOSIS_SAVES, GRAM_OUTPUTS = 21, 11, 8000
"""A Gram matrix and its Cholesky factor: 0.2 s for 2000 outputs; 0.5 GB each for 8000."""
DEVIATION_OUTPUTS = 256
"""Up to so many outputs S is formed at every save: a singular value decomposition each."""


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

    @property
    def t(self) -> np.ndarray:
        """Clock time of each save."""
        return clock_times(self.plan.flow, self.plan.clock, self.trajectory.ts, self.num_samples)


def spectra(problem: Problem, trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """Times and singular values of some saves; by the Gram matrix where D is large and G sees them all."""
    size = min(problem.jacobian(trajectory.params).shape)
    count = FEW_SPECTRUM_SAVES if size > MANY_OUTPUTS else SPECTRUM_SAVES
    by_gram = size > DENSE_SPECTRUM
    picked = _spread(len(trajectory.ts), count)
    spectra = []
    for i in picked:
        params = trajectory.params_saved(int(i))
        sigma = geometry.spectrum_from_gram(problem, params) if by_gram else geometry.spectrum(problem, params)
        spectra.append(geometry.spectrum(problem, params) if bool(jnp.isnan(sigma).any()) else sigma)
    return np.asarray(trajectory.ts)[picked], np.asarray(spectra)


def flow_dataset(done: FlowRun) -> Any:
    """Everything saved of a flow, with its prediction, spectra and diagnostics, as one labelled xarray dataset.

    ======================== ============== =====================================================================
    variable                 over           meaning
    ======================== ============== =====================================================================
    target                                  labels y
    equilibrium                             the end of the chord, where it is finite
    predicted_outputs        time           what the theory says the outputs do, if it does
    predicted_cost           time           C of them
    deviation                time           max |x − chord| in units of the longest way of an output
    predicted_deviation      time           the same predicted: (2.58), or that of predicted_outputs
    sigma                    spectrum_time  singular values of W^½D
    effective_dimension      spectrum_time  Σ σ²/(σ²+λ)
    unreachable_fraction     diagnosis_time |u − S_λu|/|u|
    kernel_drift             diagnosis_time |G − G₀|_F/|G₀|_F
    seconds                                 wall-clock of the integration
    ======================== ============== =====================================================================

    Each says its units in ``units`` and what it is in ``long_name``. What is not computed, because it would take too
    long or the theory is silent, is absent, and ``without_VARIABLE`` among the attributes of the dataset says why.
    """
    dataset = done.trajectory.to_xarray()
    dataset = dataset.assign_coords(s=("time", done.s, {"long_name": "gradient-flow time s", "units": "1"}))
    _add_spectra(dataset, done)
    missing = _add_reach_and_drift(dataset, done)
    _add_predictions(dataset, done, missing)
    dataset["seconds"] = ((), done.seconds, {"long_name": "wall-clock time of the integration", "units": "s"})
    minimum = done.plan.problem.minimum()
    dataset.attrs |= {
        "flow": done.plan.name,
        "prediction": done.comparison.what,
        "loss": type(done.plan.problem.loss).__name__,
        "num_samples": done.num_samples,
        "variable": done.plan.variable,
        # What costs are shown above; 0 where the loss does not know its minimum.
        "cost_minimum": 0.0 if minimum is None else float(minimum),
    }
    dataset.attrs.setdefault("lam", float(rank_policy(done).lam))  # which the standard flow does not need
    return dataset


def rank_policy(done: FlowRun) -> RankPolicy:
    """The rank policy by which a flow is diagnosed, whatever its own filter: σ_max is that of the first spectrum."""
    return RankPolicy.of(done.plan.flow.filter, jnp.asarray(done.sigmas[0, 0]), 0.0)


class Missing(NamedTuple):
    """The part of the velocity that the parameters cannot make, at some saves."""

    ts: Float[np.ndarray, " P"]
    velocity: Float[np.ndarray, "P n"]

    def integral(self, ts: Float[np.ndarray, " T"]) -> Float[np.ndarray, "T n"]:
        """Over time from the first save to each of ``ts``, which hold those saves; linear between them."""
        right = np.clip(np.searchsorted(self.ts, ts), 1, max(1, len(self.ts) - 1))
        weight = ((ts - self.ts[right - 1]) / (self.ts[right] - self.ts[right - 1]))[:, None]
        at = (1 - weight) * self.velocity[right - 1] + weight * self.velocity[right]
        pieces = np.diff(ts)[:, None] * (at[1:] + at[:-1]) / 2
        return np.concatenate([np.zeros_like(at[:1]), np.cumsum(pieces, axis=0)])


def _add_predictions(dataset: Any, done: FlowRun, missing: Missing | None) -> None:
    """Labels, the end of the chord, what is predicted, and how far run and prediction are from the chord."""
    problem, x, dims = done.plan.problem, np.asarray(done.trajectory.outputs), dataset["outputs"].dims
    dataset["target"] = (dims[1:], np.asarray(problem.targets), {"long_name": "labels y"})
    predicted = done.comparison.predicted
    if predicted is not None:
        dataset["predicted_outputs"] = (dims, predicted, {"long_name": f"outputs of {done.comparison.what}"})
        cost = {"long_name": f"cost of {done.comparison.what}", "units": "1"}
        dataset["predicted_cost"] = ("time", _costs(problem, predicted), cost)
    chord = Chord.of(problem, x[0])
    if chord is None:
        dataset.attrs["without_deviation"] = "the loss has no finite equilibrium, so there is no chord to an end"
        return
    dataset["equilibrium"] = (dims[1:], chord.end, {"long_name": "end of the chord"})
    if chord.length == 0:
        dataset.attrs["without_deviation"] = "the outputs start at their labels, so that the chord has no length"
        return
    units = {"units": "longest way of an output"}
    measured = chord.deviations(done.t, x)
    dataset["deviation"] = ("time", measured, units | {"long_name": "max |x − chord|"})
    foreseen, what = _foreseen(done, chord, missing)
    if foreseen is None:
        dataset.attrs["without_predicted_deviation"] = what
    else:
        values = np.abs(foreseen).max(axis=(1, 2)) / chord.length
        dataset["predicted_deviation"] = ("time", values, units | {"long_name": f"max |x − chord|, {what}"})


def _foreseen(done: FlowRun, chord: Chord, missing: Missing | None) -> tuple[np.ndarray | None, str]:
    """r(t) (T, N, Q) by (2.58) or from the predicted outputs, and by which; or None and why there is none."""
    problem, flow, trajectory = done.plan.problem, done.plan.flow, done.trajectory
    blend = flow.filter.blend()
    inverts_only = blend is not None and isinstance(blend.transpose, float) and blend.transpose == 0
    is_straight = isinstance(flow.velocity, Straight)
    if not (inverts_only and (is_straight or (isinstance(problem.loss, SquaredError) and flow.velocity.is_autonomous))):
        if done.comparison.predicted is None:
            return None, "the theory has no prediction for this flow and loss"
        return done.comparison.predicted - chord.at(done.t), done.comparison.what
    if problem.num_outputs > DEVIATION_OUTPUTS and is_straight and missing is not None:
        r = missing.integral(np.asarray(trajectory.ts)).reshape(trajectory.outputs.shape)
        return r, f"predicted by (2.58) from S at {len(missing.ts)} saves"
    if problem.num_outputs > DEVIATION_OUTPUTS:
        return None, (
            f"(2.58) needs the n × n matrix S at every save, and n = {problem.num_outputs} is above the "
            f"{DEVIATION_OUTPUTS} up to which it is computed"
        )
    ts = trajectory.ts if is_straight else jnp.asarray(done.t)
    if len(ts) < 2:
        return None, "nothing was saved after the start"
    policy = rank_policy(done)
    S = [geometry.transfer(problem, trajectory.params_saved(i), flow.filter, policy) for i in range(len(trajectory.ts))]
    # Eight digits are more than a figure shows; W = 1 for the one unweighted term of a run.
    r = theory.deviation(trajectory.outputs[0], chord.end, ts, jnp.stack(S), feedback=not is_straight, rtol=1e-8)
    return np.asarray(r), "predicted by (2.58) from S along the run"


def _add_spectra(dataset: Any, done: FlowRun) -> None:
    """Singular values and what the rank policy makes of them."""
    spectrum_time = ("spectrum_time", done.spectrum_times, {"long_name": "saves of which spectra are known"})
    dataset.coords["spectrum_time"] = spectrum_time
    dataset["sigma"] = (
        ("spectrum_time", "singular_value"),
        done.sigmas,
        {"long_name": "singular values of the Jacobian D", "units": "1"},
    )
    counted = rank_policy(done).effective_dimension(jnp.asarray(done.sigmas))
    about = {"long_name": "effective dimension Σ σ²/(σ²+λ)", "units": "directions"}
    dataset["effective_dimension"] = ("spectrum_time", np.asarray(counted), about)


def _add_reach_and_drift(dataset: Any, done: FlowRun) -> Missing | None:
    """How much of the velocity the parameters cannot make, and how far the Gram matrix is from that of the start."""
    problem, trajectory = done.plan.problem, done.trajectory
    if problem.num_outputs > GRAM_OUTPUTS:
        reason = f"the Gram matrix of n = {problem.num_outputs} outputs is above the {GRAM_OUTPUTS} that are diagnosed"
        dataset.attrs |= {"without_unreachable_fraction": reason, "without_kernel_drift": reason}
        return None
    many = problem.num_outputs > MANY_OUTPUTS
    saves = len(trajectory.ts)
    # Rank is lost at the end, in the last step before t = 1: that step alone, lest its loss counts for many saves.
    before_last = max(0, saves - 2)
    picked = np.union1d(_spread(saves, FEW_DIAGNOSIS_SAVES if many else DIAGNOSIS_SAVES), before_last)
    bound, policy = done.plan.flow.velocity.bind(problem, trajectory.outputs[0]), rank_policy(done)
    gram_0, reach, drift, missing = None, [], [], []
    for i in picked:
        params, x = trajectory.params_saved(int(i)), problem.flatten(trajectory.outputs[int(i)])
        u = problem.unflatten(bound(problem, trajectory.ts[int(i)], x))
        missing.append(np.asarray(geometry.unreachable_velocity(problem, params, u, policy)))
        size = float(jnp.linalg.norm(problem.flatten(u)))  # W = 1 for the one unweighted term of a run
        reach.append(float(np.linalg.norm(missing[-1])) / size if size else 0.0)
        gram = _gram(problem, params)
        gram_0 = gram if gram_0 is None else gram_0
        drift.append(float(geometry.kernel_drift(gram, gram_0)))
    about = {"long_name": "saves that are diagnosed"}
    dataset.coords["diagnosis_time"] = ("diagnosis_time", np.asarray(trajectory.ts)[picked], about)
    about = {"long_name": "unreachable fraction |u − S u|/|u| of the velocity", "units": "1"}
    dataset["unreachable_fraction"] = ("diagnosis_time", np.asarray(reach), about)
    about = {"long_name": "kernel drift |G − G₀|/|G₀|", "units": "1"}
    dataset["kernel_drift"] = ("diagnosis_time", np.asarray(drift), about)
    return Missing(np.asarray(trajectory.ts)[picked], np.stack(missing)) if len(picked) > 1 else None


@eqx.filter_jit
def _gram(problem: Problem, params: PyTree) -> Float[Array, "n n"]:
    return problem.jacobian(params).gram()


def _spread(saves: int, count: int) -> np.ndarray:
    """Indices of at most so many saves, the first and the last among them."""
    return np.unique(np.linspace(0, saves - 1, count).astype(int))


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
