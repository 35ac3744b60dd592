"""What one use of a parameter leaf contributes to the Jacobian: outer products of an operand and a cotangent."""

import itertools
import math
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from chordflow.kernel.views import Axes, Move, View

# Up to so many positions outer products are multiplied and added elementwise, in one fused pass; a matrix product of
# so short a sum, one for each sample, costs more than it computes.
OUTER = 4


class Layout(NamedTuple):
    """Which axes of the base are shared (b), which the operand has (c) and which the cotangent has (d)."""

    moves: tuple[Move, ...]
    b: Axes
    c: Axes
    d: Axes

    @property
    def swapped(self) -> "Layout":
        """Operand and cotangent exchanged: W where this is Wᵀ."""
        return Layout(self.moves, self.b, self.d, self.c)


class OneHot(eqx.Module):
    """Rows of the identity: X[..., a, 0, c] = 1 where c = ``index[..., a]``; a negative index is a row of zeros."""

    index: Array
    size: int = eqx.field(static=True)


@dataclass(frozen=True)
class Use:
    """One equation that reads a leaf, in the form J[q; b, c, d] = Σₐ h[q, a, b, d] x[a, b, c].

    ``x_axes`` are the axes (a, b, c) of the recorded operand, ``h_axes`` the axes (a, b, d) of the tap. A bias has no
    operand: x = ``sign``. A lookup's operand are row numbers; its c is ``rows``.
    """

    kind: str
    view: View
    layout: Layout
    tap: int
    sizes: tuple[int, int, int, int]  # a, b, c, d
    x_axes: tuple[Axes, Axes, Axes]
    h_axes: tuple[Axes, Axes, Axes]
    form: tuple[Axes, Axes]  # J[b, c, d] reshaped and transposed has the axes of the base
    sign: float = 1.0

    def operand(self, record: Array | None, dtype: jnp.dtype) -> Array | OneHot:
        """X (A, B, C), without the batch."""
        a, b, c, _ = self.sizes
        if record is None:
            return jnp.full((a, b, c), self.sign, dtype)
        x = record.transpose(*(i for axes in self.x_axes for i in axes))
        return OneHot(x.reshape(a), c) if self.kind == "lookup" else x.reshape(a, b, c)

    def cotangent(self, h: Array) -> Array:
        """H (Q, A, B, D) from the cotangents (Q, ...) of the tap."""
        a, b, _, d = self.sizes
        return h.transpose(0, *(i + 1 for axes in self.h_axes for i in axes)).reshape(h.shape[0], a, b, d)

    def product(self, x: Array | OneHot, h: Array, *, swapped: bool = False) -> Array:
        """Σₐ h[q, a, b, d] x[a, b, c] as (Q, B, D, C), or (Q, B, C, D) where ``swapped``: Q A B C D multiplications."""
        if isinstance(x, OneHot):
            rows = jnp.where(x.index < 0, x.size, x.index)
            j = jax.vmap(lambda h: jnp.zeros((x.size, h.shape[-1]), h.dtype).at[rows].add(h[:, 0], mode="drop"))(h)
            return j[:, None] if swapped else j[:, None].mT
        x = x.astype(h.dtype)
        if x.shape[0] <= OUTER:
            j = reduce(add, [h[:, a, :, :, None] * x[None, a, :, None] for a in range(x.shape[0])])
        else:  # einsum would exchange the operands, and copy to put d before c
            j = lax.dot_general(h, x, (((1,), (0,)), ((2,), (1,))), precision="highest").swapaxes(0, 1)
        return j.mT if swapped else j

    def jacobian(self, x: Array | OneHot, h: Array) -> Array:
        """J (Q, *leaf) from X and H."""
        shape, perm = self.form
        j = self.product(x, h, swapped=True)
        j = j.reshape(-1, *shape).transpose(0, *(p + 1 for p in perm)).reshape(-1, *self.view.base)
        for move in reversed(self.view.moves):
            j = move.undo(j)
        return j

    def in_scan(self, length: int, depth: int, tap: int) -> "Use":
        """The use as seen from outside a scan of ``length``: time, now axis 0, joins a, or b for a scanned leaf."""
        pin = next((axis for level, axis in self.view.pins if level == depth), None)
        a, b, c, d = self.sizes
        group = 0 if pin is None else 1

        def later(axes: tuple[Axes, Axes, Axes]) -> tuple[Axes, Axes, Axes]:
            moved = [tuple(i + 1 for i in group) for group in axes]
            moved[group] = (0, *moved[group])
            return (moved[0], moved[1], moved[2])

        x_axes = self.x_axes if self.kind == "bias" else later(self.x_axes)
        use = replace(self, tap=tap, x_axes=x_axes, h_axes=later(self.h_axes))
        if pin is None:
            return replace(use, sizes=(a * length, b, c, d))
        return replace(
            use,
            sizes=(a, b * length, c, d),
            layout=self.layout._replace(b=(pin, *self.layout.b)),
            form=_form(self.view, (pin, *self.layout.b), self.layout.c, self.layout.d),
        )


def _form(view: View, b: Axes, c: Axes, d: Axes) -> tuple[Axes, Axes]:
    """Shape of the axes (b, c, d) and the permutation that sorts them."""
    order = (*b, *c, *d)
    return tuple(view.base[i] for i in order), tuple(sorted(range(len(order)), key=order.__getitem__))


def _by_base(view: View, dims: Axes) -> list[int]:
    """Dimensions of a view in the order of the base's axes, so that all uses of one layout agree."""
    return sorted(dims, key=lambda i: _rank(view, i))


def _rank(view: View, dim: int) -> int:
    axis = view.axes[dim]
    return -1 if axis is None else axis


def _count(view: View, dims: list[int]) -> int:
    return math.prod(view.shape[i] for i in dims)


def _base_axes(view: View, dims: Axes | list[int]) -> Axes:
    return tuple(axis for axis in (view.axes[i] for i in dims) if axis is not None)


def dense_use(view: View, side: int, dimension_numbers: tuple, x_shape: Axes, tap: int) -> Use:
    """Operand ``side`` of dot_general: c is what is summed, b the batch, d the leaf's own axes, a the activation's."""
    contract, batch = dimension_numbers
    w_dims = {"c": tuple(contract[side]), "b": tuple(batch[side])}
    x_of = dict(
        zip(
            w_dims["c"] + w_dims["b"],
            tuple(contract[1 - side]) + tuple(batch[1 - side]),
            strict=True,
        )
    )
    free = tuple(i for i in range(len(view.shape)) if i not in x_of)
    b, c, d = (_by_base(view, dims) for dims in (w_dims["b"], w_dims["c"], free))
    x_free = tuple(i for i in range(len(x_shape)) if i not in x_of.values())
    # Axes of the output: batch, then what is left of the left and of the right operand.
    first = len(w_dims["b"])
    x_out, w_out = (first + len(free), first) if side == 0 else (first, first + len(x_free))
    layout = Layout(view.moves, _base_axes(view, b), _base_axes(view, c), _base_axes(view, d))
    return Use(
        kind="dense",
        view=view,
        layout=layout,
        tap=tap,
        sizes=(math.prod(x_shape[i] for i in x_free), _count(view, b), _count(view, c), _count(view, d)),
        x_axes=(x_free, tuple(x_of[i] for i in b), tuple(x_of[i] for i in c)),
        h_axes=(
            tuple(range(x_out, x_out + len(x_free))),
            tuple(w_dims["b"].index(i) for i in b),
            tuple(w_out + free.index(i) for i in d),
        ),
        form=_form(view, layout.b, layout.c, layout.d),
    )


def bias_use(view: View, tap: int, tap_axes: tuple[int | None, ...], tap_shape: Axes, sign: float) -> Use:
    """A leaf that is added: d are its axes, a those along which it is repeated. ``tap_axes``: of the tap, per axis."""
    dims = _by_base(view, tuple(i for i, axis in enumerate(view.axes) if axis is not None))
    d = tuple(axis for axis in (tap_axes[i] for i in dims) if axis is not None)
    a = tuple(i for i in range(len(tap_shape)) if i not in d)
    layout = Layout(view.moves, (), (), _base_axes(view, dims))
    return Use(
        kind="bias",
        view=view,
        layout=layout,
        tap=tap,
        sizes=(math.prod(tap_shape[i] for i in a), 1, 1, math.prod(tap_shape[i] for i in d)),
        x_axes=((), (), ()),
        h_axes=(a, (), d),
        form=_form(view, (), (), layout.d),
        sign=sign,
    )


def lookup_use(view: View, axis: int, tap: int, tap_shape: Axes, d_out: Axes) -> Use:
    """Rows of a table: c is the table's axis ``axis``, d the others, which are the axes ``d_out`` of the output."""
    others = tuple(i for i in range(len(view.shape)) if i != axis)
    d = _by_base(view, others)
    a = tuple(i for i in range(len(tap_shape)) if i not in d_out)
    layout = Layout(view.moves, (), _base_axes(view, (axis,)), _base_axes(view, d))
    return Use(
        kind="lookup",
        view=view,
        layout=layout,
        tap=tap,
        sizes=(math.prod(tap_shape[i] for i in a), 1, view.shape[axis], math.prod(view.shape[i] for i in d)),
        x_axes=(tuple(range(len(a))), (), ()),
        h_axes=(a, (), tuple(d_out[others.index(i)] for i in d)),
        form=_form(view, (), layout.c, layout.d),
    )


def convolution_use(view: View, dimension_numbers: tuple, groups: int, out_shape: Axes, tap: int) -> Use:
    """The kernel of a convolution: a are positions, b feature groups, c window and input channels of a group."""
    _, rhs_spec, out_spec = dimension_numbers
    out_axis, in_axis, *window = rhs_spec
    sizes = [view.shape[i] for i in (*window, in_axis)]
    per_group = view.shape[out_axis] // groups
    positions = (out_spec[0], *out_spec[2:])
    num = len(positions)
    # J[b, c, d] has the axes group, window, input channel, channel in the group; a channel is (group, the last).
    shape = (groups, *sizes, per_group)
    at = {axis: (1 + i,) for i, axis in enumerate((*window, in_axis))} | {out_axis: (0, len(shape) - 1)}
    order = _by_base(view, tuple(at))
    # Not sorted: entries of X have the order of the window, and only uses of one order are comparable.
    c = _base_axes(view, (*window, in_axis))
    d = _base_axes(view, (out_axis,))
    return Use(
        kind="convolution",
        view=view,
        layout=Layout(view.moves, d if groups > 1 else (), c, d),
        tap=tap,
        sizes=(math.prod(out_shape[i] for i in positions), groups, math.prod(sizes), per_group),
        # Patches are recorded as (positions, group, window, channel); all windows of one leaf in the same order.
        x_axes=(tuple(range(num)), (num,), (num + 1, num + 2)),
        h_axes=(positions, (), (out_spec[1],)),
        form=(shape, tuple(i for axis in order for i in at[axis])),
    )


def patches(x: Array, kernel: tuple[int, ...], out: tuple[int, ...], params: Any) -> Array:
    """What each output position of a convolution sees, by copying alone: the operand of :func:`convolution_use`.

    (batch, positions, group, window, channel of the group).
    """
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    padding = [
        (0, 0, 0),
        *((lo, hi, d - 1) for (lo, hi), d in zip(params["padding"], params["lhs_dilation"], strict=True)),
    ]
    x = x.transpose(lhs_spec[0], *lhs_spec[2:], lhs_spec[1])
    x = lax.pad(x, jnp.zeros((), x.dtype), [*padding, (0, 0, 0)])
    strides, steps = params["window_strides"], params["rhs_dilation"]
    positions = [out[i] for i in out_spec[2:]]
    window = [kernel[i] for i in rhs_spec[2:]]
    slices = []
    for place in itertools.product(*(range(size) for size in window)):
        start = [k * step for k, step in zip(place, steps, strict=True)]
        limit = [s + (n - 1) * stride + 1 for s, n, stride in zip(start, positions, strides, strict=True)]
        slices.append(lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *strides, 1)))
    groups = params["feature_group_count"]
    patches = jnp.stack(slices, axis=-2)
    patches = patches.reshape(*patches.shape[:-1], groups, x.shape[-1] // groups)
    return jnp.moveaxis(patches, -2, -3)
