"""Predicted against measured: what the theory says of a finished run, beside what the run did."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from chordflow import theory
from chordflow.clocks import AbstractClock, GradientTime, Interpolation
from chordflow.flows import Flow
from chordflow.losses import CrossEntropy, SquaredError
from chordflow.problem import Problem
from chordflow.trajectory import Trajectory
from chordflow.velocities import Straight

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
    """Gradient-flow time s of each save, infinite at t = 1 of a straight flow."""
    if isinstance(flow.velocity, Straight):
        with np.errstate(divide="ignore"):
            return -num_samples * np.log1p(-np.asarray(ts))
    return np.asarray((GradientTime() if clock is None else clock).s(ts))


def predict(
    problem: Problem, params: PyTree, flow: Flow, trajectory: Trajectory, s: np.ndarray
) -> tuple[Path | None, str]:
    """Outputs (T, N, Q) that the theory predicts at the save times, and what the prediction is called."""
    x0, y = trajectory.outputs[0], problem.targets
    if isinstance(flow.velocity, Straight):
        given = flow.velocity.target
        goal = problem.equilibrium(x0) if given is None else jnp.asarray(given, x0.dtype)
        return np.asarray(theory.linear_interpolation(x0, jnp.asarray(goal), trajectory.ts)), "the chord (2.53)"
    blend = flow.filter.blend()
    N = problem.num_samples
    if blend is None:
        return None, ""
    inverts_only = not isinstance(blend.transpose, Array) and blend.transpose == 0
    if isinstance(problem.loss, CrossEntropy):
        if not inverts_only:
            return None, ""
        return np.asarray(theory.euclidean_flow(x0, y, problem.loss, jnp.asarray(s))), "the Euclidean flow (2.69)"
    if not isinstance(problem.loss, SquaredError):
        return None, ""
    if inverts_only:
        return np.asarray(theory.exponential_decay(x0, y, jnp.asarray(s), N)), "exponential decay (2.49)"
    # The family's frozen counterpart: (1−τ) G₀ + τ in the place of G₀ (2.41).
    n = problem.num_outputs
    gram = blend.transpose * problem.jacobian(params).gram() + blend.damped * jnp.eye(n, dtype=x0.dtype)
    return np.asarray(theory.frozen_kernel(x0, y, jnp.asarray(s), gram, n=N)), "the frozen kernel"


def compare(
    problem: Problem, params: PyTree, flow: Flow, trajectory: Trajectory, clock: AbstractClock | None
) -> Comparison:
    """Table of a finished run with ``outputs`` and ``cost`` saved, on a problem of one unweighted term."""
    N = float(problem.num_samples)
    s = gradient_times(flow, clock, trajectory.ts, N)
    predicted, what = predict(problem, params, flow, trajectory, s)
    x, costs = np.asarray(trajectory.outputs), np.asarray(trajectory.costs)
    minimum = problem.minimum()
    floor = 0.0 if minimum is None else float(minimum)
    goal = problem.equilibrium(trajectory.outputs[0])
    rows: list[Row] = []
    if goal is not None and np.isfinite(goal).all():
        chord = theory.linear_interpolation(trajectory.outputs[0], goal, Interpolation(N).t(jnp.asarray(s)))
        size = np.abs(np.asarray(goal) - x[0]).max()
        expected = 0.0 if what.startswith(("the chord", "exponential")) else None
        rows.append(Row("deviation from the chord", expected, float(np.abs(x - chord).max() / size)))
    else:
        size = np.abs(x - x[0]).max()
    if predicted is not None and not what.startswith("the chord"):
        rows.append(Row(f"deviation from {what}", 0.0, float(np.abs(x - predicted).max() / size)))
    end = None if predicted is None else float(problem.cost_at(jnp.asarray(predicted[-1]))) - floor
    rows += [Row("cost at the start", None, costs[0] - floor), Row("cost at the end", end, costs[-1] - floor)]
    if np.isfinite(s[-1]):
        rate = None if not end or end <= 0 else float(np.log((costs[0] - floor) / end) / s[-1])
        rows.append(Row("mean decay rate of the cost, × N", rate and rate * N, _rate(costs - floor, s[-1]) * N))
    if isinstance(problem.loss, CrossEntropy):
        drift = theory.hyperplane_drift(trajectory.outputs, trajectory.outputs[0])
        conserved = 0.0 if what.startswith(("the chord", "the Euclidean")) else None
        rows.append(Row("hyperplane drift", conserved, float(jnp.max(drift))))
    if "relative_residual_end" in trajectory.stats:
        residual = max(float(trajectory.stats[f"relative_residual_{end}"]) for end in ("start", "end"))
        rows.append(Row("unreachable fraction", 0.0, residual))
    if "test_accuracy" in trajectory.saved:
        rows.append(Row("test accuracy", None, float(trajectory.saved["test_accuracy"][-1])))
    if "test_cost" in trajectory.saved:
        rows.append(Row("test cost", None, float(trajectory.saved["test_cost"][-1])))
    return Comparison(rows, predicted, what)


def _rate(excess: np.ndarray, s: float) -> float:
    return float(np.log(excess[0] / excess[-1]) / s) if excess[-1] > 0 else float("inf")


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
