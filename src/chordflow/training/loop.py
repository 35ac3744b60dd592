"""Fit: damped Gauss–Newton steps that follow the straight line in output space to higher order."""

import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from chordflow.problem import Problem, is_concrete
from chordflow.training.linearise import Aim
from chordflow.training.outcomes import FIT_RESULTS, Fit, FitState, History
from chordflow.training.spectral import Step, initial_damping, step

Scalar = Float[Array, ""]
Callback = Callable[[FitState], Any]
ROWS = 7
HOPELESS = 1e12
"""Damping above this many σ_max² moves nothing that a float64 cost could show."""


def fit(
    problem: Problem,
    params: PyTree,
    *,
    target: float | None = None,
    max_steps: int = 100,
    gradient_tol: float = 0.0,
    time_limit: float | None = None,
    alpha: float = 0.0,
    goal: Any = None,
    corrections: int = 3,
    state: FitState | None = None,
    callback: Callback | None = None,
) -> Fit:
    """Minimise C(x(θ)) + ½α|θ|² by steps along the straight line in output space.

    Each step takes one Jacobian D and one singular value decomposition of A = BᵀW^½D (B Bᵀ = the loss's Hessian, 1 for
    squared error), from which 13 dampings λ are tried. For each, v = Aᵀ(AAᵀ+λ)⁻¹r aims the outputs at the target, the
    second-order term a = −A⁺R x''[v,v] and chord corrections θ ← θ − A⁺R(x(θ) − (x + Dv)) with the same factor follow
    the straight line, and the one of least true cost is taken. A step that lowers nothing is rejected and
    the damping grows a thousandfold.

    Parameters
    ----------
    problem, params
        What is trained and where it starts. float64 is recommended: the last digits of the cost are what is fitted.
    target
        Stop once C − C_min, with the penalty, is at or below this (C where there is no closed-form minimum).
    max_steps
        Bound on steps, rejected ones counted, those of ``state`` included.
    gradient_tol
        Stop once |∇C| in the singular basis falls to this.
    time_limit
        Seconds; looked at after each step. Not under jit, where there is no clock.
    alpha
        α ≥ 0 of the penalty ½α|θ|², solved in closed form.
    goal
        Outputs-like: aim there in the metric of squared error instead of along the loss's Gauss–Newton direction, for
        instance ``problem.equilibrium(problem.outputs(params))``. The cost still decides what is accepted.
    corrections
        Chord corrections per candidate, one forward pass each.
    state
        ``fit.state`` of an earlier fit: goes on exactly where it stopped.
    callback
        Called with the :class:`FitState` after each step; an exception ends the fit. Not under jit.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        A mistake in the arguments, in one line.

    Notes
    -----
    Work per step: one dense Jacobian, 4 min(n, K)² max(n, K) for the decomposition, and 13 (3 + corrections) forward
    passes. Works under jit, and under vmap over params; histories then keep ``max_steps`` rows.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, chordflow as cf
    >>> jax.config.update("jax_enable_x64", True)
    >>> z = jnp.linspace(0, 1, 8)[:, None]
    >>> problem = cf.Problem(lambda p, z: p[0] * jnp.exp(-p[1] * z), z, 2 * jnp.exp(-3 * z))
    >>> fit = cf.fit(problem, jnp.array([1.0, 1.0]), target=1e-24)
    >>> fit.result_name, [round(float(p), 6) for p in fit.params]
    ('target_reached', [2.0, 3.0])
    """
    _check(max_steps=max_steps, corrections=corrections)
    for name, value in (("target", target), ("time_limit", time_limit)):
        if value is not None and not value > 0:
            raise ValueError(f"fit: {name} must be positive or None, got {value!r}")
    if not alpha >= 0:
        raise ValueError(f"fit: alpha must be non-negative, got {alpha!r}")
    theta, _ = problem.ravel(params)
    concrete = is_concrete(problem, params)
    if concrete:
        problem.check(params)
    flat_goal = None if goal is None else _flat_goal(problem, goal)
    aim = Aim(problem, params, flat_goal, jnp.asarray(alpha, theta.dtype))
    if state is None:
        cost = _cost(aim, theta)
        state = FitState(theta, cost, initial_damping(aim, theta), jnp.asarray(0))
    order = _order(aim, theta)
    limits = _Limits(
        jnp.asarray(-jnp.inf if target is None else target, theta.dtype), jnp.asarray(gradient_tol, theta.dtype)
    )
    if concrete:
        run = _run_on_host(aim, state, limits, max_steps, order, corrections, time_limit, callback)
    else:
        run = _run_traced(aim, state, limits, max_steps, order, corrections)
    state, result, rows = run
    return Fit(aim.full(state.theta), state.cost, History(*rows.T), result, state, order)


def _flat_goal(problem: Problem, goal: Any) -> Array:
    got, expected = jax.tree.map(jnp.shape, goal), jax.tree.map(jnp.shape, problem.targets)
    if got != expected:
        raise ValueError(f"fit: goal must be like the outputs, got {got}, expected {expected}")
    return problem.flatten(goal)


class _Limits(eqx.Module):
    target: Scalar
    gradient: Scalar


@eqx.filter_jit
def _cost(aim: Aim, theta: Array) -> Scalar:
    return aim.cost(aim.outputs(theta), theta)


def _order(aim: Aim, theta: Array) -> int:
    """2, or 1 for models with only a reverse rule (custom_vjp), which have no second directional derivative."""

    def bend(theta: Array) -> Array:
        return jax.jvp(lambda th: jax.jvp(aim.outputs, (th,), (theta,))[1], (theta,), (theta,))[1]

    try:
        jax.eval_shape(bend, theta)
    # TypeError from one forward pass through custom_vjp, NotImplementedError from two.
    except (TypeError, NotImplementedError) as error:
        if not any(name in str(error) for name in ("custom_vjp", "custom_lin")):
            raise
        return 1
    return 2


@eqx.filter_jit
def _advance(
    aim: Aim, state: FitState, limits: _Limits, order: int, corrections: int
) -> tuple[FitState, FIT_RESULTS, Array]:
    """One step: new state, result code (running if it goes on), history row without seconds."""
    taken = step(aim, state.theta, state.cost, state.lam, order=order, corrections=corrections)
    row = jnp.stack(
        [
            taken.cost,
            taken.lam,
            taken.gain,
            taken.effective_dimension,
            taken.unreachable_fraction,
            taken.accepted.astype(taken.cost.dtype),
        ]
    )
    next_state = FitState(taken.theta, taken.cost, taken.lam, state.num_steps + 1)
    return next_state, _judge(aim, taken, limits), row


def _judge(aim: Aim, taken: Step, limits: _Limits) -> FIT_RESULTS:
    minimum = aim.problem.minimum()
    excess = taken.cost if minimum is None else taken.cost - minimum
    result = FIT_RESULTS.running
    hopeless = ~taken.accepted & (taken.lam > HOPELESS * taken.scale)
    result = FIT_RESULTS.where(hopeless, FIT_RESULTS.no_progress, result)
    result = FIT_RESULTS.where(taken.gradient_norm <= limits.gradient, FIT_RESULTS.gradient_small, result)
    result = FIT_RESULTS.where(~jnp.isfinite(taken.gradient_norm), FIT_RESULTS.not_finite, result)
    return FIT_RESULTS.where(excess <= limits.target, FIT_RESULTS.target_reached, result)


def _run_on_host(
    aim: Aim,
    state: FitState,
    limits: _Limits,
    max_steps: int,
    order: int,
    corrections: int,
    time_limit: float | None,
    callback: Callback | None,
) -> tuple[FitState, FIT_RESULTS, Array]:
    start, rows, result = time.perf_counter(), [], FIT_RESULTS.running
    while int(state.num_steps) < max_steps and bool(result == FIT_RESULTS.running):
        state, result, row = _advance(aim, state, limits, order, corrections)
        seconds = time.perf_counter() - start
        rows.append(np.append(np.asarray(row), seconds))
        if callback is not None:
            callback(state)
        if time_limit is not None and seconds > time_limit and bool(result == FIT_RESULTS.running):
            result = FIT_RESULTS.time_limit
    if bool(result == FIT_RESULTS.running):
        result = FIT_RESULTS.step_limit
    return state, result, jnp.asarray(np.array(rows).reshape(-1, ROWS), state.theta.dtype)


def _run_traced(
    aim: Aim, state: FitState, limits: _Limits, max_steps: int, order: int, corrections: int
) -> tuple[FitState, FIT_RESULTS, Array]:
    first = state.num_steps
    rows = jnp.full((max_steps, ROWS), jnp.nan, state.theta.dtype)

    def unfinished(carry: Any) -> Array:
        state, result, _ = carry
        return (state.num_steps < max_steps) & (result == FIT_RESULTS.running)

    def body(carry: Any) -> Any:
        state, _, rows = carry
        index = state.num_steps - first
        state, result, row = _advance(aim, state, limits, order, corrections)
        return state, result, rows.at[index, : ROWS - 1].set(row)

    state, result, rows = jax.lax.while_loop(unfinished, body, (state, FIT_RESULTS.running, rows))
    result = FIT_RESULTS.where(result == FIT_RESULTS.running, FIT_RESULTS.step_limit, result)
    return state, result, rows


def _check(**counts: Any) -> None:
    for name, value in counts.items():
        least = 1 if name == "max_steps" else 0
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
            raise ValueError(f"fit: {name} must be an integer of at least {least}, got {value!r}")
