"""Integrate a flow with diffrax: saves, events, dense output, result codes."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from chordflow import clocks, progress_bar
from chordflow.arguments import (
    Save,
    end_time,
    event_tuple,
    positive_int,
    require_kind,
    require_times_within,
    run_clock,
    save_table,
    save_times,
    tolerances,
)
from chordflow.events import AbstractEvent, VelocityUnreachable, first_event
from chordflow.filters import AbstractFilter
from chordflow.flows import Flow
from chordflow.memory import require_memory
from chordflow.problem import Problem, is_concrete
from chordflow.results import RESULTS, FlowError, from_diffrax, is_okay
from chordflow.solve import SVD, AbstractMethod, Cholesky, RankPolicy, default_method
from chordflow.system import GuardedController, Scalar, System, at_start, gains, prepare, smallest_step
from chordflow.trajectory import Trajectory, trim


def evolve(
    problem: Problem,
    params: PyTree,
    flow: Flow,
    *,
    t1: float | Scalar | None = None,
    ts: Any = None,
    clock: clocks.AbstractClock | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    solver: diffrax.AbstractSolver | None = None,
    linear_solver: AbstractMethod | None = None,
    save: Save = ("outputs", "cost"),
    events: Sequence[AbstractEvent] = (),
    max_steps: int = 4096,
    dense: bool = False,
    progress: bool = False,
    throw: bool = True,
) -> Trajectory:
    """Integrate θ' = Σᵢ φ(σᵢ) vᵢ uᵢᵀ(W^½u(t, x)) from ``params``.

    Parameters
    ----------
    problem, params
        What is trained and where it starts.
    flow
        A pair of velocity and filter: ``standard()``, ``adapted()``, ``interpolated(tau)``, ``straight()``,
        ``along(path)`` or a :class:`chordflow.Flow`.
    t1
        End, in the flow's own variable: s of (2.3) and (2.26) for descent flows (required, or the last of ``ts``),
        t in [0, 1] for straight and along (1 by default); with a clock, the clock's variable. Runs start at 0.
    ts
        Save times (T,), increasing, within [0, t1]. None saves the start, each accepted step and the end.
    clock
        ``cf.clocks.Interpolation(n)`` or ``cf.clocks.Log()``: moves a descent flow to the clock's variable.
    rtol, atol
        Tolerances on the parameters per step, relative and absolute (in the units of the parameters); 1e-7 and 1e-2
        rtol by default, which needs float64. float32 parameters need rtol given; atol is then 1.2e-6 at least.
    solver
        A diffrax solver; Dopri5 by default. Implicit ones pay off for the standard flow with K up to about 500.
    linear_solver
        ``cf.solve.Cholesky()`` or ``cf.solve.SVD()``; chosen by the filter and the size of D if None.
    save
        Names among outputs, cost, params, spectrum, effective_dimension, unreachable_fraction, speed, or a mapping
        name -> fn(t, params) (None for a built-in name).
    events
        Members of ``cf.events``, looked at at the start and after each accepted step.
    max_steps
        Bound on accepted and rejected steps.
    dense
        Keep the solver's dense output for ``traj.params_at(t)``: about 9 K numbers for each of ``max_steps``.
    progress
        Show a bar with time, cost and time left (tqdm).
    throw
        Raise :class:`chordflow.FlowError` (it carries the trajectory) if the run does not end as asked.

    Returns
    -------
    Trajectory

    Raises
    ------
    ValueError
        A mistake in the arguments, in one line; also float32 without tolerances for it.
    MemoryError
        What does not fit, before it is allocated.
    FlowError
        ``throw`` and a result other than ``successful`` or ``event_occurred``.

    Notes
    -----
    Works under jit and vmap over params; buffers then keep their full length. Reverse-mode differentiation goes
    through diffrax's checkpointed adjoint, at its cost; give it ``cf.solve.Cholesky()``, because derivatives of an SVD
    are singular where singular values coincide. One right-hand side of an inverting filter costs one Gram
    matrix and Cholesky factor of min(n, K); of the standard flow one forward and one reverse pass. Damping is frozen
    at the start. The last good state survives every failure.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, chordflow as cf
    >>> jax.config.update("jax_enable_x64", True)
    >>> problem = cf.Problem(lambda w, z: jnp.tanh(w * z), jnp.array([[1.0]]), jnp.array([[0.5]]))
    >>> traj = cf.evolve(problem, jnp.array([0.1]), cf.straight())
    >>> bool(jnp.allclose(traj.outputs[-1], 0.5, atol=1e-6))
    True
    """
    run = arrange(
        problem,
        params,
        flow,
        t1=t1,
        ts=ts,
        clock=clock,
        rtol=rtol,
        atol=atol,
        solver=solver,
        linear_solver=linear_solver,
        save=save,
        events=events,
        max_steps=max_steps,
        dense=dense,
        progress=progress,
    )
    if progress and is_concrete(problem, params, flow, run.end):
        with progress_bar.Bar(float(run.end), type(flow.velocity).__name__.lower()) as bar:
            trajectory = jax.block_until_ready(_integrate(*run, bar.key))
    else:
        trajectory = _integrate(*run, jnp.asarray(-1))
    return _finish(trajectory, throw)


class _Options(eqx.Module):
    """Choices that are part of the compiled program."""

    solver: diffrax.AbstractSolver
    max_steps: int = eqx.field(static=True)
    dense: bool = eqx.field(static=True)
    progress: bool = eqx.field(static=True)


class Arranged(NamedTuple):
    """A run that was checked: everything :func:`evolve` integrates, before the first step."""

    system: System
    params: PyTree
    end: Scalar
    times: Array | None
    controls: tuple[Scalar, Scalar]
    """rtol and atol."""
    options: _Options


def arrange(
    problem: Problem,
    params: PyTree,
    flow: Flow,
    *,
    t1: Any = None,
    ts: Any = None,
    clock: clocks.AbstractClock | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    solver: diffrax.AbstractSolver | None = None,
    linear_solver: AbstractMethod | None = None,
    save: Save = ("outputs", "cost"),
    events: Sequence[AbstractEvent] = (),
    max_steps: int = 4096,
    dense: bool = False,
    progress: bool = False,
) -> Arranged:
    """Check the arguments of :func:`evolve` and make what they mean."""
    _require_flow(problem, flow)
    solver = diffrax.Dopri5() if solver is None else solver
    shape = problem.jacobian(params).shape
    method = default_method(flow.filter, shape) if linear_solver is None else linear_solver
    require_kind("solver", solver, diffrax.AbstractSolver, "a diffrax solver such as diffrax.Tsit5()")
    require_kind("linear_solver", method, AbstractMethod, "cf.solve.Cholesky() or cf.solve.SVD()")
    if flow.filter.inverts:
        _require_factor(method, shape, jnp.finfo(problem.terms[0].targets.dtype).bits // 8)
    theta, _ = problem.ravel(params)
    controls = tolerances(theta.dtype, rtol, atol)
    clock = run_clock(flow, clock)
    times = save_times(ts, theta.dtype)
    end = end_time(flow, clock, t1, times, theta.dtype)
    require_times_within(times, end)
    options = _Options(solver, positive_int("max_steps", max_steps), dense, progress)
    table, watched = save_table(save), event_tuple(events)
    concrete = is_concrete(problem, params, flow, end)
    if concrete:
        problem.check(params)
    system = prepare(problem, params, flow, clock, method, table, watched)
    _require_buffers(system, params, end, times, options)
    if concrete:
        _warn_if_stiff(system, end, options)
    return Arranged(system, params, end, times, controls, options)


def _require_flow(problem: Any, flow: Any) -> None:
    require_kind("flow", flow, Flow, "a cf.Flow such as cf.adapted()")
    require_kind("problem", problem, Problem, "a cf.Problem")


class _Dense(eqx.Module):
    """The solver's interpolant as parameters of t."""

    problem: Problem
    params: PyTree
    solution: diffrax.Solution

    def __call__(self, t: Scalar) -> PyTree:
        return self.problem.ravel(self.params)[1](self.solution.evaluate(t))


@eqx.filter_jit
def _integrate(
    system: System, params: PyTree, t1: Scalar, ts: Array | None, controls: Any, options: _Options, bar: Array
) -> Trajectory:
    theta_0, unravel = system.problem.ravel(params)
    rtol, atol = controls
    every = ts is None

    def vector_field(t: Any, y: Any, _: Any) -> Array:
        return system.vector_field(t, unravel(y))

    held = [event.occurred(system.moment(jnp.zeros_like(t1), params)) for event in system.events]
    pcoeff, icoeff = gains(system.filter)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field),
        options.solver,
        jnp.zeros_like(t1),
        t1,
        None,
        theta_0,
        saveat=diffrax.SaveAt(
            subs=(
                diffrax.SubSaveAt(
                    t0=every, steps=every, t1=every, ts=ts, fn=lambda t, y, _: system.saved(t, unravel(y))
                ),
                diffrax.SubSaveAt(t1=True),
            ),
            dense=options.dense,
        ),
        stepsize_controller=GuardedController(
            rtol, atol, pcoeff=pcoeff, icoeff=icoeff, dtmin=smallest_step(t1), force_dtmin=False
        ),
        event=_conditions(system, held, unravel, bar if options.progress else None),
        max_steps=options.max_steps,
        throw=False,
    )
    saved, end = _end(solution)
    if held:
        end = _unless_held(end, jnp.stack(held), theta_0)
    result = from_diffrax(end.result, system.filter.inverts)
    for index, candidate in enumerate(system.events):
        if isinstance(candidate, VelocityUnreachable):
            result = RESULTS.where(end.event == index, RESULTS.velocity_unreachable, result)
    stats = {
        "t_last": end.t,
        "event": end.event,
        **end.steps,
        **_rank_report(system, end.t, jnp.stack([theta_0, end.theta]), unravel),
    }
    dense = _Dense(system.problem, params, solution) if options.dense else None
    return Trajectory(end.ts, saved, unravel(end.theta), result, stats, system.problem, dense)


class _End(NamedTuple):
    """Where and how a run ended: its save times, last t and θ, outcome, event (−1 for none) and numbers of steps."""

    ts: Array
    t: Array
    theta: Array
    result: diffrax.RESULTS
    event: Array
    steps: dict[str, Array]


def _end(solution: diffrax.Solution) -> tuple[dict[str, Any], _End]:
    times: Any = solution.ts
    states: Any = solution.ys
    (ts, (t,)), (saved, (theta,)) = times, states
    names = {"num_steps": "num_steps", "num_accepted": "num_accepted_steps", "num_rejected": "num_rejected_steps"}
    steps = {ours: jnp.asarray(solution.stats[theirs]) for ours, theirs in names.items()}
    return saved, _End(ts, t, theta, solution.result, first_event(solution.event_mask), steps)


def _unless_held(end: _End, held: Array, theta_0: Array) -> _End:
    """The end of a run, or its start where an event held there already: diffrax looks at events after a step only."""
    any_held = jnp.any(held)
    return _End(
        jnp.where(any_held & (end.ts > 0), jnp.inf, end.ts),
        jnp.where(any_held, 0, end.t),
        jnp.where(any_held, theta_0, end.theta),
        diffrax.RESULTS.where(any_held, diffrax.RESULTS.event_occurred, end.result),  # pyright: ignore[reportArgumentType]
        jnp.where(any_held, jnp.argmax(held), end.event),
        {name: jnp.where(any_held, 0, number) for name, number in end.steps.items()},
    )


def _conditions(system: System, held: list[Array], unravel: Callable, bar: Array | None) -> diffrax.Event | None:
    """Events of the run, which fire at the first step if they held at the start.

    The bar is one that never fires, because conditions are looked at once per accepted step.
    """

    # diffrax passes t, y, args by position or by keyword, so they must have these names.
    def watch(event: AbstractEvent, held: Array) -> Callable:
        return lambda t, y, args, **_: held | event.occurred(system.moment(t, unravel(y)))  # noqa: ARG005

    def show(t: Any, y: Any, args: Any, **_: Any) -> Array:  # noqa: ARG001
        assert bar is not None
        progress_bar.advance(bar, t, system.problem.cost(unravel(y)))
        return jnp.asarray(False)

    conditions = [*map(watch, system.events, held)] + ([] if bar is None else [show])
    return diffrax.Event(conditions) if conditions else None


def _rank_report(system: System, t_last: Scalar, ends: Array, unravel: Callable) -> dict[str, Scalar]:
    """σ_max, λ, and at both ends effective dimension and relative residual, for filters that invert."""
    report = {"sigma_max": system.policy.scale}
    if not system.filter.inverts:
        return report
    report["lam"] = system.policy.lam
    times = jnp.stack([jnp.zeros_like(t_last), t_last])
    reach = jax.lax.map(lambda end: system.reach(end[0], unravel(end[1])), (times, ends))
    for name, values in zip(("effective_dimension", "relative_residual"), reach, strict=True):
        report |= {f"{name}_start": values[0], f"{name}_end": values[1]}
    return report


def _finish(trajectory: Trajectory, throw: bool) -> Trajectory:
    if not is_concrete(trajectory.ts, trajectory.result):
        if throw:
            checked = trajectory.result.error_if(trajectory.ts, ~is_okay(trajectory.result))
            trajectory = eqx.tree_at(lambda tr: tr.ts, trajectory, checked)
        return trajectory
    trajectory = eqx.tree_at(lambda tr: (tr.ts, tr.saved), trajectory, trim(trajectory.ts, trajectory.saved))
    if throw and not bool(is_okay(trajectory.result)):
        raise FlowError(
            f"the run ended at t = {float(trajectory.stats['t_last']):.6g}: {RESULTS[trajectory.result]} "
            "(throw=False returns what was reached)",
            trajectory,
        )
    return trajectory


def _require_factor(method: AbstractMethod, shape: tuple[int, int], itemsize: int) -> None:
    """Say so before if one factorisation does not fit; how many copies the compiled right-hand side holds is measured.

    ``memory_analysis`` at n = 600 to 2400, K = 1994: 2.0 m² for Cholesky, m = min(n, K), and n K more if n > K; for
    the decomposition 2.6 n K, to which LAPACK adds a workspace of some 4 m².
    """
    n, K = shape
    m = min(n, K)
    if isinstance(method, SVD):
        numbers, what = 3 * n * K + 4 * m * m, f"the Jacobian ({n} x {K}) with its singular value decomposition"
    elif isinstance(method, Cholesky):
        numbers = 2 * m * m + (n * K if n > K else 0)
        what = (
            f"the Gram matrix of {'n' if n <= K else 'K'} = {m} {'outputs' if n <= K else 'parameters'} with its factor"
        )
    else:  # products only
        return
    require_memory(numbers * itemsize, what, "use fewer samples or a smaller network")


def _require_buffers(system: System, params: PyTree, t1: Scalar, ts: Array | None, options: _Options) -> None:
    """Saves of every step, and dense output, are allocated for ``max_steps``: say so before, if that does not fit."""
    one = eqx.filter_eval_shape(system.saved, t1, params)
    rows = options.max_steps + 1 if ts is None else ts.size
    saved = rows * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(one))
    theta = system.problem.ravel(params)[0]
    # y0, y1 and the stages of Dopri5.
    dense = options.dense * options.max_steps * 9 * theta.size * theta.dtype.itemsize
    require_memory(saved + dense, f"saving for max_steps={options.max_steps} steps", "give ts, or a smaller max_steps")


def _warn_if_stiff(system: System, t1: Scalar, options: _Options) -> None:
    steps = _stable_steps(system.filter, system.policy.scale, system.problem, system.clock.s(t1))
    explicit = not isinstance(options.solver, diffrax.AbstractImplicitSolver)
    if explicit and steps > options.max_steps:
        warnings.warn(
            f"this flow is stiff: about {steps:.0f} explicit steps are expected, above max_steps={options.max_steps}; "
            "raise it, shorten t1, or use an implicit solver (K up to about 500)",
            stacklevel=4,
        )


def _stable_steps(filter: AbstractFilter, sigma_max: Scalar, problem: Problem, s: Scalar) -> float:  # noqa: A002
    blend = filter.blend()
    if blend is None:
        stiffness = float(filter.transfer(sigma_max, RankPolicy.of(filter, sigma_max, 0.0).lam))
    else:
        stiffness = float(blend.transpose) * float(sigma_max) ** 2
    return float(s) * stiffness / (3.3 * float(problem.num_samples))


def expected_steps(
    problem: Problem, params: PyTree, flow: Flow, t1: float, *, clock: clocks.AbstractClock | None = None
) -> float:
    """Steps that stability asks of an explicit solver: s (1−τ) σ_max²/(3.3 N), with s the gradient-flow time at ``t1``.

    The standard and interpolated flows are as stiff as DDᵀ; a filter that is no blend of transpose and damped inverse
    counts with its S(σ_max). 0 for flows that only invert: their steps are a matter of accuracy, some tens at the
    default tolerances. Squared error is assumed; cross-entropy needs at most half. About 20 Jacobian products.

    Examples
    --------
    >>> import jax.numpy as jnp, chordflow as cf
    >>> problem = cf.Problem(lambda w, z: w * z, jnp.array([[10.0]]), jnp.array([[0.0]]))
    >>> round(cf.expected_steps(problem, jnp.array([1.0]), cf.standard(), t1=3.3))
    100
    """
    _require_flow(problem, flow)
    end = end_time(flow, run_clock(flow, clock), t1, None, problem.ravel(params)[0].dtype)
    scale = at_start(problem, params, False)[1]
    return _stable_steps(flow.filter, scale, problem, run_clock(flow, clock).s(end))
