"""Memory of the Gram program from shapes alone: whether all factors are kept, and how large a tile is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from chordflow.kernel.factors import sample_factors
from chordflow.kernel.plan import SINGLE, TILE, Group
from chordflow.kernel.trace import Traced
from chordflow.memory import available_memory

Kind = Literal["full", "trace", "blocks"]


@dataclass(frozen=True)
class Budget:
    """Bytes of the parts that count, and the choice they lead to.

    ``blocked``: factors are computed again for each tile of ``step`` samples instead of kept for all of them.
    """

    arguments: int
    result: int
    factors: int
    tile: int
    step: int
    blocked: bool

    @property
    def peak(self) -> int:
        """Arguments, result, factors and one tile."""
        return self.arguments + self.result + self.factors + self.tile


def fit(
    traces: Sequence[Traced],
    groups: Sequence[Group],
    leaves: Sequence[Any],
    samples: tuple[Sequence[Any], Sequence[Any] | None],
    kind: Kind,
    dtype: Any,
    memory: int | None,
) -> Budget:
    """Keep all factors if that fits into ``memory`` (None: what is available), else the largest tiles that fit.

    Raises
    ------
    MemoryError
        If even tiles of one sample do not fit.
    """
    rows = [_count(tree) for tree in samples[0]]
    cols = None if samples[1] is None else [_count(tree) for tree in samples[1]]
    outputs = [trace.out.shape[0] for trace in traces]
    itemsize = jnp.dtype(dtype).itemsize
    result = itemsize * _entries(kind, rows, rows if cols is None else cols, outputs)
    arguments = sum(map(_nbytes, leaves)) + sum(map(_nbytes, jax.tree.leaves(samples)))
    per_sample = [_sample_bytes(*pair, groups, leaves) for pair in zip(traces, _first(samples[0]), strict=True)]
    limit = available_memory() if memory is None else memory

    alone = cols is None and len(rows) == 1

    def budget(step: int, *, blocked: bool) -> Budget:
        width = step * (1 if kind == "trace" else max(outputs))
        if kind == "blocks":
            tile = itemsize * width * max(outputs) + step * max(s.kept + s.later for s in per_sample)
            return Budget(arguments, result, step * max(s.kept + s.work for s in per_sample), tile, step, blocked)
        one_tile = alone and step >= rows[0]
        # Both sides of a tile are cut and their columns formed, one after the other; a single tile is not cut.
        cut = step * max(2 * s.later if one_tile else 2 * s.kept + 3 * s.later for s in per_sample)
        tile = 2 * itemsize * width**2 + cut
        if blocked:
            kept, work = 0, 2 * step * max(s.kept + s.work for s in per_sample)
        else:
            sides = [rows] if cols is None else [rows, cols]
            kept = sum(n * s.kept for side in sides for n, s in zip(side, per_sample, strict=True))
            work = max(n * s.work for side in sides for n, s in zip(side, per_sample, strict=True))
        # What served to compute the factors is free again when the tiles are.
        return Budget(arguments, result, kept + work, max(tile - work, 0), step, blocked)

    narrow = kind == "full" or any(group.later for group in groups)
    most, usual = max(rows + (cols or [])), max(1, TILE // max(outputs)) if narrow else TILE
    largest = most if most <= SINGLE * usual else balanced(most, usual)
    best = budget(largest, blocked=kind == "blocks")
    while limit is not None and best.peak > limit:
        if best.blocked and best.step == 1:
            raise MemoryError(_refusal(best, kind, limit))
        best = budget(max(1, best.step // 2), blocked=True) if best.blocked else budget(largest, blocked=True)
    return best


def balanced(num: int, step: int) -> int:
    """Tiles of equal size: of 400 samples two tiles of 200 rather than 256 and 144, which would overlap."""
    return math.ceil(num / math.ceil(num / step))


def _refusal(best: Budget, kind: Kind, limit: int) -> str:
    ways = {
        "full": "use gram_trace, gram_blocks or gram_mv, fewer samples, or float32",
        "trace": "use gram_mv, fewer samples, or float32",
        "blocks": "use gram_mv, or fewer samples",
    }
    return (
        f"the Gram matrix needs {best.peak / 2**30:.2f} GiB ({best.result / 2**30:.2f} of them for the result) but "
        f"{limit / 2**30:.2f} GiB are available: {ways[kind]}"
    )


def _entries(kind: Kind, rows: Sequence[int], cols: Sequence[int], outputs: Sequence[int]) -> int:
    if kind == "blocks":
        return sum(n * q * q for n, q in zip(rows, outputs, strict=True))
    widths = outputs if kind == "full" else [1] * len(outputs)
    return math.prod(sum(n * q for n, q in zip(side, widths, strict=True)) for side in (rows, cols))


class _SampleBytes(NamedTuple):
    """Bytes for one sample: of its factors, alive while they are computed, and of columns formed in a tile."""

    kept: int
    work: int
    later: int


def _sample_bytes(traced: Traced, sample: Any, groups: Sequence[Group], leaves: Sequence[Any]) -> _SampleBytes:
    factors = jax.eval_shape(lambda leaves, sample: sample_factors(traced, groups, leaves, sample), leaves, sample)
    q, itemsize = traced.out.shape[0], traced.out.dtype.itemsize
    taps = [q * _nbytes(tap) for tap in traced.structs]
    # Cotangents that become factors need no second place; those of columns live until these are formed and joined.
    lasting = {g.leaf for g in groups if g.rule == "pairs" or g.later} | {i for g in groups for i in g.biases}
    passing = {use.tap for use in traced.uses} - {use.tap for use in traced.uses if use.view.leaf in lasting}
    operands = sum(_operand_bytes(use.sizes, use.kind, traced.out.dtype) for use in traced.uses)
    columns = 0 if factors.columns is None else _nbytes(factors.columns)
    later = sum(q * itemsize * math.prod(_leaf_uses(traced, g)[0].sizes[1:]) for g in groups if g.later)
    work = max(operands + max(taps, default=0) + sum(taps[i] for i in passing), columns)
    return _SampleBytes(sum(map(_nbytes, jax.tree.leaves(factors))), work, later)


def _leaf_uses(traced: Traced, group: Group) -> list[Any]:
    return [use for use in traced.uses if use.view.leaf == group.leaf]


def _operand_bytes(sizes: tuple[int, int, int, int], kind: str, dtype: Any) -> int:
    a, b, c, _ = sizes
    return 0 if kind == "bias" else a * b * dtype.itemsize * (1 if kind == "lookup" else c)


def _count(tree: Any) -> int:
    return jax.tree.leaves(tree)[0].shape[0]


def _first(trees: Sequence[Any]) -> list[Any]:
    return [jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree) for tree in trees]


def _nbytes(x: Any) -> int:
    return math.prod(x.shape) * x.dtype.itemsize
