"""Networks as per-sample functions ``apply(params, input) -> (Q,)`` with parameters in plain tuples and dictionaries.

The functions are frozen dataclasses: two made from the same options are equal and hash alike, so ``jax.jit`` with
the function as a static argument compiles once. None has state, and all support forward and reverse mode, ``vmap``
and derivatives of derivatives.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, PyTree

from chordflow.lookup import chosen, referenced, suggestion

Layer = dict[str, Float[Array | np.ndarray, "..."]]
Input = Float[Array | np.ndarray, "..."]
Init = Callable[[np.random.Generator, tuple[int, ...]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Activation:
    """An elementwise function, and whether it is smooth (C^∞); the theory assumes a Lipschitz Jacobian."""

    fn: Callable[[Float[Array, "..."]], Float[Array, "..."]]
    smooth: bool


ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation(jnp.tanh, smooth=True),
    "sin": Activation(jnp.sin, smooth=True),
    "softplus": Activation(jax.nn.softplus, smooth=True),
    "gelu": Activation(functools.partial(jax.nn.gelu, approximate=False), smooth=True),
    "silu": Activation(jax.nn.silu, smooth=True),
    "sigmoid": Activation(jax.nn.sigmoid, smooth=True),
    "relu": Activation(jax.nn.relu, smooth=False),
    "identity": Activation(lambda x: x, smooth=True),
}
"""Activations by name: softplus log(1 + eᶻ), gelu z Φ(z) (exact, not the tanh approximation), silu z σ(z)."""


def is_smooth(activation: str) -> bool:
    """Whether networks with this activation lie within the theory.

    The Jacobian D of (2.11) is assumed to exist and be Lipschitz: a non-smooth activation must be mollified, relu for
    instance to softplus.

    Examples
    --------
    >>> is_smooth("softplus"), is_smooth("relu")
    (True, False)
    """
    return _activation(activation).smooth


def _activation(name: Any) -> Activation:
    return chosen("model.activation", name, ACTIVATIONS)


# Initial laws. Drawn with NumPy: nothing to compile, and float32 parameters are the float64 ones, rounded.


@dataclass(frozen=True)
class Normal:
    """W ~ N(0, scale²/fan_in), b = 0: outputs of a layer keep the size of its inputs, whatever the width."""

    scale: Any = 1.0  # a positive number, checked below: configurations bring anything

    def __post_init__(self):
        _check_scale(self.scale)

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Float64 ``w`` of ``shape`` (..., d_out), fan_in being the product of all but the last, and ``b`` (d_out,)."""
        return {"w": rng.normal(0.0, _size(self.scale, shape), shape), "b": np.zeros(shape[-1])}


@dataclass(frozen=True)
class Uniform:
    """W and b uniform on ± scale/√fan_in: for scale 1 what PyTorch's ``Linear`` and Equinox do."""

    scale: Any = 1.0

    def __post_init__(self):
        _check_scale(self.scale)

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """As :meth:`Normal.__call__`."""
        size = _size(self.scale, shape)
        return {"w": rng.uniform(-size, size, shape), "b": rng.uniform(-size, size, shape[-1])}


def _size(scale: Any, shape: tuple[int, ...]) -> float:
    return scale / math.sqrt(math.prod(shape[:-1]))


def _check_scale(scale: Any) -> None:
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise ValueError(f"model.scale = {scale!r}: expected a positive number")


INITS: dict[str, type[Normal] | type[Uniform]] = {"normal": Normal, "uniform": Uniform}
"""Initial laws by the name that a configuration gives them."""


# Networks.


class NetworkModel(NamedTuple):
    """A per-sample function and parameters for it: ``apply(params, input) -> (Q,)``; unpacks as that pair."""

    apply: Callable[[Any, Any], Float[Array, " q"]]
    params: PyTree

    @property
    def num_params(self) -> int:
        """K, the number of entries of all floating-point arrays."""
        return sum(leaf.size for leaf in _floats(self.params))


def _floats(tree: PyTree) -> list[Any]:
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, Array | np.ndarray)]
    return [array for array in arrays if jnp.issubdtype(array.dtype, jnp.inexact)]


def _affine(layer: Layer, x: Float[Array, " d"]) -> Float[Array, " e"]:
    return x @ layer["w"] + layer["b"]


@dataclass(frozen=True)
class MLP:
    """f(x) = φ(… φ(x W₁ + b₁) …) W_L + b_L, the last layer without activation; inputs of any shape are flattened.

    Parameters are a tuple of layers ``{"w": (d_in, d_out), "b": (d_out,)}``, whose shapes are the architecture; the
    function holds the activation alone. Output (Q,), of the dtype of parameters and input.
    """

    activation: str = "tanh"

    def __post_init__(self):
        _activation(self.activation)

    @property
    def smooth(self) -> bool:
        """Whether the function is smooth in its parameters."""
        return is_smooth(self.activation)

    def __call__(self, params: Sequence[Layer], sample: Input) -> Float[Array, " q"]:
        """Outputs (Q,) for one input.

        Raises
        ------
        ValueError
            If the input has another number of entries than the first layer has rows.
        """
        phi = _activation(self.activation).fn
        x = jnp.ravel(sample)
        if x.shape != params[0]["w"].shape[:1]:
            raise ValueError(f"MLP: input of shape {sample.shape}, expected {params[0]['w'].shape[0]} entries")
        for layer in params[:-1]:
            x = phi(_affine(layer, x))
        return _affine(params[-1], x)


@dataclass(frozen=True)
class CNN:
    """Two 3×3 convolutions (stride 1, zero padding) with activation and 2×2 mean pooling each, then a dense layer.

    One image of ``image_shape`` = (H, W, C) is expected with that shape, as (H, W) where C = 1, or flat; of an odd
    side the last row or column of a layer is left out of its pooling. Parameters are ``conv1``: ``w`` (3, 3, C, C₁),
    ``b`` (C₁,); ``conv2``: (3, 3, C₁, C₂), (C₂,); ``head``: (⌊H/4⌋⌊W/4⌋C₂, Q), (Q,).
    """

    image_shape: tuple[int, int, int]
    activation: str = "tanh"

    def __post_init__(self):
        _activation(self.activation)

    @property
    def smooth(self) -> bool:
        """Whether the function is smooth in its parameters."""
        return is_smooth(self.activation)

    def __call__(self, params: dict[str, Layer], sample: Input) -> Float[Array, " q"]:
        """Outputs (Q,) for one image.

        Raises
        ------
        ValueError
            If the input has another shape.
        """
        phi = _activation(self.activation).fn
        h, w, c = self.image_shape
        if sample.shape not in {(h, w, c), (h * w * c,), (h, w, *(() if c == 1 else (c,)))}:
            raise ValueError(f"CNN: input of shape {sample.shape}, expected {(h, w, c)} or {(h * w * c,)}")
        x = jnp.reshape(sample, (h, w, c))
        for layer in (params["conv1"], params["conv2"]):
            x = _mean_pool(phi(_convolve(layer, x)))
        return _affine(params["head"], jnp.ravel(x))


def _convolve(layer: Layer, x: Float[Array, "h w c"]) -> Float[Array, "h w d"]:
    """Cross-correlation of one image with kernels (3, 3, C, D), zero outside the image."""
    y = jax.lax.conv_general_dilated(
        x[None], jnp.asarray(layer["w"]), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y[0] + layer["b"][None, None]


def _mean_pool(x: Float[Array, "h w c"]) -> Float[Array, "h2 w2 c"]:
    h, w, c = x.shape
    return jnp.mean(x[: h // 2 * 2, : w // 2 * 2].reshape(h // 2, 2, w // 2, 2, c), axis=(1, 3))


# Constructors.


def mlp(
    widths: Any,
    *,
    activation: str = "tanh",
    seed: Any = 0,
    init: Init = Normal(),
    dtype: DTypeLike | None = None,
) -> NetworkModel:
    """A fully connected network with layers of the given widths, K = Σ (d_in + 1) d_out parameters.

    Parameters
    ----------
    widths
        (d_in, hidden …, Q), at least two positive integers; two make an affine model.
    activation
        A key of :data:`ACTIVATIONS`.
    seed
        Non-negative integer; the draw is that of the seed and the layer, on any device and with any jax.
    init
        The initial law: :class:`Normal`, :class:`Uniform`, or any ``init(rng, shape) -> {"w": …, "b": …}`` in NumPy.
    dtype
        float32 or float64; None for jax's default float.

    Raises
    ------
    ValueError
        Widths that are no positive integers or fewer than two, an unknown activation, a seed out of range, another
        dtype, or float64 while x64 is off.

    Examples
    --------
    >>> apply, params = mlp((64, 64, 10))
    >>> mlp((64, 64, 10)).num_params, apply(params, jnp.zeros(64)).shape
    (4810, (10,))

    An ensemble for ``jax.vmap`` over parameters:

    >>> members = [mlp((64, 64, 10), seed=seed).params for seed in range(3)]
    >>> jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)[0]["w"].shape
    (3, 64, 64)
    """
    widths = _sizes("model.widths", widths, least=2)
    shapes = list(itertools.pairwise(widths))
    return NetworkModel(MLP(activation), tuple(_layers(shapes, seed, init, dtype)))


def cnn(
    input_shape: Any,
    num_outputs: Any,
    *,
    widths: Any = (8, 16),
    activation: str = "tanh",
    seed: Any = 0,
    init: Init = Normal(),
    dtype: DTypeLike | None = None,
) -> NetworkModel:
    """A small convolutional network, :class:`CNN`; fan_in of a convolution is 9 C.

    Parameters
    ----------
    input_shape
        (H, W), (H, W, C), or (d,) for a flat square image of one channel; sides of at least 4.
    num_outputs
        Q.
    widths
        Channels (C₁, C₂) of the two convolutions.
    activation, seed, init, dtype
        As for :func:`mlp`.

    Raises
    ------
    ValueError
        As :func:`mlp`, and for a flat input whose size is no square, or an image with a side below 4.

    Examples
    --------
    >>> cnn((64,), 10).apply.image_shape, cnn((64,), 10).num_params
    ((8, 8, 1), 1898)
    """
    h, w, c = image_shape = _image_shape(_sizes("input_shape", input_shape, least=1))
    first, second = _sizes("model.widths", widths, least=2, most=2)
    (q,) = _sizes("num_outputs", (num_outputs,), least=1)
    shapes = [(3, 3, c, first), (3, 3, first, second), ((h // 4) * (w // 4) * second, q)]
    layers = _layers(shapes, seed, init, dtype)
    return NetworkModel(CNN(image_shape, activation), dict(zip(("conv1", "conv2", "head"), layers, strict=True)))


def _layers(shapes: list[tuple[int, ...]], seed: Any, init: Init, dtype: Any) -> list[Layer]:
    dtype = _float_type(dtype)
    if isinstance(seed, bool) or not hasattr(type(seed), "__index__") or operator.index(seed) < 0:
        raise ValueError(f"seed = {seed!r}: expected a non-negative integer")
    layers = []
    for i, shape in enumerate(shapes):
        # A spawn key, not entropy [seed, i], which is padded with zeros: [0, 0] would be the stream of seed 0.
        rng = np.random.default_rng(np.random.SeedSequence(operator.index(seed), spawn_key=(i,)))
        layers.append({name: jnp.asarray(values, dtype) for name, values in init(rng, shape).items()})
    return layers


def _float_type(dtype: Any) -> Any:
    if dtype is None:
        return jnp.result_type(float)
    name = getattr(dtype, "__name__", str(dtype))  # of jnp.float32, np.dtype("float32") and "float32" alike
    if name not in ("float32", "float64"):
        raise ValueError(f"model.dtype = {dtype!r}: expected float32 or float64")
    if name == "float64" and jnp.result_type(float) != np.float64:
        raise ValueError('model.dtype = float64: x64 is off; set jax.config.update("jax_enable_x64", True), or float32')
    return np.dtype(name)


def _sizes(key: str, sizes: Any, *, least: int, most: int | None = None) -> tuple[int, ...]:
    """The sizes as Python integers: a list from a file and a NumPy shape make equal, hashable models."""
    count = f"{least} " if most == least else f"at least {least} " if least else "a list of "
    listed = list(sizes) if isinstance(sizes, list | tuple) else None
    if (
        listed is None
        or not least <= len(listed) <= (most or len(listed))
        or any(isinstance(n, bool) or not hasattr(type(n), "__index__") or n < 1 for n in listed)
    ):
        raise ValueError(f"{key} = {sizes!r}: expected {count}positive integers")
    return tuple(operator.index(n) for n in listed)


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    side = math.isqrt(shape[0])
    match shape:
        case (size,) if size == side * side:
            image = (side, side, 1)
        case (h, w):
            image = (h, w, 1)
        case (h, w, c):
            image = (h, w, c)
        case _:
            raise ValueError(f"model.name = cnn: input shape {shape}, expected (H, W), (H, W, C) or a flat square")
    if min(image[:2]) < 4:
        raise ValueError(f"model.name = cnn: images of {image[0]} × {image[1]}, expected at least 4 × 4")
    return image


# By name.


def from_reference(reference: str, input_shape: tuple[int, ...], num_outputs: int, seed: int = 0) -> NetworkModel:
    """Import ``package.module:function`` and return its ``(apply, params)`` as a model.

    The function is called as ``function(input_shape, num_outputs, seed)``; ``params`` is any pytree, for instance
    an Equinox module, and ``apply(params, input)`` must return (Q,) for one input, which is checked on shapes alone.
    Importing runs the module's code.

    Raises
    ------
    ValueError
        One line, if the reference has no colon, the module is not found, has no such attribute or one that cannot be
        called, or it returns something else than a pair of a function and parameters with outputs of shape (Q,).
        Exceptions raised inside the module or the function pass through.

    Examples
    --------
    >>> def network(input_shape, num_outputs, seed):
    ...     return mlp((*input_shape, num_outputs), seed=seed)
    >>> import sys
    >>> sys.modules["mynetworks"] = type(sys)("mynetworks")
    >>> sys.modules["mynetworks"].network = network
    >>> from_reference("mynetworks:network", (3,), 2).num_params
    8
    >>> del sys.modules["mynetworks"]
    """
    function = referenced("model.name", reference)
    made = function(input_shape, num_outputs, seed)
    if not isinstance(made, tuple | list) or len(made) != 2 or not callable(made[0]):
        raise ValueError(f"model.name = {reference!r}: returned {_kind(made)}, expected a pair (apply, params)")
    model = NetworkModel(*made)
    floats = _floats(model.params)
    if not floats:
        raise ValueError(f"model.name = {reference!r}: params hold no floating-point arrays, expected trainable ones")
    outputs = eqx.filter_eval_shape(model.apply, model.params, jax.ShapeDtypeStruct(input_shape, floats[0].dtype))
    if getattr(outputs, "shape", None) != (num_outputs,):
        got = f"shape {outputs.shape}" if hasattr(outputs, "shape") else _kind(outputs)
        raise ValueError(
            f"model.name = {reference!r}: apply returned {got} for one input of shape {input_shape}, expected shape "
            f"({num_outputs},)"
        )
    return model


def _kind(value: Any) -> str:
    return f"{type(value).__name__} of length {len(value)}" if isinstance(value, tuple | list) else type(value).__name__


def _build_mlp(input_shape: tuple[int, ...], num_outputs: int, *, widths: Any = (64,), **options: Any) -> NetworkModel:
    hidden = _sizes("model.widths", (widths,) if isinstance(widths, int) else widths, least=0)
    return mlp((math.prod(input_shape), *hidden, num_outputs), **options)


MODELS: dict[str, Callable[..., NetworkModel]] = {"mlp": _build_mlp, "cnn": cnn}
"""Constructors that :func:`build` knows, by the name that a configuration gives them."""

OPTIONS = ("widths", "activation", "init", "scale", "dtype")
"""Keys of the configuration table ``model`` beside ``name``."""


def build(name: str, input_shape: Any, num_outputs: Any, *, seed: Any = 0, **options: Any) -> NetworkModel:
    """Make the network that a configuration describes.

    Parameters
    ----------
    name
        ``mlp``, ``cnn`` or ``package.module:function`` (see :func:`from_reference`, which takes no options).
    input_shape, num_outputs
        The shape of one input, and Q; an MLP flattens its input.
    seed
        As for :func:`mlp`.
    **options
        ``widths``: hidden widths of the MLP (default 64; an integer is one layer, an empty list an affine model) or the
        two numbers of channels of the CNN (default 8, 16). ``activation``: a key of :data:`ACTIVATIONS`. ``init`` and
        ``scale``: ``normal`` or ``uniform`` and its factor (default 1). ``dtype``: ``float32`` or ``float64``.

    Raises
    ------
    ValueError
        One line that names the key, the value and what was expected: an unknown name or option (with the known
        ones), or a value that the constructor refuses.

    Examples
    --------
    >>> build("mlp", (64,), 10, seed=0).num_params
    4810
    >>> build("mlp", (8, 8), 10, widths=[32, 32], activation="sin", init="uniform", scale=0.5).apply
    MLP(activation='sin')
    """
    shape = _sizes("input_shape", input_shape, least=1)
    (q,) = _sizes("num_outputs", (num_outputs,), least=1)
    if isinstance(name, str) and ":" in name:
        if options:
            raise ValueError(f"model.{next(iter(options))}: model.name = {name!r} takes no options, expected none")
        return from_reference(name, shape, q, seed)
    known: dict[str, Callable[..., NetworkModel]] = {**MODELS, "package.module:function": from_reference}
    make = chosen("model.name", name, known)
    for key in options:
        if key not in OPTIONS:
            raise ValueError(f"model.{key} = {options[key]!r}: unknown key, {suggestion(key, OPTIONS, 'model.')}")
    init = chosen("model.init", options.pop("init", "normal"), INITS)
    return make(shape, q, seed=seed, init=init(options.pop("scale", 1.0)), **options)
