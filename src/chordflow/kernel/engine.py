"""The Gram program: factors of all blocks, then tiles of the matrix, of which symmetry saves half."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, PyTree

from chordflow.kernel import contract
from chordflow.kernel.factors import Factors, batch_factors
from chordflow.kernel.plan import Group, choose
from chordflow.kernel.samples import Blocks, PerSample
from chordflow.kernel.trace import Traced, find_uses

TILE = 256  # rows and columns of a tile of the matrix: factors and tile stay in the second-level cache


def trace_blocks(blocks: Blocks, theta: PyTree) -> tuple[Traced, ...]:
    """Uses of the leaves of θ in the function of each block."""
    leaves, tree = jax.tree.flatten(theta)

    def trace(block: PerSample) -> Traced:
        sample = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), block.samples)
        return find_uses(lambda leaves, sample: block.at(jax.tree.unflatten(tree, leaves), sample), leaves, sample)

    return tuple(trace(block) for block in blocks)


def num_samples(block: PerSample) -> int:
    """N of a block."""
    return jax.tree.leaves(block.samples)[0].shape[0]


def plan_groups(traces: Sequence[Traced], theta: PyTree, blocks: Blocks) -> tuple[Group, ...]:
    """The contraction of each leaf, common to all blocks."""
    sizes = [leaf.size for leaf in jax.tree.leaves(theta)]
    return choose(traces, sizes, max(num_samples(block) for block in blocks))


@eqx.filter_jit
def full(blocks: Blocks, theta: PyTree, others: Blocks | None, dtype: DTypeLike | None) -> Array:
    """G (n, m), rows block-, sample-, output-major; ``others`` None: m = n and only one triangle is computed."""
    return _matrix(blocks, theta, others, dtype, contract.full_tile, outputs_per_sample=True)


@eqx.filter_jit
def traced(blocks: Blocks, theta: PyTree, others: Blocks | None, dtype: DTypeLike | None) -> Array:
    """Σ_q G[n q, m q] (N, M)."""
    return _matrix(blocks, theta, others, dtype, contract.trace_tile, outputs_per_sample=False)


@eqx.filter_jit
def diagonal_blocks(blocks: Blocks, theta: PyTree, dtype: DTypeLike | None) -> tuple[Array, ...]:
    """G[n q, n r] (N, Q, Q) of each block."""
    traces = trace_blocks(blocks, theta)
    groups = plan_groups(traces, theta, blocks)
    leaves = jax.tree.leaves(theta)

    def one(traced: Traced, sample: Any) -> Array:
        single = jax.tree.map(lambda x: x[None], sample)
        factors = batch_factors(traced, groups, leaves)(single)
        return contract.full_tile(factors, factors, dtype or traced.out.dtype)[0, :, 0]

    return tuple(
        lax.map(lambda sample, t=trace: one(t, sample), block.samples, batch_size=TILE)
        for block, trace in zip(blocks, traces, strict=True)
    )


def _matrix(
    blocks: Blocks,
    theta: PyTree,
    others: Blocks | None,
    dtype: DTypeLike | None,
    tile: Callable[[Factors, Factors, DTypeLike], Array],
    *,
    outputs_per_sample: bool,
) -> Array:
    leaves = jax.tree.leaves(theta)
    traces = trace_blocks(blocks, theta)
    groups = plan_groups(traces, theta, blocks)
    dtype = dtype or jnp.result_type(*(trace.out for trace in traces))

    def factors_of(some: Blocks) -> list[Factors]:
        return [batch_factors(t, groups, leaves)(block.samples) for t, block in zip(traces, some, strict=True)]

    rows = factors_of(blocks)
    cols = rows if others is None else factors_of(others)
    widths = [trace.out.shape[0] if outputs_per_sample else 1 for trace in traces]
    row_sizes = [num_samples(block) for block in blocks]
    col_sizes = row_sizes if others is None else [num_samples(block) for block in others]
    total = [sum(n * q for n, q in zip(sizes, widths, strict=True)) for sizes in (row_sizes, col_sizes)]
    G = jnp.zeros(total, dtype)
    r0 = 0
    for k, row in enumerate(rows):
        c0 = 0
        for j, col in enumerate(cols):
            if others is not None or k <= j:
                spot = _Spot(r0, c0, widths[k], widths[j], row_sizes[k], col_sizes[j], others is None, k == j)
                G = _fill(G, row, col, spot, lambda a, b: tile(a, b, dtype))
            c0 += widths[j] * col_sizes[j]
        r0 += widths[k] * row_sizes[k]
    return G


class _Spot(eqx.Module):
    """Where a pair of blocks lies in the matrix, in entries, and which part of it is computed."""

    row: int
    col: int
    q: int
    r: int
    n: int
    m: int
    mirrored: bool
    triangle: bool


def _fill(G: Array, rows: Factors, cols: Factors, spot: _Spot, tile: Callable[[Factors, Factors], Array]) -> Array:
    """Write the tiles of one pair of blocks; the last of a ragged row overlaps the one before, with equal entries."""
    step_n, step_m = min(spot.n, max(1, TILE // spot.q)), min(spot.m, max(1, TILE // spot.r))
    starts = [
        (min(i, spot.n - step_n), min(j, spot.m - step_m))
        for i in range(0, spot.n, step_n)
        for j in range(i if spot.triangle else 0, spot.m, step_m)
    ]

    def write(G: Array, start: tuple[Any, Any]) -> tuple[Array, None]:
        i, j = start
        part = tile(_cut(rows, i, step_n), _cut(cols, j, step_m)).reshape(step_n * spot.q, step_m * spot.r)
        G = lax.dynamic_update_slice(G, part, (spot.row + i * spot.q, spot.col + j * spot.r))
        if spot.mirrored:
            G = lax.dynamic_update_slice(G, part.T, (spot.col + j * spot.r, spot.row + i * spot.q))
        return G, None

    if len(starts) == 1:
        return write(G, starts[0])[0]
    i, j = (jnp.asarray(s) for s in zip(*starts, strict=True))
    return lax.scan(write, G, (i, j))[0]


def _cut(factors: Factors, start: Any, length: int) -> Factors:
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, length), factors)
