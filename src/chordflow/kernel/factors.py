"""What a contraction needs of each sample: operands and cotangents of the uses, or a leaf's part of the Jacobian."""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from chordflow.kernel.plan import TILE, Group
from chordflow.kernel.trace import Traced
from chordflow.kernel.uses import OneHot, Use

Operand = Array | OneHot


class Part(eqx.Module):
    """Uses of one orientation, stacked along a: X (N, A, B, C) and H (N, Q, A, B, D)."""

    x: Operand
    h: Array
    swapped: bool = eqx.field(static=True)


class Factors(eqx.Module):
    """One block's samples: finished ``columns`` of D, each (N, Q, some of K); ``forming``, per leaf and use the (X, H)
    of further columns; ``pairs``, per group of pairs its parts.
    """

    columns: tuple[Array, ...]
    forming: tuple[tuple[tuple[Operand, Array], ...], ...]
    pairs: tuple[tuple[Part, ...], ...]


def sample_factors(traced: Traced, groups: Sequence[Group], leaves: Sequence[Array], sample: Any) -> Factors:
    """Factors of one sample, without the axis N."""
    q = traced.out.shape[0]
    if traced.forward_only:
        jac = jax.jacfwd(lambda leaves: traced.run(leaves, sample, _zeros(traced))[0])(list(leaves))
        return Factors(_beside(traced, [jac[group.leaf].reshape(q, -1) for group in groups]), (), ())
    tapped = [group.leaf for group in groups if group.leaf in traced.direct]

    def fn(taps: list[Array], at_leaves: dict[int, Array]) -> tuple[Array, list[Array | None]]:
        return traced.run([at_leaves.get(i, leaf) for i, leaf in enumerate(leaves)], sample, taps)

    out, pull, records = jax.vjp(fn, _zeros(traced), {i: leaves[i] for i in tapped}, has_aux=True)
    cotangents, direct = jax.vmap(pull)(jnp.eye(q, dtype=out.dtype))
    seen = _Seen(traced, records, cotangents)
    finished = [
        direct[group.leaf].reshape(q, -1) if group.leaf in direct else seen.jacobian(group, leaves[group.leaf])
        for group in groups
        if group.rule == "columns" and not group.later
    ]
    return Factors(
        _beside(traced, finished),
        tuple(tuple((x, h) for _, x, h in seen.of(group.leaf)) for group in groups if group.later),
        tuple(seen.parts(group) for group in groups if group.rule == "pairs"),
    )


def finish(traced: Traced, groups: Sequence[Group], factors: Factors) -> Factors:
    """All columns formed; ``factors`` with the leading axis N."""
    if not factors.forming:
        return factors
    columns = list(factors.columns)
    for group, terms in zip([group for group in groups if group.later], factors.forming, strict=True):
        uses = [use for use in traced.uses if use.view.leaf == group.leaf]
        columns.append(jax.vmap(lambda terms, uses=uses, group=group: _form(group, uses, terms))(terms))
    return Factors(_beside(traced, columns), (), factors.pairs)


def _form(group: Group, uses: Sequence[Use], terms: Sequence[tuple[Operand, Array]]) -> Array:
    """J (Q, K) of one leaf, in an order of entries that only the group knows: the same in all samples and blocks."""
    if group.layout is None:
        parts = [use.jacobian(x, h) for use, (x, h) in zip(uses, terms, strict=True)]
    else:
        # As the products come, without the copy that sorting entries as the leaf has them would take.
        swapped = [use.layout != group.layout for use in uses]
        parts = [use.product(x, h, swapped=s) for use, (x, h), s in zip(uses, terms, swapped, strict=True)]
    return reduce(add, parts).reshape(parts[0].shape[0], -1)


def _beside(traced: Traced, columns: Sequence[Array]) -> tuple[Array, ...]:
    """Columns of narrow leaves side by side; wide ones stay alone, because copying them costs more than a product."""
    columns = [c.astype(traced.out.dtype) for c in columns]
    narrow = [c for c in columns if c.shape[-1] < TILE]
    wide = tuple(c for c in columns if c.shape[-1] >= TILE)
    return (*wide, jnp.concatenate(narrow, axis=-1)) if narrow else wide


def _zeros(traced: Traced) -> list[Array]:
    return [jnp.zeros(s.shape, s.dtype) for s in traced.structs]


class _Seen:
    """Records and cotangents of one sample, by leaf."""

    def __init__(self, traced: Traced, records: list[Array | None], cotangents: list[Array]):
        self.traced, self.cotangents = traced, cotangents
        self.uses = list(zip(traced.uses, records, strict=True))

    def of(self, leaf: int) -> list[tuple[Use, Operand, Array]]:
        """(use, X, H) of a leaf."""
        found = []
        for use, record in self.uses:
            if use.view.leaf == leaf:
                h = use.cotangent(self.cotangents[use.tap]).astype(self.traced.out.dtype)
                found.append((use, use.operand(record, h.dtype), h))
        return found

    def jacobian(self, group: Group, like: Array) -> Array:
        """J (Q, K) of a group's leaf; zero where the function does not read it."""
        found = self.of(group.leaf)
        if not found:
            return jnp.zeros((self.traced.out.shape[0], like.size), like.dtype)
        return _form(group, [use for use, _, _ in found], [(x, h) for _, x, h in found])

    def parts(self, group: Group) -> tuple[Part, ...]:
        """Parts of a group of pairs: uses of one orientation and kind together."""
        stacks: dict[tuple[bool, bool], list[tuple[Operand, Array]]] = {}
        taps = [{use.tap: use.sign for use, _ in self.uses if use.view.leaf == bias} for bias in group.biases]
        for use, x, h in self.of(group.leaf):
            if not isinstance(x, OneHot):
                x = x.astype(h.dtype)
                ones = [jnp.full((*x.shape[:2], 1), signs.get(use.tap, 0.0), x.dtype) for signs in taps]
                x = jnp.concatenate([x, *ones], axis=-1)
            key = (use.layout != group.layout, isinstance(x, OneHot))
            stacks.setdefault(key, []).append((x, h))
        return tuple(
            Part(_stack([x for x, _ in pieces]), jnp.concatenate([h for _, h in pieces], axis=1), swapped)
            for (swapped, _), pieces in stacks.items()
        )


def _stack(operands: list[Any]) -> Operand:
    if isinstance(operands[0], OneHot):
        return OneHot(jnp.concatenate([x.index for x in operands]), operands[0].size)
    return jnp.concatenate(operands)


def batch_factors(traced: Traced, groups: Sequence[Group], leaves: Sequence[Array]) -> Callable[[Any], Factors]:
    """Factors of many samples: all arrays with a leading N."""
    return jax.vmap(lambda sample: sample_factors(traced, groups, leaves, sample))
