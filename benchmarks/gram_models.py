"""Models of several kinds for benchmarks of the Gram engine: functions of (parameters, one sample)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np


def mlp(params, x):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def normal(*shape, seed=0):
    scale = np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 1.0
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / scale)


def dense_layers(*sizes):
    pairs = enumerate(itertools.pairwise(sizes))
    return tuple({"w": normal(m, n, seed=i), "b": normal(n, seed=i)} for i, (m, n) in pairs)


def cnn(params, x):
    layout = ("NHWC", "HWIO", "NHWC")
    for name in ("first", "second"):
        z = jax.lax.conv_general_dilated(x[None], params[name], (2, 2), "SAME", dimension_numbers=layout)
        x = jnp.tanh(z[0])
    return x.reshape(-1) @ params["head"]


def cnn_params(side, channels):
    flat = (side // 4) ** 2 * 2 * channels
    return {
        "first": normal(3, 3, 1, channels),
        "second": normal(3, 3, channels, 2 * channels),
        "head": normal(flat, 10),
    }


def rnn(params, xs):
    def step(h, x):
        return jnp.tanh(params["hidden"] @ h + params["input"] @ x), None

    return params["out"] @ jax.lax.scan(step, jnp.zeros(len(params["hidden"]), xs.dtype), xs)[0]


def rnn_params(width):
    return {"hidden": normal(width, width), "input": normal(width, 4), "out": normal(2, width)}


def transformer(params, ids):
    x = params["words"][ids]
    for layer in params["layers"]:
        q, k, v = (x @ layer[name] for name in "qkv")
        x = x + jax.nn.softmax(q @ k.T, axis=-1) @ v
        x = x + jnp.tanh(x @ layer["up"]) @ layer["down"]
    return (x[-1] @ params["words"].T)[:4]


def transformer_params(words, width):
    layer = {name: normal(width, width, seed=i) for i, name in enumerate("qkv")}
    layer |= {"up": normal(width, 2 * width), "down": normal(2 * width, width)}
    return {"words": normal(words, width), "layers": [layer]}


def depthwise(params, x):
    """Depthwise convolution with dilation, then one of windows of one pixel."""
    layout = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        x[None], params["depth"], (1, 1), "SAME", rhs_dilation=(2, 2), dimension_numbers=layout, feature_group_count=4
    )
    x = jax.lax.conv_general_dilated(jnp.tanh(x), params["point"], (2, 2), "VALID", dimension_numbers=layout)
    return jnp.tanh(x).reshape(-1) @ params["head"]


def depthwise_params(side):
    return {
        "depth": normal(3, 3, 1, 8),
        "point": normal(1, 1, 8, 8),
        "head": normal(8 * (side // 2) ** 2, 4),
    }


def residual(params, x):
    """Dense layers between layer norms, added to what they read."""
    for layer in params:
        z = x - jnp.mean(x)
        z = z / jnp.sqrt(jnp.mean(z**2) + 1e-6) * layer["gain"] + layer["shift"]
        x = x + jnp.tanh(z @ layer["w"] + layer["b"])
    return x[:4]


def residual_params(width, depth):
    layer = {"gain": normal(width), "shift": normal(width), "w": normal(width, width), "b": normal(width)}
    return [layer] * depth


def stacked(params, x):
    """Equal layers by a scan over their stacked weights."""
    return jax.lax.scan(lambda h, layer: (jnp.tanh(layer["w"] @ h + layer["b"]), None), x, params)[0][:4]


def laplacian(params, z):
    return jnp.trace(jax.hessian(lambda z: mlp(params, z)[0])(z))[None]


def zoo(smoke):
    """(name, function, parameters, samples) of models other than deep MLPs."""
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 40, (8 if smoke else 40, 8)))
    few = 8 if smoke else 60
    cases = [
        ("cnn", cnn, cnn_params(12, 8), normal(few, 12, 12, 1)),
        ("depthwise cnn", depthwise, depthwise_params(8), normal(few, 8, 8, 4)),
        ("rnn", rnn, rnn_params(48), normal(few, 12, 4)),
        ("residual", residual, residual_params(48, 3), normal(3 * few, 48)),
        ("scanned layers", stacked, {"w": normal(3, 48, 48), "b": normal(3, 48)}, normal(3 * few, 48)),
        ("transformer", transformer, transformer_params(40, 24), ids),
        ("laplacian", laplacian, dense_layers(2, 32, 32, 1), normal(5 * few, 2)),
        ("small mlp", mlp, dense_layers(64, 64, 10), normal(few, 64)),
    ]
    return cases[-1:] if smoke else cases
