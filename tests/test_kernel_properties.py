"""Random small models: whatever mixture of layers is drawn, the Gram engine agrees with the dense Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from test_kernel_zoo import assert_close, dense_gram

import chordflow as cf

WIDTH = 3


def _recurrent(w, x):
    def step(h, z):
        h = jnp.tanh(w @ h + z)
        return h, h

    return jax.lax.scan(step, jnp.zeros(WIDTH), x, reverse=True)[1]


# Each layer: (parameters of a generator, function of (parameters, value (tokens, width)) of the same shape).
LAYERS = {
    "dense": (lambda r: {"w": r(WIDTH, WIDTH), "b": r(WIDTH)}, lambda p, x: jnp.tanh(x @ p["w"] + p["b"][None])),
    "transposed": (lambda r: {"w": r(WIDTH, WIDTH)}, lambda p, x: jnp.sin(x @ p["w"].T)),
    "einsum": (lambda r: {"w": r(WIDTH, WIDTH, 2)}, lambda p, x: jnp.einsum("td,dhe,khe->tk", x, p["w"], p["w"])),
    "reshaped": (lambda r: {"w": r(WIDTH * WIDTH)}, lambda p, x: x @ p["w"].reshape(WIDTH, WIDTH)),
    "gain": (lambda r: {"g": r(WIDTH)}, lambda p, x: x * p["g"][None]),
    "subtracted": (lambda r: {"b": r(WIDTH)}, lambda p, x: p["b"][None] - x),
    "convolution": (
        lambda r: {"k": r(2, WIDTH, WIDTH)},
        lambda p, x: jax.lax.conv_general_dilated(
            x[None], p["k"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )[0],
    ),
    "scan": (
        lambda r: {"w": r(WIDTH, WIDTH)},
        lambda p, x: _recurrent(p["w"], x),
    ),
    "mixing": (lambda r: {"w": r(2, 2)}, lambda p, x: x + p["w"] @ x),
    "lookup": (lambda r: {"w": r(5, WIDTH)}, lambda p, x: x + p["w"][jnp.array([3, 3])]),
    "fallback": (lambda r: {"w": r(WIDTH, WIDTH)}, lambda p, x: x @ jnp.tanh(p["w"])),
    "reversed": (lambda r: {"w": r(WIDTH, WIDTH)}, lambda p, x: x @ p["w"][::-1] + x @ p["w"]),
}

drawn = st.tuples(
    st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=4),
    st.booleans(),  # every kind of layer shares one set of parameters
    st.integers(1, 3),
    st.integers(0, 2**16),
)


# A drawn model costs about a second of compilation.
@seed(0)
@settings(max_examples=25, deadline=None, database=None)
@given(drawn)
def test_random_models(case):
    names, shared, samples, number = case
    rng = np.random.default_rng(number)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape))

    keys = [name if shared else f"{i} {name}" for i, name in enumerate(names)]
    params = {key: LAYERS[name][0](normal) for key, name in zip(keys, names, strict=True)}

    def fn(params, x):
        for key, name in zip(keys, names, strict=True):
            x = LAYERS[name][1](params[key], x)
        return x[:, :2].reshape(-1)[:3]

    inputs = normal(samples, 2, WIDTH)
    assert_close(cf.gram(fn, params, inputs), dense_gram(fn, params, inputs))
    fallbacks = {leaf for leaf, rule in cf.gram_plan(fn, params, inputs).rules.items() if rule == "fallback"}
    assert all("fallback" in leaf for leaf in fallbacks)
