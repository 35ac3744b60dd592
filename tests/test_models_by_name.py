"""Networks that a configuration names, and every mistake in one line."""

import math
import sys
import types
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chordflow.models import CNN, MLP, NetworkModel, Normal, Uniform, build, cnn, from_reference, is_smooth, mlp


def test_build_passes_every_option():
    model = build("mlp", (2, 3), 4, seed=9, widths=[5], activation="sin", init="uniform", scale=2, dtype="float32")
    expected = mlp((6, 5, 4), seed=9, activation="sin", init=Uniform(2.0), dtype="float32")
    assert model.apply == expected.apply
    jax.tree.map(np.testing.assert_array_equal, model.params, expected.params)
    assert [layer["w"].shape for layer in build("mlp", (2,), 1, widths=7).params] == [(2, 7), (7, 1)]
    assert [layer["w"].shape for layer in build("mlp", (2,), 1, widths=[]).params] == [(2, 1)]
    model = build("cnn", (5, 4), 3, widths=(2, 6), activation="silu")
    assert model.apply == CNN((5, 4, 1), "silu")
    assert model.params["conv2"]["w"].shape == (3, 3, 2, 6)


@pytest.fixture
def networks(monkeypatch):
    """A module of a user's own, good functions and bad ones."""
    module = types.ModuleType("networks")
    monkeypatch.setitem(sys.modules, "networks", module)

    def linear(params, x):
        return params["w"] @ x

    def equinox_network(input_shape, num_outputs, seed):
        net = eqx.nn.MLP(input_shape[0], num_outputs, 3, 1, key=jax.random.key(seed))
        return (lambda net, x: net(x)), net

    weights = np.ones((2, 3))
    vars(module).update(
        numpy_params=lambda input_shape, num_outputs, seed: (linear, {"w": np.full((num_outputs, *input_shape), seed)}),
        float_params=lambda input_shape, num_outputs, seed: [linear, {"w": np.full((num_outputs, *input_shape), 1.0)}],
        equinox_network=equinox_network,
        constant=3,
        single=lambda *_: linear,
        three=lambda *_: (linear, {"w": weights}, None),
        swapped=lambda *_: ({"w": weights}, linear),
        scalar=lambda *_: (lambda params, x: (params["w"] @ x)[0], {"w": weights}),
        pair=lambda *_: (lambda params, x: (params["w"] @ x,), {"w": weights}),
        empty=lambda *_: (linear, {}),
    )
    return module


def test_from_reference(networks):
    model = from_reference("networks:float_params", (3,), 2)
    assert isinstance(model, NetworkModel)
    assert model.num_params == 6
    np.testing.assert_array_equal(model.apply(model.params, np.arange(3.0)), [3, 3])

    model = build("networks:equinox_network", (3,), 2, seed=4)
    expected = eqx.nn.MLP(3, 2, 3, 1, key=jax.random.key(4))
    np.testing.assert_array_equal(model.apply(model.params, jnp.ones(3)), expected(jnp.ones(3)))
    assert model.num_params == 3 * 4 + 2 * 4


def test_faults_inside_a_users_module_pass_through(tmp_path, monkeypatch):
    (tmp_path / "faulty_networks.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        from_reference("faulty_networks:f", (3,), 2)


unchecked_build: Any = getattr(build, "__wrapped__", build)  # as it is without runtime type checks

MISTAKES = {
    "unknown model": (
        lambda: build("mpl", (3,), 2),
        "model.name = 'mpl': unknown, did you mean mlp. Known: mlp, cnn",
    ),
    "name of another type": (
        lambda: unchecked_build(3, (3,), 2),
        "model.name = 3: unknown, expected one of mlp, cnn",
    ),
    "unknown key": (
        lambda: build("mlp", (3,), 2, width=3),
        "model.width = 3: unknown key, did you mean model.widths. Known: widths, activation, init, scale, dtype",
    ),
    "unknown activation": (
        lambda: mlp((3, 2), activation="tan"),
        "model.activation = 'tan': unknown, did you mean tanh",
    ),
    "unknown activation of CNN": (
        lambda: cnn((4, 4), 2, activation="x"),
        "model.activation = 'x': .* one of tanh",
    ),
    "unknown activation asked": (lambda: is_smooth("ReLU6"), "model.activation = 'ReLU6': unknown"),
    "unknown init": (
        lambda: build("mlp", (3,), 2, init="he"),
        "model.init = 'he': unknown, expected one of normal",
    ),
    "scale zero": (lambda: build("mlp", (3,), 2, scale=0), "model.scale = 0: expected a positive number"),
    "scale NaN": (lambda: Normal(math.nan), "model.scale = nan: expected a positive number"),
    "scale infinite": (lambda: Uniform(math.inf), "model.scale = inf: expected a positive number"),
    "scale in words": (lambda: build("mlp", (3,), 2, scale="1"), "model.scale = '1': expected a positive number"),
    "one width": (lambda: mlp((3,)), r"model.widths = \(3,\): expected at least 2 positive integers"),
    "width zero": (lambda: mlp((3, 0, 2)), r"model.widths = \(3, 0, 2\): expected at least 2 positive integers"),
    "fractional width": (lambda: mlp((3, 1.5, 2)), r"model.widths = \(3, 1.5, 2\): .* positive integers"),
    "widths in words": (
        lambda: build("mlp", (3,), 2, widths="64"),
        "model.widths = '64': expected a list of positive",
    ),
    "width true": (
        lambda: build("mlp", (3,), 2, widths=True),
        r"model.widths = \(True,\): expected a list of",
    ),
    "channels": (
        lambda: build("cnn", (4, 4), 2, widths=[1, 2, 3]),
        r"model.widths = \[1, 2, 3\]: expected 2 positive",
    ),
    "no outputs": (lambda: build("mlp", (3,), 0), r"num_outputs = \(0,\): expected at least 1 positive integers"),
    "scalar inputs": (lambda: build("mlp", (), 2), r"input_shape = \(\): expected at least 1 positive integers"),
    "no square": (lambda: cnn((15,), 2), r"model.name = cnn: input shape \(15,\), expected \(H, W\), .* flat square"),
    "rank 4": (lambda: cnn((4, 4, 1, 1), 2), r"model.name = cnn: input shape \(4, 4, 1, 1\), expected"),
    "tiny image": (lambda: cnn((3, 8), 2), "model.name = cnn: images of 3 × 8, expected at least 4 × 4"),
    "float16": (lambda: mlp((3, 2), dtype="float16"), "model.dtype = 'float16': expected float32 or float64"),
    "dtype in words": (
        lambda: build("mlp", (3,), 2, dtype="double precision"),
        "model.dtype = 'double precision'",
    ),
    "negative seed": (lambda: mlp((3, 2), seed=-1), "seed = -1: expected a non-negative integer"),
    "fractional seed": (lambda: mlp((3, 2), seed=0.5), "seed = 0.5: expected a non-negative integer"),
    "input of another size": (
        lambda: MLP()(mlp((3, 2)).params, jnp.ones(4)),
        r"MLP: input of shape \(4,\), expected 3 entries",
    ),
    "image of another shape": (
        lambda: CNN((4, 4, 1))(cnn((4, 4), 2).params, jnp.ones((2, 8))),
        r"CNN: input of shape \(2, 8\), expected \(4, 4, 1\) or \(16,\)",
    ),
    "no colon": (
        lambda: from_reference("networks", (3,), 2),
        "model.name = 'networks': expected package.module",
    ),
    "no function": (lambda: build("networks:", (3,), 2), "model.name = 'networks:': expected package.module:function"),
    "no module": (lambda: build(":f", (3,), 2), "model.name = ':f': expected package.module:function"),
    "file name": (
        lambda: build("./nets.py:f", (3,), 2),
        "model.name = './nets.py:f': expected package.mod",
    ),
    "module not found": (
        lambda: build("nowhere.at_all:f", (3,), 2),
        "no module 'nowhere'; .* on PYTHONPATH",
    ),
    "submodule not found": (lambda: build("json.nets:f", (3,), 2), "no module 'json.nets'; install"),
    "attribute missing": (lambda: build("networks:f", (3,), 2), "'f' does not exist in networks"),
    "not callable": (lambda: build("networks:constant", (3,), 2), "'constant' is not a function in networks"),
    "options for a reference": (
        lambda: build("networks:single", (3,), 2, widths=[3]),
        "model.widths: model.name = 'networks:single' takes no options",
    ),
    "no pair": (lambda: build("networks:single", (3,), 2), "returned function, expected a pair .apply, params."),
    "three values": (lambda: build("networks:three", (3,), 2), "returned tuple of length 3, expected a pair"),
    "swapped pair": (lambda: build("networks:swapped", (3,), 2), "returned tuple of length 2, expected a pair .apply"),
    "scalar output": (lambda: build("networks:scalar", (3,), 2), r"apply returned shape \(\) .* expected shape \(2,\)"),
    "wrong outputs": (lambda: build("networks:three", (3,), 1), "returned tuple of length 3"),
    "tuple output": (lambda: build("networks:pair", (3,), 2), "apply returned tuple of length 1 for one input"),
    "no parameters": (lambda: build("networks:empty", (3,), 2), "params hold no floating-point arrays"),
    "integer parameters": (lambda: build("networks:numpy_params", (3,), 2), "params hold no floating-point arrays"),
}


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_one_line(case):
    call, text = MISTAKES[case]
    with pytest.raises(ValueError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)
