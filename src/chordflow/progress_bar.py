"""Progress bars, by tqdm: for compiled runs with time, cost and time left; for loops in Python."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from chordflow.extras import load_extra

_OPEN: dict[int, Any] = {}
_KEYS = itertools.count()


class Bar:
    """A tqdm bar that a compiled run advances; the run carries only its integer key, so that it is not recompiled."""

    def __init__(self, t1: float, description: str):
        tqdm = load_extra("tqdm.auto", "progress bars").tqdm
        self.index = next(_KEYS)
        form = "{desc} {percentage:3.0f}%|{bar:20}| t={n:.4g}/{total:.4g} [{elapsed}<{remaining}{postfix}]"
        self._bar = tqdm(total=t1, desc=description, bar_format=form, leave=False)

    @property
    def key(self) -> Array:
        """The integer that a compiled run carries."""
        return jnp.asarray(self.index)

    def __enter__(self) -> "Bar":
        _OPEN[self.index] = self._bar
        return self

    def __exit__(self, *exc: object) -> None:
        jax.effects_barrier()
        del _OPEN[self.index]
        self._bar.close()


def advance(key: Array, t: Float[Array, ""], cost: Float[Array, ""]) -> None:
    """Show t and the cost on the bar with this key, from inside a compiled run."""
    jax.debug.callback(_show, key, t, cost)


def _show(key: Any, t: Any, cost: Any) -> None:
    bar = _OPEN.get(int(key))
    if bar is not None:
        bar.set_postfix_str(f"cost={float(cost):.3e}", refresh=False)
        bar.update(max(float(t) - bar.n, 0.0))


@contextmanager
def counting(total: int, description: str, unit: str, *, show: bool) -> Iterator[Callable[..., object]]:
    """A bar for a loop in Python, shown if ``show``: yields what is told how many more are done, and a note.

    Examples
    --------
    >>> with counting(3, "pieces", "piece", show=False) as done:
    ...     for _ in range(3):
    ...         _ = done(1)
    """
    if not show:
        yield lambda *_: None
        return
    tqdm = load_extra("tqdm.auto", "progress bars").tqdm
    with tqdm(total=total, desc=description, unit=unit, leave=False) as bar:

        def done(num: int, note: str = "") -> None:
            bar.update(num)
            if note:
                bar.set_postfix_str(note)

        yield done
