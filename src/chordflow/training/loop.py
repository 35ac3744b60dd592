"""Fit: damped Gauss–Newton steps that follow the straight line in output space to higher order."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from chordflow.bounds import require_within
from chordflow.kernel.trace import has_forward_rule
from chordflow.memory import available_memory
from chordflow.problem import Problem, is_concrete
from chordflow.solve import SVD, AbstractMethod, Cholesky, Iterative
from chordflow.training.drive import Callback, Limits, run_on_host, run_traced
from chordflow.training.linearise import Aim
from chordflow.training.outcomes import Fit, FitState, History
from chordflow.training.step import Rule

CHEAP_SIDE = 1000
"""min(n, K) up to which a Cholesky factor costs less than what is done with it."""
SPECTRAL_WORK = 2e8
"""min(n,K)² max(n,K) up to which a singular value decomposition takes a tenth of a second or less."""
CHOLESKY_SIDE = 8000
"""min(n,K) up to which a Cholesky factorisation takes some seconds and three matrices 1.5 GB."""


def fit(
    problem: Problem,
    params: PyTree,
    *,
    target: float | Array | None = None,
    max_steps: int = 100,
    gradient_tol: float | Array = 0.0,
    time_limit: float | None = None,
    alpha: float | Array = 0.0,
    goal: Any = None,
    fraction: float | Array = 1.0,
    linear_solver: AbstractMethod | None = None,
    damping: float | Array = 1e-2,
    order: int | None = None,
    corrections: int | None = None,
    reuses: int | None = None,
    key: Array | None = None,
    state: FitState | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Fit:
    """Minimise C(x(θ)) + ½α|θ|² by steps along the straight line in output space.

    Each step takes one decomposition of A = BᵀW^½D (B Bᵀ = the loss's Hessian, 1 for squared error) and tries dampings
    λ. v = Aᵀ(AAᵀ+λ)⁻¹r aims the outputs at the target; the second-order term a = −A⁺R x″[v,v] and chord corrections
    θ ← θ − A⁺R(x(θ) − (x + Dv)) with the same factor follow the straight line. From where that ends the same
    decomposition aims again. What lowers the true cost is taken, else the damping grows and the step is tried
    again without a new Jacobian.

    Parameters
    ----------
    problem, params
        What is trained and where it starts. Terms with drawn samples are drawn anew for each step.
    target
        Stop once C − C_min, with the penalty, is at or below this (C where there is no closed-form minimum).
    max_steps
        Bound on steps, rejected ones counted, those of ``state`` included.
    gradient_tol
        Stop once |∇_θ(C + ½α|θ|²)| falls to this; with ``goal`` the gradient of the distance to it.
    time_limit
        Seconds; looked at after each step. Refused under jit, where there is no clock.
    alpha
        α ≥ 0 of the penalty ½α|θ|², solved in closed form.
    goal
        Outputs-like: aim there in the metric of squared error instead of along the loss's Gauss–Newton direction.
        ``"equilibrium"`` is where the Euclidean flow of the loss ends from x(0): the labels, or for cross-entropy
        log y + c (2.89–2.104), which needs positive labels. Candidates are compared by their distance to it; the cost
        still decides what is accepted.
    fraction
        f in (0, 1]: each step aims only this part of the way, x + f (target − x). After k steps that were followed
        well, with reuses=0 or not, 1 − t = (1 − f)ᵏ of the straight line is left: small f samples it, for early
        stopping. Losses without a residual (cross-entropy) have steps f times as long instead.
    linear_solver
        ``cf.solve.SVD()``: 13 dampings by true cost from one spectrum; sees σ down to machine epsilon.
        ``cf.solve.Cholesky()``: the smaller of AAᵀ (by the Gram engine) and AᵀA, one damping led by the gain ratio.
        ``cf.solve.Iterative()``: products only. None chooses by n, K and memory; ``fit.method`` says which.
    damping
        λ of the first step, relative to σ_max² (with ``Cholesky`` to Σσ²). From 1 on, with ``Cholesky``, the steps are
        those of implicit gradient flow with ever longer times, 1/λ: large singular values first, a path for early
        stopping.
    order
        Taylor terms of the curve θ + tv + t²a/2 + t³b/6 …, each one solve and twice the forward passes of the one
        before. None: 2, or 1 where the model has no forward derivative (custom_vjp); ``fit.order`` says which.
        Chord corrections do more for less. Poisson 2-D, seeds 0–9, median L² error after 100 steps, seconds of all:
        7.3e-7 in 28 s with 2 and 4.1e-7 in 38 s with 3 without corrections and reuses, 1.4e-7 and 1.1e-7 with them.
    corrections
        Chord corrections per candidate, one forward pass and one solve each. None: 3 where the decomposition is
        the larger part of a step, with an SVD or min(n, K) > 1000, else 2.
    reuses
        How often a step aims anew with the decomposition it has (Shamanskii's method). None: 2 and 0 in the same cases.
        Poisson 2-D, seeds 0–29, L² error after 100 steps, median and worst: 2.1e-7 and 1.3e-6 with one, 1.2e-7 and
        8.3e-7 with two; diabetes, n = 442, seconds to 1e-6: 0.14 with none, 0.22 with two.
    key
        ``jax.random.key`` for drawn samples; key(0) by default.
    state
        ``fit.state`` of an earlier fit: goes on exactly where it stopped.
    callback
        Called with the :class:`FitState` after each step; returning something true ends the fit. Refused under jit.
    progress
        Whether to show a bar with steps and cost. Refused under jit.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        A mistake in the arguments, in one line; float32 parameters without ``target`` or ``gradient_tol``.
    MemoryError
        What ``linear_solver`` was asked for does not fit.

    Notes
    -----
    Work per step with an SVD: one dense Jacobian, 4 min(n, K)² max(n, K) for the decomposition, and
    13 (1 + reuses)(3 + corrections) forward passes; with Cholesky: one Gram matrix, min(n, K)³/3 per try. Works under
    jit, and under vmap over params; histories then keep ``max_steps`` rows.

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
    _check_counts(max_steps, order, corrections, reuses)
    _check_limits(target, time_limit, gradient_tol, alpha, damping, fraction)
    _check_kinds(problem, callback, key, state)
    theta, _ = problem.ravel(params)
    if theta.dtype != jnp.float64 and target is None and gradient_tol == 0:
        raise ValueError(
            f"fit: {theta.dtype} parameters need float64, jax.config.update('jax_enable_x64', True) at the start, "
            "or a target (or gradient_tol) that float32 can reach"
        )
    concrete = is_concrete(problem, params, target, gradient_tol, alpha, fraction, damping, goal, key, state)
    if concrete:
        problem.check(params, num=2)
    else:
        _refuse_host_options(time_limit=time_limit, callback=callback, progress=progress or None)
    penalty = None if isinstance(alpha, (int, float)) and alpha == 0 else jnp.asarray(alpha, theta.dtype)
    flat_goal = None if goal is None else _flat_goal(problem, params, goal)
    aims_part = not (isinstance(fraction, (int, float)) and fraction == 1)
    aim = Aim(problem, params, flat_goal, penalty, jnp.asarray(fraction, theta.dtype), aims_part)
    rule = _rule(aim, theta, linear_solver, order, corrections, reuses)
    state = _first_state(theta, key) if state is None else _resumed(aim, theta, state, key)
    limits = Limits(
        jnp.asarray(-jnp.inf if target is None else target, theta.dtype),
        jnp.asarray(gradient_tol, theta.dtype),
        jnp.asarray(max_steps, int),
        jnp.asarray(damping, theta.dtype),
    )
    if concrete:
        state, result, rows = run_on_host(aim, rule, state, limits, time_limit, callback, show=progress)
    else:
        state, result, rows = run_traced(aim, rule, state, limits, max_steps)
    history = History(*(jax.device_put(column) for column in rows.T))
    return Fit(aim.full(state.theta), state.cost, history, result, state, rule.order, rule.method)


def _rule(
    aim: Aim,
    theta: Array,
    linear_solver: AbstractMethod | None,
    order: int | None,
    corrections: int | None,
    reuses: int | None,
) -> Rule:
    """The method, and how far it follows the line, where the caller left that open."""
    n, K = aim.problem.num_outputs, theta.size
    method = default_solver(aim.problem, K) if linear_solver is None else linear_solver
    if not isinstance(method, AbstractMethod):
        raise ValueError(f"fit: linear_solver must be of cf.solve, such as cf.solve.SVD(), got {linear_solver!r}")
    # Models with only a reverse rule (custom_vjp) have no second directional derivative.
    bends = _has_forward_rule(aim, theta)
    if order is None:
        order = 2 if bends else 1
    elif order > 1 and not bends:
        raise ValueError(f"fit: order = {order} needs a forward derivative, the model has only a custom_vjp: order=1")
    decomposing_dominates = isinstance(method, SVD) or (isinstance(method, Cholesky) and min(n, K) > CHEAP_SIDE)
    corrections = (3 if decomposing_dominates else 2) if corrections is None else corrections
    reuses = (2 if decomposing_dominates else 0) if reuses is None else reuses
    return Rule(method, order, corrections, reuses)


@eqx.filter_jit
def _has_forward_rule(aim: Aim, theta: Array) -> bool:
    """Compiled for its cache: answering means tracing, 20 ms that a second fit of the same shapes need not spend."""
    return has_forward_rule(aim.outputs, theta)


def _first_state(theta: Array, key: Array | None) -> FitState:
    cost, lam = jnp.asarray(jnp.inf, theta.dtype), jnp.asarray(jnp.nan, theta.dtype)
    none = jnp.zeros((), int)
    return FitState(theta, cost, lam, none, none, jax.random.key(0) if key is None else key)


def _resumed(aim: Aim, theta: Array, state: FitState, key: Array | None) -> FitState:
    """The given state; its cost is forgotten where it is not the cost of this problem to rounding."""
    if key is not None:
        raise ValueError("fit: give key or state, not both: a state carries its own key")
    if state.theta.shape != theta.shape:
        raise ValueError(f"fit: state has {state.theta.size} trainable parameters, these params have {theta.size}")
    x = aim.outputs(state.theta)
    cost = aim.cost(x, state.theta)
    # Outputs are exact to rounding, and so is the root of the cost; the cost itself may be rounding altogether.
    rounding = 1e3 * jnp.finfo(theta.dtype).eps * jnp.sqrt(jnp.mean(x**2))
    roots = (jnp.sqrt(jnp.maximum(value, 0)) for value in (state.cost, cost))
    by_root = (state.cost >= 0) & (cost >= 0) & (jnp.abs(jnp.subtract(*roots)) <= rounding)
    same = by_root | (jnp.abs(state.cost - cost) <= 1e-6 * jnp.abs(cost))
    return eqx.tree_at(lambda state: state.cost, state, jnp.where(same, state.cost, jnp.inf))


def default_solver(problem: Problem, K: int) -> AbstractMethod:
    """The most exact decomposition that n, K and the memory afford."""
    n = problem.num_outputs
    small, large = sorted((n, K))
    available = available_memory()

    def fits(numbers: int) -> bool:
        return available is None or numbers * problem.terms[0].targets.dtype.itemsize <= available / 2

    # A, U, Vᵀ and the workspace of LAPACK; parameters and outputs of 13 candidates.
    if small**2 * large <= SPECTRAL_WORK and fits(4 * n * K + 13 * 4 * (n + K)):
        return SVD()
    # AAᵀ needs no Jacobian, AᵀA does; three matrices: the Gram matrix, the damped one and its factor.
    if small <= CHOLESKY_SIDE and fits(3 * small**2 + (0 if n <= K else n * K)):
        return Cholesky()
    return Iterative()


def _flat_goal(problem: Problem, params: PyTree, goal: Any) -> Array:
    if isinstance(goal, str):
        if goal != "equilibrium":
            raise ValueError(f'fit: goal must be outputs or "equilibrium", got {goal!r}')
        goal = problem.equilibrium(problem.outputs(params))
        if goal is None:
            raise ValueError(
                f"fit: {type(problem.loss).__name__} has no equilibrium in closed form: give goal as outputs"
            )
    got, expected = jax.tree.map(jnp.shape, goal), jax.tree.map(jnp.shape, problem.targets)
    if got != expected:
        raise ValueError(f"fit: goal must be like the outputs, got {got}, expected {expected}")
    if problem.is_drawn:
        raise ValueError("fit: a goal in output space belongs to fixed samples, this problem draws its samples anew")
    flat = problem.flatten(goal)
    if is_concrete(flat) and not bool(jnp.all(jnp.isfinite(flat))):
        raise ValueError("fit: goal is not finite (one-hot labels have no equilibrium: smooth them), or leave it out")
    return flat


def _check_counts(max_steps: Any, order: Any, corrections: Any, reuses: Any) -> None:
    counts = [("max_steps", max_steps, 1)]
    open_ones = (("order", order, 1), ("corrections", corrections, 0), ("reuses", reuses, 0))
    for name, value, least in counts + [count for count in open_ones if count[1] is not None]:
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
            raise ValueError(f"fit: {name} must be an integer of at least {least}, got {value!r}")


def _check_limits(target: Any, time_limit: Any, gradient_tol: Any, alpha: Any, damping: Any, fraction: Any) -> None:
    if isinstance(target, str):
        raise ValueError(f"fit: target is a cost to stop at, got {target!r}: outputs to aim at are given as goal")
    for name, value in (("target", target), ("time_limit", time_limit)):
        if value is not None:
            require_within("fit", name, value, 0.0, open_left=True)
    require_within("fit", "alpha", alpha, 0.0)
    require_within("fit", "damping", damping, 0.0, open_left=True)
    require_within("fit", "gradient_tol", gradient_tol, 0.0)
    require_within("fit", "fraction", fraction, 0.0, 1.0, open_left=True)


def _check_kinds(problem: Any, callback: Any, key: Any, state: Any) -> None:
    if not isinstance(problem, Problem):
        raise ValueError(f"fit: the first argument must be a cf.Problem, got {type(problem).__name__}")
    if callback is not None and not callable(callback):
        raise ValueError(f"fit: callback must be a function of the state of the fit, got {callback!r}")
    if key is not None and not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise ValueError(f"fit: key must be a jax.random.key, got {key!r}")
    if state is not None and not isinstance(state, FitState):
        raise ValueError(f"fit: state must be the state of an earlier fit, got {type(state).__name__}")


def _refuse_host_options(**options: Any) -> None:
    """Under a transformation there is no clock and nobody to call."""
    if given := [name for name, value in options.items() if value is not None]:
        raise ValueError(f"fit: {' and '.join(given)} cannot work under jit or vmap: leave out, or fit without them")
