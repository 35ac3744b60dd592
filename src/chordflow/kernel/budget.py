"""Memory of the Gram program from shapes alone: whether all factors are kept, and how large a tile is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from chordflow.kernel.contract import UNROLLED
from chordflow.kernel.factors import sample_factors
from chordflow.kernel.plan import SINGLE, TILE, Group
from chordflow.kernel.trace import Traced
from chordflow.memory import available_memory

Kind = Literal["full", "trace", "blocks"]

# Cutting a tile copies the factors of its rows and columns. Tiles are made smaller, down to a half, where that takes
# the whole beyond so many times what has to be there: result and factors.
LEAN = 1.45


@dataclass(frozen=True)
class Budget:
    """Bytes of the parts that count, and the choice they lead to.

    ``blocked``: factors are computed again for each tile of ``step`` samples instead of kept for all of them.
    """

    arguments: int
    result: int
    factors: int
    passing: int
    step: int
    blocked: bool

    @property
    def peak(self) -> int:
        """Arguments, result, factors, and what lives beside them for a time."""
        return self.arguments + self.result + self.factors + self.passing


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
    sizes = _Sizes.of(traces, groups, leaves, samples, kind, jnp.dtype(dtype).itemsize)
    limit = available_memory() if memory is None else memory
    most = max(sizes.rows + (sizes.cols or []))
    narrow = kind == "full" or any(group.later for group in groups)
    usual = max(1, TILE // max(sizes.outputs)) if narrow else TILE
    best = sizes.budget(most if most <= SINGLE * usual else balanced(most, usual), blocked=kind == "blocks")
    while kind != "blocks" and best.peak > LEAN * (best.result + best.factors) and usual // 2 < best.step < most:
        smaller = sizes.budget(balanced(most, best.step - 1), blocked=best.blocked)
        if smaller.peak >= best.peak:
            break
        best = smaller
    if limit is not None and best.peak > limit and not best.blocked:
        best = sizes.budget(best.step, blocked=True)
    while limit is not None and best.peak > limit:
        if best.step == 1:
            raise MemoryError(_refusal(best, kind, limit))
        best = sizes.budget(best.step // 2, blocked=True)
    return best


def balanced(num: int, step: int) -> int:
    """Tiles of equal size: of 400 samples two tiles of 200 rather than 256 and 144, which would overlap."""
    return math.ceil(num / math.ceil(num / step))


class _Sizes(NamedTuple):
    """What memory depends on beside the size of a tile."""

    kind: Kind
    rows: list[int]  # samples of each block
    cols: list[int] | None
    outputs: list[int]
    per_sample: list["_SampleBytes"]
    products: int  # tiles that are alive together
    positions: int  # the most in one use
    itemsize: int
    arguments: int

    @classmethod
    def of(
        cls,
        traces: Sequence[Traced],
        groups: Sequence[Group],
        leaves: Sequence[Any],
        samples: tuple[Sequence[Any], Sequence[Any] | None],
        kind: Kind,
        itemsize: int,
    ) -> "_Sizes":
        rows, cols = ([_count(tree) for tree in trees] if trees is not None else None for trees in samples)
        assert rows is not None
        structs = [jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree) for tree in samples[0]]
        return cls(
            kind,
            rows,
            cols,
            [trace.out.shape[0] for trace in traces],
            [_SampleBytes.of(*pair, groups, leaves) for pair in zip(traces, structs, strict=True)],
            2 + sum(max(_products(trace, group) for trace in traces) for group in groups),
            max((use.sizes[0] for trace in traces for use in trace.uses), default=0),
            itemsize,
            sum(map(_nbytes, leaves)) + sum(map(_nbytes, jax.tree.leaves(samples))),
        )

    def budget(self, step: int, *, blocked: bool) -> Budget:
        """Memory with tiles of ``step`` samples."""
        q = 1 if self.kind == "trace" else max(self.outputs)
        result = self.itemsize * self._entries()
        if self.kind == "blocks":
            kept = step * max(s.kept for s in self.per_sample)
            # Products of one sample with itself are fused with what makes their factors, unless there are positions.
            work = step * max(s.work for s in self.per_sample) if self.positions > 1 else 0
            return Budget(self.arguments, result, kept, work, step, blocked)
        sides = [self.rows] if self.cols is None else [self.rows, self.cols]
        single = len(sides) == len(self.rows) == 1 and step >= self.rows[0]
        # Rows and columns of a tile are cut and their columns of D formed; a single tile is both and is not cut.
        cut = step * max(s.later if single else 2 * (s.kept + s.later) for s in self.per_sample)
        tiles = self.products * self.itemsize * (step * q) ** 2
        if blocked:
            work = 2 * step * max(s.work for s in self.per_sample)
            return Budget(self.arguments, result, 0, max(work, tiles) + cut, step, blocked)
        kept = sum(n * s.kept for side in sides for n, s in zip(side, self.per_sample, strict=True))
        work = max(n * s.work for side in sides for n, s in zip(side, self.per_sample, strict=True))
        # What served to compute the factors is free again when tiles are.
        return Budget(self.arguments, result, kept, max(work, cut + tiles), step, blocked)

    def _entries(self) -> int:
        if self.kind == "blocks":
            return sum(n * q * q for n, q in zip(self.rows, self.outputs, strict=True))
        widths = self.outputs if self.kind == "full" else [1] * len(self.outputs)
        sides = (self.rows, self.rows if self.cols is None else self.cols)
        return math.prod(sum(n * q for n, q in zip(side, widths, strict=True)) for side in sides)


class _SampleBytes(NamedTuple):
    """Bytes for one sample: of its factors, alive while they are computed, and of columns formed for a tile."""

    kept: int
    work: int
    later: int

    @classmethod
    def of(cls, traced: Traced, sample: Any, groups: Sequence[Group], leaves: Sequence[Any]) -> "_SampleBytes":
        factors = jax.eval_shape(lambda leaves, sample: sample_factors(traced, groups, leaves, sample), leaves, sample)
        q, itemsize = traced.out.shape[0], traced.out.dtype.itemsize
        operands = [_operand_bytes(use.sizes, use.kind, itemsize) for use in traced.uses]
        taps = [q * _nbytes(traced.structs[use.tap]) for use in traced.uses]
        # Forming columns takes x and h of a leaf and, as a batch of products, a copy of them.
        formed = {group.leaf: 0 for group in groups if group.rule == "columns" and not group.later}
        for use, x, h in zip(traced.uses, operands, taps, strict=True):
            if use.view.leaf in formed:
                formed[use.view.leaf] += 2 * (x + h)
        work = max(sum(operands) + max(taps, default=0), *formed.values(), 0)
        later = sum(q * itemsize * math.prod(_leaf_uses(traced, g)[0].sizes[1:]) for g in groups if g.later)
        return cls(sum(map(_nbytes, jax.tree.leaves(factors))), work, later)


def _products(traced: Traced, group: Group) -> int:
    """Further tiles that contracting a group needs: terms of a sum that are alive together."""
    uses = _leaf_uses(traced, group)
    if group.rule == "columns" or not uses:
        return 0
    positions = sum(use.sizes[0] for use in uses)
    return next((num for num in (positions**2, positions) if num <= UNROLLED), 1) - 1


def _leaf_uses(traced: Traced, group: Group) -> list[Any]:
    return [use for use in traced.uses if use.view.leaf == group.leaf]


def _operand_bytes(sizes: tuple[int, int, int, int], kind: str, itemsize: int) -> int:
    a, b, c, _ = sizes
    return 0 if kind == "bias" else a * b * itemsize * (1 if kind == "lookup" else c)


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


def _count(tree: Any) -> int:
    return jax.tree.leaves(tree)[0].shape[0]


def _nbytes(x: Any) -> int:
    return math.prod(x.shape) * x.dtype.itemsize
