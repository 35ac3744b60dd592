"""The Gram program: factors of all blocks, then tiles of the matrix, of which symmetry saves half."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from chordflow.kernel import contract
from chordflow.kernel.budget import Budget, Kind, balanced, fit
from chordflow.kernel.factors import Factors, batch_factors, finish
from chordflow.kernel.plan import Group, choose
from chordflow.kernel.samples import Blocks, PerSample
from chordflow.kernel.trace import Traced, find_uses


class Setup(NamedTuple):
    """What is known from shapes: uses of each block's function, contraction of each leaf, tiles and memory."""

    traces: tuple[Traced, ...]
    groups: tuple[Group, ...]
    budget: Budget
    dtype: Any

    @classmethod
    def of(cls, blocks: Blocks, theta: PyTree, others: Blocks | None, kind: Kind, options: "Options") -> "Setup":
        """Trace the functions and decide; arrays may be shapes. Raises MemoryError where nothing fits."""
        leaves, tree = jax.tree.flatten(theta)

        def trace(block: PerSample) -> Traced:
            sample = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), block.samples)
            return find_uses(lambda leaves, sample: block.at(jax.tree.unflatten(tree, leaves), sample), leaves, sample)

        traces = tuple(trace(block) for block in blocks)
        n, m = (max(map(num_samples, side)) for side in (blocks, others or blocks))
        partners = 1 if kind == "blocks" else 2 * n * m / (n + m)
        groups = choose(traces, [leaf.size for leaf in leaves], partners)
        dtype = options.accumulate or jnp.result_type(*(trace.out for trace in traces))
        samples = [block.samples for block in blocks], None if others is None else [block.samples for block in others]
        return cls(traces, groups, fit(traces, groups, leaves, samples, kind, dtype, options.memory), dtype)


class Options(NamedTuple):
    """Choices of the caller: bytes that may be used, dtype of sums."""

    memory: int | None = None
    accumulate: Any = None


def num_samples(block: PerSample) -> int:
    """N of a block."""
    return jax.tree.leaves(block.samples)[0].shape[0]


def matrix(blocks: Blocks, theta: PyTree, others: Blocks | None, kind: Kind, options: Options) -> Array:
    """G (n, m), rows block-, sample-, output-major, or its trace over outputs (N, M); ``others`` None: symmetric."""
    setup = Setup.of(blocks, theta, others, kind, options)
    leaves = jax.tree.leaves(theta)
    rows = [_Side.of(t, setup, leaves, block) for t, block in zip(setup.traces, blocks, strict=True)]
    cols = rows
    if others is not None:
        cols = [_Side.of(t, setup, leaves, block) for t, block in zip(setup.traces, others, strict=True)]
    tile = contract.full_tile if kind == "full" else contract.trace_tile
    widths = [trace.out.shape[0] if kind == "full" else 1 for trace in setup.traces]
    # One block alone is written as (N, q, M, q), which callers want: XLA may copy a loop's result to reshape it.
    unit = widths[0] if len(widths) == 1 else 1
    widths = [width // unit for width in widths]
    total = [sum(s.num * q for s, q in zip(sides, widths, strict=True)) for sides in (rows, cols)]
    G = jnp.zeros((total[0], unit, total[1], unit), setup.dtype)
    r0 = 0
    for k, row in enumerate(rows):
        c0 = 0
        for j, col in enumerate(cols):
            if others is not None or k <= j:
                spot = _Spot(r0, c0, widths[k], widths[j], mirrored=others is None, triangle=others is None and k == j)
                G = _fill(G, row, col, spot, lambda a, b: tile(a, b, setup.dtype))
            c0 += widths[j] * col.num
        r0 += widths[k] * row.num
    G = G.reshape(total[0] * unit, total[1] * unit)
    return G


def diagonal_blocks(blocks: Blocks, theta: PyTree, options: Options) -> tuple[Array, ...]:
    """G[n q, n r] (N, Q, Q) of each block."""
    setup = Setup.of(blocks, theta, None, "blocks", options)
    leaves = jax.tree.leaves(theta)

    def one(traced: Traced, sample: Any) -> Array:
        single = jax.tree.map(lambda x: x[None], sample)
        factors = finish(traced, setup.groups, batch_factors(traced, setup.groups, leaves)(single))
        tile = contract.full_tile(factors, factors, setup.dtype)
        assert tile is not None  # each leaf is in its own factors
        return tile[0, :, 0]

    return tuple(
        lax.map(lambda sample, t=trace: one(t, sample), block.samples, batch_size=setup.budget.step)
        for block, trace in zip(blocks, setup.traces, strict=True)
    )


def takes_columns(blocks: Blocks, theta: PyTree) -> bool:
    """Whether most parameters are contracted by way of their columns of D; from shapes alone."""
    groups = Setup.of(blocks, theta, None, "full", Options()).groups
    sizes = [leaf.size for leaf in jax.tree.leaves(theta)]
    columns = sum(sizes[i] for group in groups if group.rule == "columns" for i in (group.leaf, *group.biases))
    return 2 * columns > sum(sizes)


class _Side(NamedTuple):
    """Factors of one block, for some samples at a time: cut from those of all, or computed when they are needed."""

    num: int
    step: int  # samples in one tile
    factors: Callable[[Any, int], Factors]

    @classmethod
    def of(cls, traced: Traced, setup: Setup, leaves: Sequence[Array], block: PerSample) -> "_Side":
        compute = batch_factors(traced, setup.groups, leaves)
        kept = block.samples if setup.budget.blocked else compute(block.samples)
        # Axes of length 1 would let XLA keep factors in a layout of which each tile needs a copy.
        source = jax.tree.map(lambda x: x.reshape(len(x), *(s for s in x.shape[1:] if s != 1)), kept)

        def factors(start: Any, length: int) -> Factors:
            part = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, length), source)
            part = jax.tree.map(lambda x, like: x.reshape(length, *like.shape[1:]), part, kept)
            return finish(traced, setup.groups, compute(part) if setup.budget.blocked else part)

        num = num_samples(block)
        return cls(num, balanced(num, setup.budget.step), factors)


class _Spot(NamedTuple):
    """Where a pair of blocks lies in G, rows and columns of G for each sample, and which part of it is computed."""

    row: int
    col: int
    q: int
    r: int
    mirrored: bool
    triangle: bool


def _fill(G: Array, rows: _Side, cols: _Side, spot: _Spot, tile: Callable[[Factors, Factors], Array | None]) -> Array:
    """Write the tiles of one pair of blocks; the last of a ragged row overlaps the one before, with equal entries."""
    starts = [
        (min(i, rows.num - rows.step), min(j, cols.num - cols.step))
        for i in range(0, rows.num, rows.step)
        for j in range(i if spot.triangle else 0, cols.num, cols.step)
    ]

    def write(G: Array, start: tuple[Any, Any]) -> tuple[Array, None]:
        i, j = start
        part = tile(rows.factors(i, rows.step), cols.factors(j, cols.step))
        if part is None:
            return G, None
        part = part.reshape(rows.step * spot.q, G.shape[1], cols.step * spot.r, G.shape[3])
        row, col = spot.row + i * spot.q, spot.col + j * spot.r
        G = lax.dynamic_update_slice(G, part, (row, 0, col, 0))
        if spot.mirrored:
            G = lax.dynamic_update_slice(G, part.transpose(2, 3, 0, 1), (col, 0, row, 0))
        return G, None

    if len(starts) == 1:
        return write(G, starts[0])[0]
    i, j = (jnp.asarray(s) for s in zip(*starts, strict=True))
    return lax.scan(write, G, (i, j))[0]


@eqx.filter_jit
def gram_matrix(blocks: Blocks, theta: PyTree, others: Blocks | None = None, options: Options | None = None) -> Array:
    """G (n, m) of all blocks, compiled."""
    return matrix(blocks, theta, others, "full", options or Options())
