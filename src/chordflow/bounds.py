"""Numbers that must lie in an interval: one check and one wording for all of them."""

import math
from typing import Any

from jax.core import Tracer


def require_within(
    owner: str,
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    open_left: bool = False,
    open_right: bool = False,
) -> None:
    """Raise ValueError unless ``value`` is a number between ``low`` and ``high``; an infinite end is always open.

    Traced values cannot be looked at and pass.
    """
    if isinstance(value, Tracer):
        return
    open_right = open_right or high == math.inf
    interval = f"{'(' if open_left else '['}{low:g}, {high:g}{')' if open_right else ']'}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{owner}: {name} must be a number in {interval}, got {value!r}") from None
    inside = (low < number if open_left else low <= number) and (number < high if open_right else number <= high)
    if not inside:
        raise ValueError(f"{owner}: {name} must be in {interval}, got {value}")
