"""Where a per-sample function uses its parameters: the only file that reads jaxprs.

A jaxpr is read through ``jax.make_jaxpr``, names of primitives and attributes of equations (``invars``, ``params``).
The walk evaluates one equation after the other, as the interpreter of JAX itself does, and knows of each value whether
it is a rearranged parameter leaf (a :class:`View`) or the untouched output of a use (a :class:`Tapped`). An equation
that consumes a view is a use: a zero *tap* is added to its output, whose cotangent is h, and the other operand is
recorded, which is x. What has no rule is a reason, and its leaf gets one tap on itself.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from chordflow.kernel.uses import Use, bias_use, convolution_use, dense_use, lookup_use, patches
from chordflow.kernel.views import View


class Traced(NamedTuple):
    """What the walk found: shapes of the taps, uses in the order of their records, and leaves without a rule."""

    jaxpr: Any
    num_leaves: int
    uses: tuple[Use, ...]
    structs: tuple[jax.ShapeDtypeStruct, ...]
    direct: dict[int, str]
    out: jax.ShapeDtypeStruct
    forward_only: str | None  # why reverse mode fails

    def run(self, leaves: Sequence[Array], sample: Any, taps: Sequence[Array]) -> tuple[Array, list[Array | None]]:
        """Outputs (Q,) and the records of all uses, for one sample."""
        walk = Walk(taps)
        return _walk(walk, self.jaxpr, self.direct, leaves, sample), walk.records


def find_uses(fn: Callable[[list[Array], Any], Array], leaves: Sequence[Any], sample: Any) -> Traced:
    """Trace ``fn(leaves, sample) -> (Q,)`` at one sample; arguments are arrays or their shapes.

    A leaf with a use that has no rule is taken out and the walk repeated without it, so that the other leaves keep
    theirs.
    """
    jaxpr = jax.make_jaxpr(fn)(list(leaves), sample)
    if len(jaxpr.out_avals) != 1 or jaxpr.out_avals[0].ndim != 1:
        got = ", ".join(str(aval) for aval in jaxpr.out_avals) or "nothing"
        raise ValueError(f"the function must return one array (Q,) for one sample, got {got}")
    out = jax.ShapeDtypeStruct(jaxpr.out_avals[0].shape, jaxpr.out_avals[0].dtype)
    direct: dict[int, str] = {}
    while True:
        walk = Walk()
        jax.eval_shape(partial(_walk, walk, jaxpr, direct), list(leaves), sample)
        if not walk.direct:
            break
        direct = direct | walk.direct
    traced = Traced(jaxpr, len(leaves), tuple(walk.uses), tuple(walk.structs), direct, out, None)
    return traced._replace(forward_only=_forward_only(traced, leaves, sample))


def _walk(walk: "Walk", jaxpr: Any, direct: dict[int, str], leaves: Sequence[Array], sample: Any) -> Array:
    rest = jax.tree.leaves(sample)
    views: list[Mark] = [None if i in direct else View.of(i, leaf.shape) for i, leaf in enumerate(leaves)]
    (out,), marks = walk.run(jaxpr.jaxpr, jaxpr.consts, [*leaves, *rest], [*views, *[None] * len(rest)])
    walk.give_up(marks, "is itself an output")
    return out


def _forward_only(traced: Traced, leaves: Sequence[Any], sample: Any) -> str | None:
    """Why a vector-Jacobian product cannot be formed, or None where it can."""

    def pull(leaves: list[Array], taps: list[Array], sample: Any) -> Any:
        out, back = jax.vjp(lambda leaves, taps: traced.run(leaves, sample, taps)[0], leaves, taps)
        return back(jnp.zeros_like(out))

    try:
        jax.eval_shape(pull, list(leaves), list(traced.structs), sample)
    except (ValueError, TypeError, NotImplementedError) as error:
        return str(error).split("\n", maxsplit=1)[0]
    return None


def has_forward_rule(fn: Callable[[Any], Any], at: Any) -> bool:
    """Whether ``fn`` has a jvp; one with only a custom_vjp has none.

    Traced under jit its jvp does not raise but leaves a ``custom_lin`` behind that cannot be lowered (jax 0.10).
    """
    return "custom_lin[" not in str(jax.make_jaxpr(lambda v: jax.jvp(fn, (v,), (v,))[1])(at))


class Tapped(NamedTuple):
    """A value equal to the output of a use, its axis i being axis ``axes[i]`` of the tap (None: a new unit axis)."""

    tap: int
    axes: tuple[int | None, ...]
    shape: tuple[int, ...]


Mark = View | Tapped | None

# Calls whose body is walked as if it stood in place.
CALLS = {"jit", "pjit", "closed_call", "core_call", "core_closed_call"}
INLINED = CALLS | {"checkpoint", "remat", "remat2"}


@dataclass
class Walk:
    """One pass over a function: collects uses, taps and records; ``taps`` None means zeros, to learn their shapes."""

    taps: Sequence[Array] | None = None
    depth: int = 0
    uses: list[Use] = field(default_factory=list)
    structs: list[jax.ShapeDtypeStruct] = field(default_factory=list)
    records: list[Array | None] = field(default_factory=list)
    direct: dict[int, str] = field(default_factory=dict)

    def new_tap(self, shape: tuple[int, ...], dtype: Any) -> tuple[int, Array]:
        """Number and value of the next tap."""
        index = len(self.structs)
        self.structs.append(jax.ShapeDtypeStruct(shape, dtype))
        return index, jnp.zeros(shape, dtype) if self.taps is None else self.taps[index]

    def run(
        self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], marks: Sequence[Mark]
    ) -> tuple[list[Any], list[Mark]]:
        """Evaluate ``jaxpr`` with marked arguments; outputs and their marks."""
        env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
        known: dict[Any, Mark] = dict(zip(jaxpr.invars, marks, strict=True))
        seen = Counter(v for eqn in jaxpr.eqns for v in eqn.invars if not _is_literal(v))
        seen.update(v for v in jaxpr.outvars if not _is_literal(v))

        def mark(v: Any) -> Mark:
            found = None if _is_literal(v) else known.get(v)
            # The cotangent of a tap is that of the value only while nobody else reads it.
            return None if isinstance(found, Tapped) and seen[v] > 1 else found

        def value(v: Any) -> Any:
            return v.val if _is_literal(v) else env[v]

        for eqn in jaxpr.eqns:
            values, eqn_marks = [value(v) for v in eqn.invars], [mark(v) for v in eqn.invars]
            outs, out_marks = self._equation(eqn, values, eqn_marks)
            env.update(zip(eqn.outvars, outs, strict=True))
            known.update(zip(eqn.outvars, out_marks, strict=True))
        return [value(v) for v in jaxpr.outvars], [mark(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, values: list[Any], marks: list[Mark]) -> tuple[list[Any], list[Mark]]:
        name = eqn.primitive.name
        views = any(isinstance(mark, View) for mark in marks)
        if views or any(mark is not None for mark in marks):
            # Without a parameter inside, a checkpoint is left alone: it saves memory.
            if name in (INLINED if views else CALLS):
                closed = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
                return self.run(getattr(closed, "jaxpr", closed), getattr(closed, "consts", ()), values, marks)
            if name in REARRANGED:
                (out,) = _bind(eqn, values)
                return [out], [self._rearranged(eqn, marks[0])]
        if views:
            answer = RULES[name](self, eqn, values, marks) if name in RULES else f"enters {name}"
            if not isinstance(answer, str):
                return answer
            self.give_up(marks, answer)
        return _bind(eqn, values), [None] * len(eqn.outvars)

    def _rearranged(self, eqn: Any, mark: Mark) -> Mark:
        if mark is None:
            return None
        as_view = mark if isinstance(mark, View) else View(mark.tap, mark.shape, mark.shape, mark.axes)
        out = REARRANGED[eqn.primitive.name](as_view, eqn.params, eqn.outvars[0].aval.shape)
        if isinstance(mark, View):
            if out is None:
                self.give_up([mark], f"{eqn.primitive.name} of a broadcast or scanned parameter")
            return out
        # Another dtype would round the cotangent.
        if out is None or out.moves or out.repeats or eqn.primitive.name == "convert_element_type":
            return None
        return Tapped(mark.tap, out.axes, out.shape)

    def give_up(self, marks: Sequence[Mark], why: str) -> None:
        """Leave the leaves among ``marks`` without a rule."""
        for mark in marks:
            if isinstance(mark, View):
                self.direct.setdefault(mark.leaf, why)

    # --- rules: (outputs, marks), or why there is none ---------------------------------------------------------

    def _dense(self, eqn: Any, values: list[Any], marks: list[Mark]) -> Any:
        if any(isinstance(mark, View) and mark.repeats for mark in marks):
            return "repeated along an axis before a product"
        (out,) = _bind(eqn, values)
        tap, zero = self.new_tap(out.shape, out.dtype)
        for side, mark in enumerate(marks):
            if isinstance(mark, View):
                numbers = eqn.params["dimension_numbers"]
                other = values[1 - side]
                self.uses.append(dense_use(mark, side, numbers, other.shape, tap))
                self.records.append(other)
        return [out + zero], [_fresh(tap, out.shape)]

    def _bias(self, eqn: Any, values: list[Any], marks: list[Mark]) -> Any:
        (out,) = _bind(eqn, values)
        subtracts = eqn.primitive.name == "sub"
        sides = [side for side, mark in enumerate(marks) if isinstance(mark, View)]
        host = marks[1 - sides[0]]
        shared = isinstance(host, Tapped) and host.shape == out.shape and not (subtracts and sides[0] == 0)
        if isinstance(host, Tapped) and shared:
            tap, tap_axes, tap_shape = host.tap, host.axes, self.structs[host.tap].shape
        else:
            tap, zero = self.new_tap(out.shape, out.dtype)
            out, tap_axes, tap_shape = out + zero, tuple(range(out.ndim)), out.shape
        for side in sides:
            view = marks[side]
            assert isinstance(view, View)
            if view.shape != out.shape:  # a scalar, or axes of length 1, are repeated by the addition itself
                view = view.broadcast(out.shape, range(len(view.shape)))
            sign = -1.0 if subtracts and side == 1 else 1.0
            self.uses.append(bias_use(view, tap, tap_axes, tap_shape, sign))
            self.records.append(None)
        return [out], [host if shared else _fresh(tap, out.shape)]

    def _convolution(self, eqn: Any, values: list[Any], marks: list[Mark]) -> Any:
        view, params = marks[1], eqn.params
        if not isinstance(view, View) or isinstance(marks[0], View):
            return "is the image of a convolution"
        if params["batch_group_count"] != 1 or view.repeats or view.pins:
            return "enters a convolution with batch groups, or a scanned or repeated kernel"
        (out,) = _bind(eqn, values)
        tap, zero = self.new_tap(out.shape, out.dtype)
        numbers = tuple(tuple(spec) for spec in params["dimension_numbers"])
        self.uses.append(convolution_use(view, numbers, params["feature_group_count"], out.shape, tap))
        self.records.append(patches(values[0], view.shape, out.shape, params))
        return [out + zero], [_fresh(tap, out.shape)]

    def _lookup(self, eqn: Any, values: list[Any], marks: list[Mark]) -> Any:
        view, numbers = marks[0], eqn.params["dimension_numbers"]
        if not isinstance(view, View) or len(numbers.start_index_map) != 1:
            return "enters gather with several indices"
        (axis,), sizes = numbers.start_index_map, eqn.params["slice_sizes"]
        whole = (*view.shape[:axis], 1, *view.shape[axis + 1 :])
        simple = numbers.collapsed_slice_dims == (axis,) and not numbers.operand_batching_dims
        if not simple or sizes != whole or view.repeats or view.pins:
            return "enters gather with slices, or a scanned or repeated table"
        (out,) = _bind(eqn, values)
        rows, mode = values[1][..., 0], str(eqn.params["mode"])
        if "CLIP" in mode:
            rows = jnp.clip(rows, 0, view.shape[axis] - 1)
        else:  # rows out of bounds are constant NaN
            rows = jnp.where((rows >= 0) & (rows < view.shape[axis]), rows, -1)
        tap, zero = self.new_tap(out.shape, out.dtype)
        self.uses.append(lookup_use(view, axis, tap, out.shape, tuple(numbers.offset_dims)))
        self.records.append(rows)
        return [out + zero], [_fresh(tap, out.shape)]

    def _dynamic_slice(self, eqn: Any, values: list[Any], marks: list[Mark]) -> Any:
        view, sizes = marks[0], eqn.params["slice_sizes"]
        if not isinstance(view, View) or view.repeats or view.pins:
            return "enters dynamic_slice"
        cut = [i for i, (size, full) in enumerate(zip(sizes, view.shape, strict=True)) if size != full]
        if len(cut) != 1 or sizes[cut[0]] != 1:
            return "enters dynamic_slice with slices longer than one row"
        axis = cut[0]
        (out,) = _bind(eqn, values)
        rows = jnp.clip(jnp.asarray(values[1 + axis]), 0, view.shape[axis] - 1)
        tap, zero = self.new_tap(out.shape, out.dtype)
        others = tuple(i for i in range(out.ndim) if i != axis)
        self.uses.append(lookup_use(view, axis, tap, out.shape, others))
        self.records.append(rows.reshape(1))
        return [out + zero], [_fresh(tap, out.shape)]

    def _gain(self, eqn: Any, values: list[Any], marks: list[Mark]) -> Any:
        del values
        both = sum(isinstance(mark, View) for mark in marks) > 1
        if both or (eqn.primitive.name == "div" and isinstance(marks[1], View)):
            return f"enters {eqn.primitive.name}"
        return "gain"

    def _scan(self, eqn: Any, values: list[Any], marks: list[Mark]) -> Any:
        """Emit the scan again: taps are further inputs along time, records further outputs."""
        p = eqn.params
        body, consts_of_body = getattr(p["jaxpr"], "jaxpr", p["jaxpr"]), getattr(p["jaxpr"], "consts", ())
        # Releases name these counts differently; what runs along time has one more axis outside than inside.
        num_carry = sum(v.aval.ndim == w.aval.ndim for v, w in zip(eqn.outvars, body.outvars, strict=True))
        num_xs = sum(v.aval.ndim != w.aval.ndim for v, w in zip(eqn.invars, body.invars, strict=True))
        num_consts = len(values) - num_carry - num_xs
        carried = slice(num_consts, num_consts + num_carry)
        self.give_up(marks[carried], "starts a scan")
        inner: list[Mark] = [mark if isinstance(mark, View) else None for mark in marks]
        inner[carried] = [None] * num_carry
        for i in range(num_consts + num_carry, len(values)):
            view = inner[i]
            inner[i] = view.scanned(self.depth) if isinstance(view, View) else None
            if isinstance(view, View) and inner[i] is None:
                self.give_up([view], "repeated along the time of a scan")
        found = Walk(depth=self.depth + 1)
        arguments = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in body.invars]

        def discover(*args: Any) -> list[Any]:
            outs, out_marks = found.run(body, consts_of_body, args, inner)
            found.give_up(out_marks, "leaves a scan as it is")
            return outs

        jax.eval_shape(discover, *arguments)
        made = [self.new_tap((p["length"], *s.shape), s.dtype) for s in found.structs]
        consts, xs = values[:num_consts], values[num_consts + num_carry :]

        def step(carry: list[Any], slices: tuple[list[Any], list[Array]]) -> tuple[list[Any], Any]:
            walk = Walk(slices[1], self.depth + 1)
            outs, _ = walk.run(body, consts_of_body, [*consts, *carry, *slices[0]], inner)
            return outs[:num_carry], (outs[num_carry:], walk.records)

        carry, (ys, records) = lax.scan(
            step,
            values[carried],
            (xs, [zero for _, zero in made]),
            length=p["length"],
            reverse=p["reverse"],
            unroll=p.get("unroll", 1),
        )
        self.uses += [use.in_scan(p["length"], self.depth, made[use.tap][0]) for use in found.uses]
        self.records += records
        for leaf, why in found.direct.items():
            self.direct.setdefault(leaf, why)
        return [*carry, *ys], [None] * len(eqn.outvars)


RULES: dict[str, Callable[[Walk, Any, list[Any], list[Mark]], Any]] = {
    "dot_general": Walk._dense,
    "add": Walk._bias,
    "add_any": Walk._bias,
    "sub": Walk._bias,
    "mul": Walk._gain,
    "div": Walk._gain,
    "conv_general_dilated": Walk._convolution,
    "gather": Walk._lookup,
    "dynamic_slice": Walk._dynamic_slice,
    "scan": Walk._scan,
}

REARRANGED: dict[str, Callable[[View, dict[str, Any], tuple[int, ...]], View | None]] = {
    "transpose": lambda view, params, _: view.transpose(params["permutation"]),
    "reshape": lambda view, _, shape: view.reshape(shape),
    "squeeze": lambda view, _, shape: view.reshape(shape),
    "rev": lambda view, params, _: view.reverse(params["dimensions"]),
    "broadcast_in_dim": lambda view, params, shape: view.broadcast(shape, params["broadcast_dimensions"]),
    "copy": lambda view, *_: view,
    "copy_p": lambda view, *_: view,
    "convert_element_type": lambda view, params, _: view if jnp.issubdtype(params["new_dtype"], jnp.floating) else None,
}


def _is_literal(atom: Any) -> bool:
    return hasattr(atom, "val")


def _fresh(tap: int, shape: tuple[int, ...]) -> Tapped:
    return Tapped(tap, tuple(range(len(shape))), shape)


def _bind(eqn: Any, values: list[Any]) -> list[Any]:
    outs = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(outs) if eqn.primitive.multiple_results else [outs]


# What moves numbers or compares them is free in a compiler's count; transcendental functions are counted apart.
FREE = {
    "reshape", "squeeze", "transpose", "broadcast_in_dim", "rev", "slice", "dynamic_slice", "dynamic_update_slice",
    "gather", "concatenate", "pad", "iota", "copy", "copy_p", "convert_element_type", "stop_gradient", "split",
    "tanh", "exp", "log", "log1p", "expm1", "sin", "cos", "logistic", "erf", "erf_inv", "rsqrt", "sqrt", "pow",
}  # fmt: skip


def count_flops(fn: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of ``fn``, from shapes alone: 2 for a multiply-add, 1 for other arithmetic."""
    return _flops(jax.make_jaxpr(fn)(*args).jaxpr)


def _convolution_products(eqn: Any) -> int:
    """Multiply-adds of a convolution, without those with padding and with the holes of a dilated image."""
    p, (lhs, rhs) = eqn.params, (v.aval.shape for v in eqn.invars)
    lhs_spec, rhs_spec, out_spec = p["dimension_numbers"]
    out = eqn.outvars[0].aval.shape
    total = out[out_spec[0]] * out[out_spec[1]] * rhs[rhs_spec[1]]
    for i, stride in enumerate(p["window_strides"]):
        starts = np.arange(out[out_spec[2 + i]]) * stride - p["padding"][i][0]
        places = starts[:, None] + np.arange(rhs[rhs_spec[2 + i]]) * p["rhs_dilation"][i]
        index, hole = np.divmod(places, p["lhs_dilation"][i])
        total *= int(np.sum((hole == 0) & (index >= 0) & (index < lhs[lhs_spec[2 + i]])))
    return total // p["batch_group_count"]


def _flops(jaxpr: Any) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        name, size = eqn.primitive.name, eqn.outvars[0].aval.size if eqn.outvars else 0
        inner = [getattr(p, "jaxpr", p) for p in eqn.params.values() if hasattr(getattr(p, "jaxpr", p), "eqns")]
        if inner:
            total += sum(map(_flops, inner)) * (eqn.params["length"] if name == "scan" else 1)
        elif name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            lhs = eqn.invars[0].aval.shape
            total += 2 * size * math.prod(lhs[i] for i in contract)
        elif name == "conv_general_dilated":
            total += 2 * _convolution_products(eqn)
        elif name.startswith(("reduce", "scatter")):
            total += eqn.invars[-1 if name.startswith("scatter") else 0].aval.size
        elif name not in FREE:
            total += size
    return total
