"""The empirical neural tangent kernel of a per-sample model: ``gram`` and its variants."""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, PyTree

from chordflow.kernel.engine import Options, Setup, diagonal_blocks, matrix, num_samples
from chordflow.kernel.report import GramPlan, describe
from chordflow.kernel.samples import PerSample, pull, push
from chordflow.kernel.trace import count_flops
from chordflow.parameters import trainable_spec


def gram(
    model: Callable[[Any, Any], Array],
    params: PyTree,
    inputs: PyTree,
    inputs2: PyTree = None,
    *,
    trainable: PyTree = None,
    memory: int | None = None,
    accumulate: DTypeLike | None = None,
) -> Float[Array, "n q m q"]:
    """G[n, q, m, r] = Σₖ ∂x_q(inputsₙ)/∂θₖ ∂x_r(inputs2ₘ)/∂θₖ, the empirical neural tangent kernel (2.18), exactly.

    Parameters
    ----------
    model
        ``model(params, input) -> (Q,)`` for one input, as :class:`chordflow.Problem` takes it.
    params
        Any pytree; floating leaves are trainable.
    inputs, inputs2
        Arrays (N, ...) and (M, ...) or pytrees of them. Without ``inputs2`` the matrix is that of ``inputs`` with
        themselves and only one triangle is computed.
    trainable
        As for :class:`chordflow.Problem`: None, a predicate on leaves, or a pytree prefix of booleans.
    memory
        Bytes that may be used in all; less than :func:`gram_plan` reports costs time. None: what the machine has.
    accumulate
        dtype of sums and result. None keeps the model's; ``jnp.float64`` with a float32 model runs the network in
        float32 and adds up in float64 (which must be switched on).

    Returns
    -------
    (N, Q, M, Q); reshaped to (NQ, MQ) it is DDᵀ with rows sample-major, output-minor.

    Raises
    ------
    MemoryError
        Before anything is allocated, with the numbers and the ways out.
    ValueError
        If the model does not return one array (Q,), the inputs do not share their first axis, or nothing is trainable.

    Notes
    -----
    A dense layer a → Wa + b with output cotangents h costs N²(d_in + Q²d_out) instead of N²Q²d_in d_out, and no array
    of the size of θ is formed. Other layers: see :func:`gram_plan`. Works inside ``jit`` and ``vmap``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> model = lambda w, z: jnp.tanh(w @ z)
    >>> gram(model, jnp.zeros((2, 3)), jnp.ones((4, 3)))[0, :, 1].tolist()
    [[3.0, 0.0], [0.0, 3.0]]
    """
    theta, block, other = _prepare(model, params, inputs, inputs2, trainable)
    return _gram(theta, block, other, _options(memory, accumulate))


def gram_trace(
    model: Callable[[Any, Any], Array],
    params: PyTree,
    inputs: PyTree,
    inputs2: PyTree = None,
    *,
    trainable: PyTree = None,
    memory: int | None = None,
    accumulate: DTypeLike | None = None,
) -> Float[Array, "n m"]:
    """Σ_q G[n, q, m, q] (N, M): the kernel of samples, summed (not averaged) over outputs; arguments as :func:`gram`.

    Q² times smaller than G, and Q times cheaper: a dense layer costs N²(d_in + Q d_out).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> gram_trace(lambda w, z: jnp.tanh(w @ z), jnp.zeros((2, 3)), jnp.ones((2, 3))).tolist()
    [[6.0, 6.0], [6.0, 6.0]]
    """
    theta, block, other = _prepare(model, params, inputs, inputs2, trainable)
    return _gram_trace(theta, block, other, _options(memory, accumulate))


def gram_blocks(
    model: Callable[[Any, Any], Array],
    params: PyTree,
    inputs: PyTree,
    *,
    trainable: PyTree = None,
    memory: int | None = None,
    accumulate: DTypeLike | None = None,
) -> Float[Array, "n q q"]:
    """G[n, q, n, r] (N, Q, Q): each sample with itself, in time and memory linear in N; arguments as :func:`gram`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> gram_blocks(lambda w, z: jnp.tanh(w @ z), jnp.zeros((2, 3)), jnp.ones((1, 3))).tolist()
    [[[3.0, 0.0], [0.0, 3.0]]]
    """
    theta, block, _ = _prepare(model, params, inputs, None, trainable)
    return _gram_blocks(theta, block, _options(memory, accumulate))


def gram_rows(
    model: Callable[[Any, Any], Array],
    params: PyTree,
    inputs: PyTree,
    *,
    rows: int | None = None,
    trainable: PyTree = None,
    memory: int | None = None,
    accumulate: DTypeLike | None = None,
) -> Iterator[tuple[slice, Float[Array, "b q n q"]]]:
    """G in pieces of ``rows`` samples, as (slice of samples, G[slice]): for a file that is written piece by piece.

    Arguments as :func:`gram`; ``rows`` None takes as many as make a piece of 64 MiB. All pieces but a ragged last one
    share one compiled program, and so does that one: it is cut from a piece that overlaps the one before.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> pieces = gram_rows(lambda w, z: jnp.tanh(w @ z), jnp.zeros((2, 3)), jnp.ones((5, 3)), rows=2)
    >>> [(where.start, where.stop, piece.shape) for where, piece in pieces]
    [(0, 2, (2, 2, 5, 2)), (2, 4, (2, 2, 5, 2)), (4, 5, (1, 2, 5, 2))]
    """
    theta, block, _ = _prepare(model, params, inputs, None, trainable)
    options, num = _options(memory, accumulate), num_samples(block)
    if rows is None:
        out = eqx.filter_eval_shape(lambda b, t: b(t), block, theta)
        rows = max(1, 2**26 // (num * out.shape[1] ** 2 * jnp.dtype(options.accumulate or out.dtype).itemsize))
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    size = min(rows, num)
    for start in range(0, num, size):
        first = min(start, num - size)
        part = jax.tree.map(lambda x, i=first: x[i : i + size], block.samples)
        piece = _gram(theta, PerSample(model, part, block.frozen), block, options)
        yield slice(start, min(start + size, num)), piece[start - first :]


def gram_mv(
    model: Callable[[Any, Any], Array],
    params: PyTree,
    inputs: PyTree,
    v: Float[Array, "m q"],
    inputs2: PyTree = None,
    *,
    trainable: PyTree = None,
) -> Float[Array, "n q"]:
    """Σ G[n, q, m, r] v[m, r] (N, Q) without the matrix: Dᵀ by one reverse-mode pass, D by one forward-mode pass.

    ``v`` (M, Q) is like the outputs on ``inputs2`` (``inputs`` where that is None).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> gram_mv(lambda w, z: jnp.tanh(w @ z), jnp.zeros((2, 3)), jnp.ones((2, 3)), jnp.ones((2, 2))).tolist()
    [[6.0, 6.0], [6.0, 6.0]]
    """
    theta, block, other = _prepare(model, params, inputs, inputs2, trainable)
    expected = eqx.filter_eval_shape(lambda b, t: b(t), other or block, theta).shape
    if v.shape != expected:
        raise ValueError(f"gram_mv: v must be like the outputs {expected}, got {v.shape}")
    return push((block,), theta, pull((other or block,), theta, (v,)))[0]


def gram_plan(
    model: Callable[[Any, Any], Array],
    params: PyTree,
    inputs: PyTree,
    inputs2: PyTree = None,
    *,
    kind: str = "full",
    trainable: PyTree = None,
    memory: int | None = None,
    accumulate: DTypeLike | None = None,
) -> GramPlan:
    """How :func:`gram` (or, by ``kind`` "trace" or "blocks", a variant) would work: rules, operations and memory.

    From shapes alone: ``params`` and ``inputs`` may be trees of ``jax.ShapeDtypeStruct``. Print it, or read
    ``plan.rules``, ``plan.flops`` and ``plan.peak_bytes``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> plan = gram_plan(lambda p, z: p["w"] @ z + p["b"], {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}, jnp.ones((5, 3)))
    >>> plan.rules
    {"['b']": 'bias with pairs', "['w']": 'dense pairs'}
    """
    if kind not in ("full", "trace", "blocks"):
        raise ValueError(f"kind must be 'full', 'trace' or 'blocks', got {kind!r}")
    params, inputs, inputs2 = (jax.tree.map(_as_array, tree) for tree in (params, inputs, inputs2))
    theta, block, other = _prepare(model, params, inputs, inputs2, trainable)
    options, others = _options(memory, accumulate), None if other is None else (other,)
    setup = Setup.of((block,), theta, others, kind, options)

    def program(theta: PyTree, samples: PyTree, samples2: PyTree) -> Any:
        here = PerSample(block.fn, samples, block.frozen)
        there = None if samples2 is None else (PerSample(block.fn, samples2, block.frozen),)
        if kind == "blocks":
            return diagonal_blocks((here,), theta, options)
        return matrix((here,), theta, there, kind, options)

    flops = count_flops(program, theta, block.samples, None if other is None else other.samples)
    return describe(setup, theta, kind, flops)


@eqx.filter_jit
def _gram(theta: PyTree, block: PerSample, other: PerSample | None, options: Options) -> Array:
    G = matrix((block,), theta, None if other is None else (other,), "full", options)
    q = jax.eval_shape(block, theta).shape[1]
    return G.reshape(G.shape[0] // q, q, G.shape[1] // q, q)


@eqx.filter_jit
def _gram_trace(theta: PyTree, block: PerSample, other: PerSample | None, options: Options) -> Array:
    return matrix((block,), theta, None if other is None else (other,), "trace", options)


@eqx.filter_jit
def _gram_blocks(theta: PyTree, block: PerSample, options: Options) -> Array:
    return diagonal_blocks((block,), theta, options)[0]


def _prepare(
    model: Callable[[Any, Any], Array], params: PyTree, inputs: PyTree, inputs2: PyTree, trainable: PyTree
) -> tuple[PyTree, PerSample, PerSample | None]:
    theta, frozen = eqx.partition(params, trainable_spec(params, trainable))
    block = PerSample(model, _samples("inputs", inputs), frozen)
    return theta, block, None if inputs2 is None else PerSample(model, _samples("inputs2", inputs2), frozen)


def _samples(name: str, tree: PyTree) -> PyTree:
    tree = jax.tree.map(lambda x: x if isinstance(x, Array | np.ndarray) else jnp.asarray(x), tree)
    shapes = [x.shape for x in jax.tree.leaves(tree)]
    if not shapes or len({shape[:1] for shape in shapes}) != 1 or shapes[0][:1] in ((), (0,)):
        raise ValueError(f"{name} must be arrays that share a first axis of at least one sample, got {shapes}")
    return tree


def _options(memory: int | None, accumulate: DTypeLike | None) -> Options:
    if memory is not None and memory <= 0:
        raise ValueError(f"memory must be a positive number of bytes, got {memory}")
    if accumulate is None:
        return Options(memory)
    dtype = jnp.dtype(accumulate)
    if not jnp.issubdtype(dtype, jnp.floating) or (dtype.itemsize == 8 and not jax.config.read("jax_enable_x64")):
        raise ValueError(
            f"accumulate must be a floating dtype that is switched on, got {dtype.name}: "
            'jax.config.update("jax_enable_x64", True) switches float64 on'
        )
    return Options(memory, dtype)


def _as_array(x: Any) -> Any:
    """A shape as an array that takes no memory."""
    return np.broadcast_to(np.zeros((), x.dtype), x.shape) if isinstance(x, jax.ShapeDtypeStruct) else x
