"""Steps one after another: on the host, where there is a clock and callbacks, or traced."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from chordflow.progress_bar import counting
from chordflow.training.linearise import Aim, Scalar
from chordflow.training.outcomes import FIT_RESULTS, FitState, History
from chordflow.training.step import Rule, Start, Step, step

Callback = Callable[[FitState], Any]
Rows = Float[Array | np.ndarray, "T columns"]
COLUMNS = len(dataclasses.fields(History))
"""Of a row: what a history has, seconds last."""


class Limits(eqx.Module):
    """When to stop, and the first damping; all traced, so that other values compile nothing anew."""

    target: Scalar
    gradient: Scalar
    max_steps: Array
    damping: Scalar
    """Where λ starts, relative to the scale of the decomposition."""


@eqx.filter_jit
def advance(aim: Aim, rule: Rule, state: FitState, limits: Limits) -> tuple[FitState, FIT_RESULTS, Array]:
    """One step: new state, result code (running if it goes on), history row without seconds."""
    next_key, cost = state.key, state.cost
    if aim.problem.is_drawn:
        next_key, drawn = jax.random.split(state.key)
        # The last cost was that of other samples.
        aim, cost = aim.redrawn(drawn), jnp.full_like(cost, jnp.inf)
    left = limits.max_steps - state.num_steps
    start = Start(state.theta, cost, state.lam, limits.damping, state.rejections)
    taken = step(aim, rule, start, max_tries=left, gradient_tol=limits.gradient)
    columns = (
        taken.cost,
        taken.damping,
        taken.gain,
        taken.effective_dimension,
        taken.unreachable_fraction,
        taken.tries,
        taken.accepted,
    )
    row = jnp.stack([jnp.asarray(column, state.theta.dtype) for column in columns])
    # A step that max_steps cut short is gone on with on its own samples.
    key = jnp.where(taken.accepted | taken.is_hopeless, next_key, state.key)
    num_steps = state.num_steps + taken.tries
    next_state = FitState(taken.theta, taken.cost, taken.lam, num_steps, taken.rejections, key)
    return next_state, _judge(aim, taken, limits), row


def _judge(aim: Aim, taken: Step, limits: Limits) -> FIT_RESULTS:
    minimum = aim.problem.minimum()
    excess = taken.cost if minimum is None else taken.cost - minimum
    result = FIT_RESULTS.running
    result = FIT_RESULTS.where(taken.is_hopeless, FIT_RESULTS.no_progress, result)
    result = FIT_RESULTS.where(taken.gradient_norm <= limits.gradient, FIT_RESULTS.gradient_small, result)
    result = FIT_RESULTS.where(~jnp.isfinite(taken.gradient_norm + taken.scale), FIT_RESULTS.not_finite, result)
    return FIT_RESULTS.where(excess <= limits.target, FIT_RESULTS.target_reached, result)


def run_on_host(
    aim: Aim,
    rule: Rule,
    state: FitState,
    limits: Limits,
    time_limit: float | None,
    callback: Callback | None,
    *,
    show: bool,
) -> tuple[FitState, FIT_RESULTS, Rows]:
    """Until a limit; one compiled call per step."""
    start, rows, result = time.perf_counter(), [], FIT_RESULTS.running
    left = int(limits.max_steps) - int(state.num_steps)
    with counting(max(left, 0), "fit", "step", show=show) as done:
        while int(state.num_steps) < int(limits.max_steps) and bool(result == FIT_RESULTS.running):
            before = int(state.num_steps)
            state, result, row = advance(aim, rule, state, limits)
            row = np.asarray(row)  # waits for the step
            seconds = time.perf_counter() - start
            rows.append(np.append(row, seconds))
            done(int(state.num_steps) - before, f"cost={row[0]:.3e}")  # of the row, which is here already
            stop = callback is not None and bool(callback(state))
            if bool(result == FIT_RESULTS.running):
                if stop:
                    result = FIT_RESULTS.stopped
                elif time_limit is not None and seconds > time_limit:
                    result = FIT_RESULTS.time_limit
    if bool(result == FIT_RESULTS.running):
        result = FIT_RESULTS.step_limit
    # In NumPy, columns contiguous: in jax every number of rows would compile its own slices, a quarter
    # of a second.
    return state, result, np.asfortranarray(np.array(rows, state.theta.dtype).reshape(-1, COLUMNS))


def run_traced(
    aim: Aim, rule: Rule, state: FitState, limits: Limits, max_steps: int
) -> tuple[FitState, FIT_RESULTS, Rows]:
    """Until a limit, as one loop of a traced program; unused rows are NaN."""
    rows = jnp.full((max_steps, COLUMNS), jnp.nan, state.theta.dtype)

    def unfinished(carry: Any) -> Array:
        state, result, _, _ = carry
        return (state.num_steps < max_steps) & (result == FIT_RESULTS.running)

    def body(carry: Any) -> Any:
        state, _, rows, index = carry
        state, result, row = advance(aim, rule, state, limits)
        return state, result, rows.at[index, :-1].set(row), index + 1

    carry = (state, FIT_RESULTS.running, rows, jnp.zeros_like(state.num_steps))
    state, result, rows, _ = jax.lax.while_loop(unfinished, body, carry)
    result = FIT_RESULTS.where(result == FIT_RESULTS.running, FIT_RESULTS.step_limit, result)
    return state, result, rows
