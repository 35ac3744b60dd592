"""Small models of every kind that the Gram engine has a rule for, and the rule each leaf must get."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen


class Model(NamedTuple):
    """A per-sample function, parameters, inputs, and leaf path -> rule."""

    fn: Callable[[Any, Any], Any]
    params: Any
    inputs: Any
    rules: dict[str, str]


_rng = np.random.default_rng(0)


def normal(*shape: int):
    return jnp.asarray(_rng.normal(size=shape) / np.sqrt(shape[0] if len(shape) > 1 else 1))


def dense_layers(*sizes: int):
    return tuple({"w": normal(m, n), "b": normal(n)} for m, n in itertools.pairwise(sizes))


def mlp(params, x, phi=jnp.tanh):
    for layer in params[:-1]:
        x = phi(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def paired(depth: int):
    return {f"[{i}]['{k}']": "dense pairs" if k == "w" else "bias with pairs" for i in range(depth) for k in "wb"}


def _deep():
    return Model(mlp, dense_layers(9, 8, 8, 8, 8), normal(5, 9), paired(4))


def _ten_outputs():
    return Model(mlp, dense_layers(12, 16, 10), normal(4, 12), paired(2))


def _relu():
    return Model(lambda p, x: mlp(p, x, jax.nn.relu), dense_layers(9, 8, 8), normal(5, 9), paired(2))


def _logsumexp():
    def fn(p, x):
        z = mlp(p, x)
        return z - jax.nn.logsumexp(z, keepdims=True)

    return Model(fn, dense_layers(9, 8, 8), normal(5, 9), paired(2))


def _cnn():
    keys = iter(jax.random.split(jax.random.key(1), 3))

    def conv(*args, **options):
        return eqx.nn.Conv2d(*args, **options, dtype=jnp.float64, key=next(keys))

    params = {
        "strided": conv(2, 4, 3, stride=2, padding=1),
        "dilated": conv(4, 4, 2, dilation=2, padding=((1, 0), (0, 1))),
        "depthwise": conv(4, 4, 2, groups=4),
        "head": normal(4 * 2 * 2, 3),
    }

    def fn(p, x):
        for name in ("strided", "dilated", "depthwise"):
            x = jnp.tanh(p[name](x))
        return x.reshape(-1) @ p["head"]

    rules = {"['head']": "dense pairs"}
    for name in ("strided", "dilated", "depthwise"):
        rules |= {f"['{name}'].weight": "convolution columns", f"['{name}'].bias": "bias columns"}
    return Model(fn, params, normal(4, 2, 8, 8), rules)


def _one_position():
    def fn(p, x):  # the window is as large as the image: a convolution that is a dense layer
        out = jax.lax.conv_general_dilated(x[None], p["k"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return out[0, 0, 0] + p["b"]

    return Model(
        fn,
        {"k": normal(3, 3, 2, 8), "b": normal(8)},
        normal(5, 3, 3, 2),
        {"['k']": "convolution pairs", "['b']": "bias with pairs"},
    )


def _layer_norm(x, gain, bias):
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-6) * gain + bias


def _residual():
    def fn(p, x):
        for layer in p["layers"]:
            x = x + jnp.tanh(_layer_norm(x, layer["gain"], layer["shift"]) @ layer["w"] + layer["b"])
        return x

    layers = [{"gain": 1 + normal(8), "shift": normal(8), "w": normal(8, 8), "b": normal(8)} for _ in range(2)]
    rules = {}
    for i in range(2):
        at = f"['layers'][{i}]"
        rules |= {f"{at}['gain']": "gain", f"{at}['shift']": "bias columns"}
        rules |= {f"{at}['w']": "dense pairs", f"{at}['b']": "bias with pairs"}
    return Model(fn, {"layers": layers}, normal(5, 8), rules)


def _transformer():
    words, width, tokens, heads = 7, 6, 3, 2

    def fn(p, ids):
        x = p["words"][ids] + p["places"]
        z = _layer_norm(x, p["gain"][None], p["shift"][None])
        q, k, v = (jnp.einsum("td,dhe->the", z, p[name]) for name in "qkv")
        weights = jax.nn.softmax(jnp.einsum("the,she->hts", q, k), axis=-1)
        x = x + jnp.einsum("hts,she,hed->td", weights, v, p["o"])
        x = x + jax.nn.gelu(x @ p["up"] + p["up_b"][None]) @ p["down"]
        return x[-1] @ p["words"].T  # tied

    params = {
        "words": normal(words, width),
        "places": normal(tokens, width),
        "gain": 1 + normal(width),
        "shift": normal(width),
        **{name: normal(width, heads, width // heads) for name in "qkv"},
        "o": normal(heads, width // heads, width),
        "up": normal(width, 9),
        "up_b": normal(9),
        "down": normal(9, width),
    }
    rules = {f"['{name}']": "dense columns" for name in ("q", "k", "v", "o", "up", "down")}
    rules |= {"['gain']": "gain", "['shift']": "bias columns", "['up_b']": "bias columns", "['places']": "bias columns"}
    return Model(fn, params, jnp.asarray(_rng.integers(0, words, (4, tokens))), rules | {"['words']": TIED})


TIED = "dense and lookup columns"


def _tied_pairs():
    """Few tokens, wide tables: pairs of swapped uses are the cheaper contraction."""

    def fn(p, ids):
        return (jnp.tanh(p["w"][ids].sum(axis=0)) @ p["w"].T)[:2]

    return Model(
        fn, {"w": normal(60, 50)}, jnp.asarray(_rng.integers(0, 60, (4, 2))), {"['w']": "dense and lookup pairs"}
    )


def _positions():
    """More pairs of positions than are added up at once."""

    def fn(p, x):
        return (jnp.tanh(x @ p["w"] + p["b"][None]) @ p["v"]).sum(axis=0)[:2]

    rules = {"['w']": "dense pairs", "['b']": "bias with pairs", "['v']": "dense pairs"}
    return Model(fn, {"w": normal(60, 60), "b": normal(60), "v": normal(60, 60)}, normal(3, 4, 60), rules)


def _rnn():
    def fn(p, xs):
        def step(h, x):
            h = jnp.tanh(p["hidden"] @ h + p["input"] @ x + p["b"])
            return h, h @ p["out"]

        return jax.lax.scan(step, jnp.zeros(6), xs)[1][-1]

    params = {"hidden": normal(6, 6), "input": normal(6, 3), "b": normal(6), "out": normal(6, 2)}
    rules = {f"['{name}']": "dense columns" for name in ("hidden", "input", "out")}
    return Model(fn, params, normal(4, 5, 3), rules | {"['b']": "bias columns"})


def _scanned_layers():
    def fn(p, x):
        return jax.lax.scan(lambda h, layer: (jnp.tanh(layer["w"] @ h + layer["b"]), None), x, p)[0]

    return Model(
        fn,
        {"w": normal(3, 8, 8), "b": normal(3, 8)},
        normal(5, 8),
        {"['w']": "dense pairs", "['b']": "bias with pairs"},
    )


def _equinox():
    net = eqx.nn.MLP(9, 8, 8, 1, activation=jnp.tanh, dtype=jnp.float64, key=jax.random.key(2))
    rules = {}
    for i in range(2):
        rules |= {f".layers[{i}].weight": "dense pairs", f".layers[{i}].bias": "bias with pairs"}
    return Model(lambda net, x: net(x), net, normal(5, 9), rules)


def _flax():
    net = linen.Sequential([linen.Dense(8, param_dtype=jnp.float64), jnp.tanh, linen.Dense(8, param_dtype=jnp.float64)])
    params = net.init(jax.random.key(3), jnp.ones(9))
    rules = {}
    for i in (0, 2):
        at = f"['params']['layers_{i}']"
        rules |= {f"{at}['kernel']": "dense pairs", f"{at}['bias']": "bias with pairs"}
    return Model(net.apply, params, normal(5, 9), rules)


def _laplacian():
    def fn(p, z):
        def u(z):
            return mlp(p, z)[0]

        return (jnp.trace(jax.hessian(u)(z)) + jnp.sin(u(z)))[None]

    rules = {}
    for i in range(3):
        rules |= {f"[{i}]['w']": "dense columns", f"[{i}]['b']": "bias columns"}
    return Model(fn, dense_layers(2, 5, 4, 1), normal(6, 2), rules)


def _gradient_pairs():
    """A derivative of the network: W and Wᵀ of one leaf, wide enough for pairs."""

    def fn(p, z):
        return jax.grad(lambda z: jnp.sum(jnp.tanh(jnp.tanh(z @ p[0]) @ p[1])))(z)[:1]

    return Model(fn, (normal(40, 40), normal(40, 40)), normal(4, 40), {"[0]": "dense pairs", "[1]": "dense pairs"})


@jax.custom_vjp
def cube(x):
    return x**3


cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))


def _custom_vjp():
    return Model(lambda p, x: mlp(p, x, cube), dense_layers(9, 8, 8), normal(5, 9), paired(2))


def _checkpoint():
    def fn(p, x):
        for layer in p[:-1]:
            x = jax.checkpoint(lambda layer, x: jnp.tanh(x @ layer["w"] + layer["b"]))(layer, x)
        return mlp(p[-1:], x)

    return Model(fn, dense_layers(9, 8, 8), normal(5, 9), paired(2))


def _ensemble():
    def fn(p, x):
        return jnp.mean(jax.vmap(lambda w, v: jnp.tanh(x @ w) @ v)(p["w"], p["v"]), axis=0)

    return Model(
        fn, {"w": normal(3, 9, 8), "v": normal(3, 8, 8)}, normal(5, 9), dict.fromkeys(("['w']", "['v']"), "dense pairs")
    )


def _shared():
    def fn(p, x):
        return jnp.tanh(jnp.tanh(x @ p["w"] + p["b"]) @ p["w"] + p["b"])

    rules = {"['w']": "dense pairs", "['b']": "bias with pairs"}
    return Model(fn, {"w": normal(40, 40), "b": normal(40)}, normal(4, 40), rules)


def _both_signs():
    """A bias that is subtracted once and added once, beside products of a shared matrix, and another beside none."""

    def fn(p, x):
        x = jnp.tanh(jnp.tanh(x @ p["w"] - p["b"]) @ p["w"] + p["b"])
        return jnp.sin(x - p["c"]) + p["c"]

    rules = {"['w']": "dense pairs", "['b']": "bias with pairs", "['c']": "bias columns"}
    return Model(fn, {"w": normal(40, 40), "b": normal(40), "c": normal(40)}, normal(4, 40), rules)


def _products_of_leaves():
    def fn(p, x):
        return x @ (p["a"] @ p["b"]).T - p["c"]

    rules = {"['a']": "dense columns", "['b']": "dense columns", "['c']": "bias columns"}
    return Model(fn, {"a": normal(8, 3), "b": normal(3, 9), "c": normal(8)}, normal(5, 9), rules)


def _scalars():
    """Leaves without axes and a leaf that is not used."""

    def fn(p, x):
        return jnp.tanh(p["scale"] * x + p["shift"])

    return Model(
        fn,
        {"scale": jnp.asarray(1.3), "shift": jnp.asarray(0.2), "idle": jnp.ones(2)},
        normal(5, 3),
        {"['scale']": "gain", "['shift']": "bias columns", "['idle']": "unused"},
    )


ZOO: dict[str, Callable[[], Model]] = {
    "deep": _deep,
    "ten outputs": _ten_outputs,
    "relu": _relu,
    "logsumexp": _logsumexp,
    "cnn": _cnn,
    "one position": _one_position,
    "residual": _residual,
    "transformer": _transformer,
    "tied pairs": _tied_pairs,
    "positions": _positions,
    "rnn": _rnn,
    "scanned layers": _scanned_layers,
    "equinox": _equinox,
    "flax": _flax,
    "laplacian": _laplacian,
    "gradient pairs": _gradient_pairs,
    "custom_vjp": _custom_vjp,
    "checkpoint": _checkpoint,
    "ensemble": _ensemble,
    "shared": _shared,
    "both signs": _both_signs,
    "products of leaves": _products_of_leaves,
    "scalars": _scalars,
}
