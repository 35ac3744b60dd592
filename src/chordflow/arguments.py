"""Check and complete the arguments of a run: tolerances, times, what to save. One clear line for every mistake."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from chordflow import clocks
from chordflow.events import AbstractEvent
from chordflow.flows import Flow
from chordflow.measures import MEASURES
from chordflow.problem import is_concrete

Scalar = Float[Array, ""]
Save = Sequence[str] | Mapping[str, Callable[[Array, PyTree], Any] | None]
DEFAULT_RTOL = 1e-7


def tolerances(dtype: Any, rtol: Any, atol: Any) -> tuple[Scalar, Scalar]:
    """Defaults for float64; an error for float32 unless its tolerances are asked for.

    atol is 1e-2 rtol unless given, but no less than ten machine epsilons: below that a step of parameters of order one
    has nothing but rounding.
    """
    for name, value, limit in (("rtol", rtol, 1.0), ("atol", atol, np.inf)):
        if value is not None and not (_is_number(value) and 0 < value < limit):
            raise ValueError(f"evolve: {name} must be a number in (0, {limit:g}), got {value!r}")
    if dtype != jnp.float64 and (rtol is None or rtol < 1e-6):
        raise ValueError(
            f"evolve: {dtype} parameters need float64, jax.config.update('jax_enable_x64', True) at the start, "
            "or float32 tolerances such as rtol=1e-4, atol=1e-6"
        )
    rtol = DEFAULT_RTOL if rtol is None else rtol
    atol = max(1e-2 * rtol, 10 * float(jnp.finfo(dtype).eps)) if atol is None else atol
    return jnp.asarray(rtol, dtype), jnp.asarray(atol, dtype)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def run_clock(flow: Flow, clock: clocks.AbstractClock | None) -> clocks.AbstractClock:
    """The given clock, or gradient-flow time; straight and along have their own."""
    if clock is None:
        return clocks.GradientTime()
    if not isinstance(clock, clocks.AbstractClock):
        raise ValueError(f"evolve: clock must be of cf.clocks, got {clock!r}")
    if not flow.velocity.is_autonomous:
        raise ValueError("evolve: straight() and along() run in their own t in [0, 1]: leave out clock")
    return clock


def end_time(flow: Flow, clock: clocks.AbstractClock, t1: Any, ts: Array | None, dtype: Any) -> Scalar:
    """t1, by default 1 for straight and along and the last save time otherwise."""
    own = not flow.velocity.is_autonomous
    if t1 is None and own:
        t1 = 1.0
    elif t1 is None and ts is not None:
        t1 = ts[-1]
    elif t1 is None:
        raise ValueError("evolve: this flow needs t1, its end in gradient-flow time s (or in the clock's variable)")
    t1 = _times("t1", "a number", t1, dtype)
    if t1.shape != ():
        raise ValueError(f"evolve: t1 must be a number, got shape {t1.shape}")
    limit, closed = (1.0, True) if own else (clock.end, False)
    if is_concrete(t1) and not bool((t1 > 0) & ((t1 <= limit) if closed else (t1 < limit))):
        raise ValueError(f"evolve: t1 must be in (0, {limit:g}{']' if closed else ')'}, got {float(t1):g}")
    return t1


def _times(name: str, expected: str, value: Any, dtype: Any) -> Array:
    try:
        return jnp.asarray(value, dtype)
    except (TypeError, ValueError):
        raise ValueError(f"evolve: {name} must be {expected}, got {value!r}") from None


def save_times(ts: Any, dtype: Any) -> Array | None:
    """ts as an array (T,), or None."""
    if ts is None:
        return None
    ts = _times("ts", "a one-dimensional array of times", ts, dtype)
    if ts.ndim != 1 or ts.size == 0:
        raise ValueError(f"evolve: ts must be a one-dimensional array of times, got shape {ts.shape}")
    return ts


def require_times_within(ts: Array | None, t1: Scalar) -> None:
    """Raise ValueError unless the save times increase and lie in [0, t1]; traced ones cannot be looked at."""
    if ts is None or not is_concrete(ts, t1):
        return
    if not bool(jnp.all(jnp.isfinite(ts)) & jnp.all(jnp.diff(ts) > 0)):
        raise ValueError("evolve: ts must be finite and strictly increasing")
    if ts[0] < 0 or ts[-1] > t1:
        raise ValueError(f"evolve: ts must lie in [0, t1={float(t1):g}], got [{float(ts[0]):g}, {float(ts[-1]):g}]")


def save_table(save: Save) -> dict[str, Callable[[Array, PyTree], Any] | None]:
    """Name -> function, None for the built-in quantities."""
    if not isinstance(save, (Mapping, Sequence)):
        raise ValueError(f"evolve: save must be names or a mapping, got {save!r}")
    names = (save,) if isinstance(save, str) else save
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"evolve: save must be names or a mapping from names, got {name!r} among them")
    table = dict(save) if isinstance(save, Mapping) else dict.fromkeys(names)
    for name, fn in table.items():
        if fn is None and name not in MEASURES:
            raise ValueError(f"evolve: save knows {', '.join(MEASURES)}, got {name!r}; other names need a function")
        if fn is not None and not callable(fn):
            raise ValueError(f"evolve: save[{name!r}] must be a function fn(t, params), got {type(fn).__name__}")
    return table


def require_kind(name: str, value: Any, kind: type, expected: str) -> None:
    """Raise ValueError unless ``value`` is an instance of ``kind``."""
    if not isinstance(value, kind):
        raise ValueError(f"evolve: {name} must be {expected}, got {_shown(value)}")


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)


def event_tuple(events: Any) -> tuple[AbstractEvent, ...]:
    """The events of a run."""
    if isinstance(events, AbstractEvent) or not isinstance(events, Sequence):
        raise ValueError(f"evolve: events must be a sequence such as [cf.events.CostBelow(1e-6)], got {_shown(events)}")
    for event in events:
        require_kind("events", event, AbstractEvent, "members of cf.events")
    return tuple(events)


def positive_int(name: str, value: Any) -> int:
    """A positive integer, or an error naming it."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"evolve: {name} must be a positive integer, got {value!r}")
    return int(value)
