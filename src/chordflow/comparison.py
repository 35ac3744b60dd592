"""Predicted against measured: what the theory says of a finished run, beside what the run did."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from chordflow import theory
from chordflow.clocks import AbstractClock, GradientTime, Interpolation
from chordflow.flows import Flow
from chordflow.losses import CrossEntropy, SquaredError
from chordflow.problem import Problem
from chordflow.trajectory import Trajectory
from chordflow.velocities import Straight, Tracking

Path = Float[np.ndarray, "T N Q"]


class Row(NamedTuple):
    """One line of the table; ``predicted`` is None where the theory has no number for the quantity."""

    quantity: str
    predicted: float | None
    measured: float


class Comparison(NamedTuple):
    """The table of one flow, and the predicted outputs (T, N, Q) it was made from, if there are any."""

    rows: list[Row]
    predicted: Path | None
    what: str


def gradient_times(flow: Flow, clock: AbstractClock | None, ts: Array, num_samples: float) -> np.ndarray:
    """Gradient-flow time s of each save; for straight and along that of the chord's clock, infinite at t = 1."""
    if not flow.velocity.is_autonomous:
        with np.errstate(divide="ignore"):
            return -num_samples * np.log1p(-np.asarray(ts))
    return np.asarray((GradientTime() if clock is None else clock).s(ts))


def clock_times(flow: Flow, clock: AbstractClock | None, ts: Array, num_samples: float) -> np.ndarray:
    """Clock time t = 1 − e^(−s/N) of each save, where the chord is at x(0) + t (y − x(0))."""
    s = gradient_times(flow, clock, ts, num_samples)
    return np.asarray(Interpolation(num_samples).t(jnp.asarray(s)))


class Chord(NamedTuple):
    """The straight line of the outputs (N, Q) from their start to the equilibrium of the loss."""

    start: Float[np.ndarray, "N Q"]
    end: Float[np.ndarray, "N Q"]

    @classmethod
    def of(cls, problem: Problem, start: Float[Array | np.ndarray, "N Q"]) -> "Chord | None":
        """That of a problem, or None where the loss has no finite equilibrium."""
        end = problem.equilibrium(jnp.asarray(start))
        return None if end is None or not np.isfinite(end).all() else cls(np.asarray(start), np.asarray(end))

    @property
    def length(self) -> float:
        """The longest way of an output, max |y − x(0)|."""
        return float(np.abs(self.end - self.start).max())

    def at(self, t: Float[np.ndarray, " T"]) -> Path:
        """Its points (T, N, Q) at clock times (2.53)."""
        return np.asarray(theory.linear_interpolation(self.start, self.end, t))

    def deviations(self, t: Float[np.ndarray, " T"], outputs: Path) -> Float[np.ndarray, " T"]:
        """Max |x − chord| at each time, in units of ``length``, which must not be 0."""
        return np.abs(outputs - self.at(t)).max(axis=(1, 2)) / self.length


class Prediction(NamedTuple):
    """Outputs (T, N, Q) that the theory predicts at the save times, its name, and whether it is a straight line."""

    outputs: Path | None
    what: str = ""
    is_chord: bool = False


def predict(problem: Problem, params: PyTree, flow: Flow, trajectory: Trajectory, s: np.ndarray) -> Prediction:
    """What the theory says the outputs of a flow do, if it says anything."""
    x0, y, ts = trajectory.outputs[0], problem.targets, trajectory.ts
    bound = flow.velocity.bind(problem, x0)
    if isinstance(bound, Tracking):
        return Prediction(np.asarray(jax.vmap(bound.path)(ts)), "the path")
    if isinstance(flow.velocity, Straight):
        given = flow.velocity.target
        goal = problem.equilibrium(x0) if given is None else jnp.asarray(given, x0.dtype)
        return Prediction(np.asarray(theory.linear_interpolation(x0, jnp.asarray(goal), ts)), "the chord (2.53)", True)
    blend = flow.filter.blend()
    if blend is None:
        return Prediction(None)
    N, times = problem.num_samples, jnp.asarray(s)
    inverts_only = not isinstance(blend.transpose, Array) and blend.transpose == 0
    if not isinstance(problem.loss, SquaredError):
        if not inverts_only:
            return Prediction(None)
        equation = "2.69" if isinstance(problem.loss, CrossEntropy) else "2.19"
        path = theory.euclidean_flow(x0, y, problem.loss, times)
        return Prediction(np.asarray(path), f"the Euclidean flow ({equation})")
    if inverts_only:
        decay = theory.exponential_decay(x0, y, times, N)
        return Prediction(np.asarray(decay), "exponential decay (2.49)", True)
    # The family's frozen counterpart: (1−τ) G₀ + τ in the place of G₀ (2.41).
    n = problem.num_outputs
    gram = blend.transpose * problem.jacobian(params).gram() + blend.damped * jnp.eye(n, dtype=x0.dtype)
    return Prediction(np.asarray(theory.frozen_kernel(x0, y, times, gram, n=N)), "the frozen kernel")


def compare(
    problem: Problem, params: PyTree, flow: Flow, trajectory: Trajectory, clock: AbstractClock | None
) -> Comparison:
    """Table of a run with ``outputs`` and ``cost`` saved, on a problem of one unweighted term.

    A quantity that the run does not determine, such as a rate where only the start was saved, has no line.
    """
    N = float(problem.num_samples)
    s = gradient_times(flow, clock, trajectory.ts, N)
    prediction = predict(problem, params, flow, trajectory, s)
    x, predicted = np.asarray(trajectory.outputs), prediction.outputs
    rows = _deviations(problem, x, clock_times(flow, clock, trajectory.ts, N), prediction)
    minimum = problem.minimum()
    excess = np.asarray(trajectory.costs) - (0.0 if minimum is None else float(minimum))
    end = None if predicted is None else float(problem.cost_at(jnp.asarray(predicted[-1])) - (minimum or 0.0))
    rows += [Row("cost at the start", None, excess[0]), Row("cost at the end", end, excess[-1])]
    if (rate := _rate(excess[0], excess[-1], s[-1])) is not None:
        expected = None if end is None else _rate(excess[0], end, s[-1])
        rows.append(Row("mean decay rate of the cost, × N", None if expected is None else expected * N, rate * N))
    if isinstance(problem.loss, CrossEntropy):
        drift = theory.hyperplane_drift(trajectory.outputs, trajectory.outputs[0])
        conserved = 0.0 if prediction.is_chord or prediction.what.startswith("the Euclidean") else None
        rows.append(Row("hyperplane drift", conserved, float(jnp.max(drift))))
    if "relative_residual_end" in trajectory.stats:
        residual = max(float(trajectory.stats[f"relative_residual_{end}"]) for end in ("start", "end"))
        if np.isfinite(residual):  # not so where the velocity is not, at the end of a run
            rows.append(Row("unreachable fraction", 0.0, residual))
    for name, quantity in (("test_accuracy", "test accuracy"), ("test_cost", "test cost")):
        if name in trajectory.saved:
            rows.append(Row(quantity, None, float(trajectory.saved[name][-1])))
    return Comparison(rows, predicted, prediction.what)


def _deviations(problem: Problem, x: Path, t: np.ndarray, prediction: Prediction) -> list[Row]:
    """Largest distances to the chord and to the prediction, relative to the longest way of an output."""
    chord = Chord.of(problem, x[0])
    size = float(np.abs(x - x[0]).max()) if chord is None else chord.length
    rows: list[Row] = []
    if size == 0:  # nothing moves, or nothing was reached: no length to compare with
        return rows
    if chord is not None:
        expected = 0.0 if prediction.is_chord else None
        if expected is None and prediction.outputs is not None:
            expected = float(chord.deviations(t, prediction.outputs).max())
        rows.append(Row("deviation from the chord", expected, float(chord.deviations(t, x).max())))
    if prediction.outputs is not None and not prediction.what.startswith("the chord"):
        measured = float(np.abs(x - prediction.outputs).max() / size)
        rows.append(Row(f"deviation from {prediction.what}", 0.0, measured))
    return rows


def _rate(start: float, end: float, s: float) -> float | None:
    """Mean rate of an exponential decay, or None where there is none: no time, an infinite one, or a cost of 0."""
    return float(np.log(start / end) / s) if 0 < s < np.inf and start > 0 and end > 0 else None


def table_lines(tables: dict[str, list[Row]]) -> list[str]:
    """The tables of several flows as aligned text, one quantity a line."""
    width = max(len(row.quantity) for rows in tables.values() for row in rows)
    lines = [f"{'flow':<18} {'quantity':<{width}} {'predicted':>11} {'measured':>11}"]
    for name, rows in tables.items():
        for i, row in enumerate(rows):
            predicted = "" if row.predicted is None else f"{row.predicted:.4g}"
            lines.append(f"{name if i == 0 else '':<18} {row.quantity:<{width}} {predicted:>11} {row.measured:>11.4g}")
    return lines


def saved_scalars(trajectory: Trajectory) -> dict[str, float]:
    """The scalar numbers of a run's statistics, as Python numbers."""
    return {name: np.asarray(value).item() for name, value in trajectory.stats.items() if jnp.ndim(value) == 0}
