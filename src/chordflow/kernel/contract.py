"""Contractions of factors: from operands and cotangents of two sets of samples to a tile of the Gram matrix.

Pairs order the axes of a tile as (q, n, r, m): the long axes m and n of samples lie innermost, so that the products
with numbers that do not depend on q and r run over long rows.
"""

from collections.abc import Callable
from functools import reduce
from operator import add

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike

from chordflow.kernel.factors import Factors, Operand, Part
from chordflow.kernel.uses import OneHot

PRECISION = lax.Precision.HIGHEST
UNROLLED = 8  # pairs of positions whose tiles may be alive together; more are added one after the other


def full_tile(rows: Factors, cols: Factors, dtype: DTypeLike) -> Array | None:
    """G[n, q, m, r] of two sets of samples; None where no leaf serves both."""
    terms = [_product(left, right, dtype) for left, right in zip(rows.columns, cols.columns, strict=True)]
    pairs = [
        _over_positions(_crossed_full if part.swapped != other.swapped else _aligned, part, other, dtype)
        for part, other in _pairs(rows, cols)
    ]
    if pairs:
        terms.append(reduce(add, pairs).transpose(1, 0, 3, 2))
    return reduce(add, terms) if terms else None


def trace_tile(rows: Factors, cols: Factors, dtype: DTypeLike) -> Array | None:
    """Σ_q G[n, q, m, q] of two sets of samples: q joins what is summed; None where no leaf serves both."""
    terms = [
        _product(left.reshape(len(left), -1), right.reshape(len(right), -1), dtype)
        for left, right in zip(rows.columns, cols.columns, strict=True)
    ]
    for part, other in _pairs(rows, cols):
        if part.swapped == other.swapped:
            terms.append(_over_positions(_aligned, _joined(part), _joined(other), dtype)[0, :, 0])
        else:
            terms.append(_over_positions(_crossed_trace, part, other, dtype))
    return reduce(add, terms) if terms else None


Contraction = Callable[[Part, Part, DTypeLike], Array]


def _over_positions(rule: Contraction, part: Part, other: Part, dtype: DTypeLike) -> Array:
    """``rule`` summed over all pairs of positions; it adds up few of them itself, but keeps a tile for each."""
    num_a, num_x = part.h.shape[2], other.h.shape[2]
    if num_a * num_x <= UNROLLED:
        return rule(part, other, dtype)

    def term(i: Array) -> Array:
        return _over_positions(rule, _at(part, i), other, dtype) if num_a > 1 else rule(part, _at(other, i), dtype)

    places = jnp.arange(num_a if num_a > 1 else num_x)
    zero = jnp.zeros(jax.eval_shape(term, places[0]).shape, dtype)
    return lax.scan(lambda total, i: (total + term(i), None), zero, places)[0]


def _at(part: Part, i: Array) -> Part:
    """One position of a part."""
    x = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, i, 1, axis=1), part.x)
    return Part(x, lax.dynamic_slice_in_dim(part.h, i, 1, axis=2), part.swapped)


def _pairs(rows: Factors, cols: Factors) -> list[tuple[Part, Part]]:
    groups = zip(rows.pairs, cols.pairs, strict=True)
    return [(part, other) for parts, others in groups for part in parts for other in others]


def _joined(part: Part) -> Part:
    """Outputs as further entries of d: H (N, 1, A, B, Q D)."""
    n, q, a, b, d = part.h.shape
    h = part.h.transpose(0, 2, 3, 1, 4).reshape(n, 1, a, b, q * d)
    return Part(part.x, h, part.swapped)


def _product(left: Array, right: Array, dtype: DTypeLike) -> Array:
    """left (..., k) · right (..., k): all pairs of leading indices, summed in ``dtype``."""
    k = left.shape[-1]
    flat = jnp.dot(left.reshape(-1, k).astype(dtype), right.reshape(-1, k).astype(dtype).T, precision=PRECISION)
    return flat.reshape(*left.shape[:-1], *right.shape[:-1])


def _inner(left: Operand, right: Operand, dtype: DTypeLike) -> Array:
    """left (n, a, c) · right (m, x, c), either of them rows of the identity: (a, n, x, m)."""
    if isinstance(left, OneHot) and isinstance(right, OneHot):
        i, j = left.index.T[:, :, None, None], right.index.T[None, None]
        return ((i == j) & (i >= 0)).astype(dtype)
    if isinstance(left, OneHot) and not isinstance(right, OneHot):
        columns = right.astype(dtype).transpose(2, 1, 0)  # (c, x, m)
        index = left.index.T
        return jnp.where((index >= 0)[:, :, None, None], columns[jnp.maximum(index, 0)], jnp.zeros((), dtype))
    if isinstance(right, OneHot):
        return _inner(right, left, dtype).transpose(2, 3, 0, 1)
    assert not isinstance(left, OneHot)
    return _product(jnp.swapaxes(left, 0, 1), jnp.swapaxes(right, 0, 1), dtype)


def _operand(x: Operand, b: int) -> Operand:
    return x if isinstance(x, OneHot) else x[:, :, b]


def _aligned(part: Part, other: Part, dtype: DTypeLike) -> Array:
    """Σ over a, x, b of (xₙₐ·xₘₓ)(hₙqₐ·hₘᵣₓ): (q, n, r, m)."""
    terms = []
    for b in range(part.h.shape[3]):
        xx = _inner(_operand(part.x, b), _operand(other.x, b), dtype)
        h, k = (p.h[:, :, :, b].transpose(2, 1, 0, 3) for p in (part, other))  # (a, q, n, d)
        terms += [
            _product(h[a], k[x], dtype) * xx[a, :, x][None, :, None, :]
            for a in range(h.shape[0])
            for x in range(k.shape[0])
        ]
    return reduce(add, terms)


def _crossed(part: Part, other: Part, dtype: DTypeLike) -> list[tuple[Array, Array]]:
    """For uses of W and of Wᵀ: (xₙₐ·hₘᵣₓ) as (a, n, r, x, m) and (hₙqₐ·xₘₓ) as (q, a, n, x, m), for each b."""
    factors = []
    (n, q, a, num_b, _), (m, r, x, _, _) = part.h.shape, other.h.shape
    for b in range(num_b):
        h, k = (p.h[:, :, :, b].reshape(p.h.shape[0], -1, p.h.shape[-1]) for p in (part, other))
        xh = _inner(_operand(part.x, b), k, dtype).reshape(a, n, r, x, m)
        hx = _inner(h, _operand(other.x, b), dtype).reshape(q, a, n, x, m)
        factors.append((xh, hx))
    return factors


def _crossed_full(part: Part, other: Part, dtype: DTypeLike) -> Array:
    """Σ over a, x, b of (xₙₐ·hₘᵣₓ)(hₙqₐ·xₘₓ): (q, n, r, m)."""
    terms = []
    for xh, hx in _crossed(part, other, dtype):
        terms += [hx[:, a, :, None, x] * xh[None, a, :, :, x] for a in range(xh.shape[0]) for x in range(xh.shape[3])]
    return reduce(add, terms)


def _crossed_trace(part: Part, other: Part, dtype: DTypeLike) -> Array:
    """The same with q = r summed: (n, m)."""
    return reduce(add, [jnp.einsum("anqxm,qanxm->nm", xh, hx) for xh, hx in _crossed(part, other, dtype)])
