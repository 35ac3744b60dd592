"""Statements about flows of squared error (Section 2.2): the network's runs against closed forms in output space."""

import itertools
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from chordflow import theory
from chordflow.clocks import Interpolation
from chordflow.trajectory import Trajectory
from chordflow.verification.evidence import EPS, Evidence, Matrix, Vector, outputs_of
from chordflow.verification.hypotheses import completed, full_rank_along, moves, smooth, squared_error
from chordflow.verification.registry import Finding, statement

NUM_NODES, DEPTH = 12, 8
"""Gauss–Legendre nodes of the integral form of (2.57), half of them to estimate its error, and how often to bisect."""


def _compare_paths(e: Evidence, run: Trajectory, predicted: Matrix) -> Finding:
    """Paths (T, n), in units of the chord |x(0) − y|; the numbers shown are distances from the labels at the end."""
    scale = float(np.linalg.norm(e.start - e.target))
    measured = e.path(run)
    tolerance, reason = e.run_tolerance(run, scale)
    error = float(np.max(np.linalg.norm(measured - predicted, axis=1))) / scale
    left = [float(np.linalg.norm(path[-1] - e.target)) for path in (predicted, measured)]
    return Finding(left[0], left[1], error, tolerance, reason)


@statement(
    "adapted flow: x(s) = y + e^(−s/N)(x(0) − y)",
    "2.48–2.49",
    squared_error,
    moves,
    smooth,
    full_rank_along("descent_run"),
)
def exponential_decay(e: Evidence) -> Finding:
    """Outputs and costs of the run to s = N."""
    run = e.descent_run
    found = _compare_paths(e, run, np.asarray(theory.exponential_decay(e.start, e.target, run.ts, e.num_samples)))
    costs = np.asarray(run.costs)
    cost_error = float(np.max(np.abs(costs / costs[0] - np.exp(-2 * np.asarray(run.ts) / e.num_samples))))
    # C/C₀ is the square of a relative distance, below 1: twice its error.
    return Finding(found.predicted, found.measured, max(found.error, cost_error / 2), found.tolerance, found.reason)


@statement("clock: s(t) = −N ln(1 − t), ds/dt = N/(1 − t)", "2.50–2.53", squared_error)
def clock(e: Evidence) -> Finding:
    """NumPy's logarithm against the library's clock, its derivative, and its inverse."""
    t = np.linspace(0.05, 0.95, 19)
    library = Interpolation(float(e.problem.num_samples))
    s = np.asarray(library.s(jnp.asarray(t)))
    errors = (
        s / (-e.num_samples * np.log(1 - t)) - 1,
        np.asarray(library.derivative(jnp.asarray(t))) / (e.num_samples / (1 - t)) - 1,
        np.asarray(library.t(jnp.asarray(-e.num_samples * np.log(1 - t)))) / t - 1,
    )
    error = float(np.max(np.abs(errors)))
    return Finding(float(-e.num_samples * np.log(0.05)), float(s[-1]), error, 1000 * EPS, "1000 machine epsilons")


@statement(
    "adapted flow on the clock t: x(t) = (1−t) x(0) + t y",
    "2.53–2.56",
    squared_error,
    moves,
    smooth,
    full_rank_along("clock_run"),
)
def linear_interpolation(e: Evidence) -> Finding:
    """The run on the library's clock, read at its gradient times s and mapped to t with the N of the evidence."""
    run = e.clock_run
    s = np.asarray(Interpolation(float(e.problem.num_samples)).s(run.ts))
    t = -np.expm1(-s / e.num_samples)
    return _compare_paths(e, run, np.asarray(theory.linear_interpolation(e.start, e.target, t)))


@statement(
    "a global minimum is reached at t = 1 on a straight line",
    "Proposition 2.4",
    squared_error,
    moves,
    smooth,
    full_rank_along("chord_run"),
)
def global_minimum(e: Evidence) -> Finding:
    """The straight flow, regular up to t = 1, against the chord and the cost 0 at its end."""
    run = e.chord_run
    found = _compare_paths(e, run, np.asarray(theory.linear_interpolation(e.start, e.target, run.ts)))
    costs = np.asarray(run.costs)
    error = max(found.error, float(np.sqrt(costs[-1] / costs[0])))
    return Finding(0.0, float(costs[-1]), error, found.tolerance, found.reason)


@statement(
    "constrained flow on the clock: x' = −S(x − y)/(1−t)",
    "2.57",
    squared_error,
    moves,
    smooth,
    completed("clock_run"),
)
def constrained_flow(e: Evidence) -> Finding:
    """Its integral over each interval between saves, by Gauss–Legendre quadrature with S from D along the run.

    In σ = −ln(1−t) it reads dx/dσ = −S(x − y), which is regular.
    """
    run, transfer = e.clock_run, eqx.filter_jit(e.transfer)
    scale = float(np.linalg.norm(e.start - e.target))

    def field(sigma: float) -> Vector:
        t = jnp.asarray(-np.expm1(-sigma))
        x = e.problem.flatten(outputs_of(e.problem, run.params_at(t)))
        S = np.asarray(transfer(t))[np.ix_(e.kept, e.kept)]
        return -S @ (e.seen(x) - e.target)

    pieces = [_integral(field, a, b, e.rtol * scale) for a, b in itertools.pairwise(-np.log1p(-np.asarray(run.ts)))]
    predicted, measured = np.stack([piece for piece, _ in pieces]), np.diff(e.path(run), axis=0)
    quadrature = max(error for _, error in pieces) / scale
    tolerance, reason = e.run_tolerance(run, scale, damped=False)
    error = float(np.max(np.linalg.norm(measured - predicted, axis=1))) / scale
    sizes = [float(np.linalg.norm(np.sum(steps, axis=0))) for steps in (predicted, measured)]
    return Finding(sizes[0], sizes[1], error, tolerance + quadrature, f"{reason}, quadrature {quadrature:.1g}")


def _integral(
    field: Callable[[float], Vector], start: float, end: float, goal: float, depth: int = DEPTH
) -> tuple[Vector, float]:
    """Adaptive Gauss–Legendre quadrature, and the difference of two rules as its error."""
    fine, coarse = (_gauss(field, start, end, nodes) for nodes in (NUM_NODES, NUM_NODES // 2))
    error = float(np.linalg.norm(fine - coarse))
    if error <= goal or depth == 0:
        return fine, error
    middle = 0.5 * (start + end)
    (left, left_error), (right, right_error) = (
        _integral(field, a, b, goal, depth - 1) for a, b in ((start, middle), (middle, end))
    )
    return left + right, left_error + right_error


def _gauss(field: Callable[[float], Vector], start: float, end: float, nodes: int) -> Vector:
    abscissae, weights = np.polynomial.legendre.leggauss(nodes)
    half = 0.5 * (end - start)
    values = np.stack([field(float(half * (node + 1) + start)) for node in abscissae])
    return half * weights @ values


@statement(
    "deviation from the chord: r(t) = ∫ U(t,t')(1 − S)(x(0) − y) dt'",
    "2.58–2.63",
    squared_error,
    moves,
    smooth,
    completed("clock_run"),
)
def deviation_integral(e: Evidence) -> Finding:
    """The integral with S from D along the run against the distance of the run from the chord; 0 where S = 1."""
    run = e.clock_run
    chord = e.start - e.target
    scale = float(np.linalg.norm(chord))
    measured = e.path(run) - np.asarray(theory.linear_interpolation(e.start, e.target, run.ts))
    tolerance, reason = e.run_tolerance(run, scale, damped=False)
    predicted = np.zeros_like(measured)
    # Hundreds of decompositions of D, for nothing where (1 − S)(x(0) − y) vanishes.
    transfer = eqx.filter_jit(e.transfer)
    missing = max(float(np.linalg.norm(chord - (np.asarray(transfer(t)) @ e.all(chord))[e.kept])) for t in run.ts)
    if missing > e.rtol * scale:
        x, y = e.all(e.start), e.all(e.target)
        predicted[1:] = np.asarray(theory.deviation(x, y, run.ts[1:], e.transfer, rtol=e.rtol))[:, e.kept]
    error = float(np.max(np.linalg.norm(measured - predicted, axis=1))) / scale
    sizes = [float(np.linalg.norm(path[-1])) / scale for path in (predicted, measured)]
    return Finding(sizes[0], sizes[1], error, tolerance, reason)
