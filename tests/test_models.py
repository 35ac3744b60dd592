"""Networks: literal loops as oracles, initial laws, derivatives, equality, and every mistake in one line."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from chordflow import models
from chordflow.models import CNN, MLP, Normal, Uniform, build, cnn, is_smooth, mlp

FORMULAS = {
    "tanh": math.tanh,
    "sin": math.sin,
    "softplus": lambda z: math.log(1 + math.exp(z)),
    "gelu": lambda z: z * scipy.special.ndtr(z),
    "silu": lambda z: z / (1 + math.exp(-z)),
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "relu": lambda z: max(z, 0.0),
    "identity": lambda z: z,
}


def arrays(params):
    return jax.tree.map(np.asarray, params)


def looped_affine(layer, x):
    w, b = layer["w"], layer["b"]
    return [b[j] + sum(x[i] * w[i, j] for i in range(len(x))) for j in range(len(b))]


def looped_mlp(params, x, phi):
    for layer in params[:-1]:
        x = [phi(z) for z in looped_affine(layer, x)]
    return looped_affine(params[-1], x)


def looped_cnn(params, image, phi):
    """Convolution and pooling pixel by pixel; pixels outside the image count as 0."""
    for layer in (params["conv1"], params["conv2"]):
        w, b = layer["w"], layer["b"]
        height, width, channels = image.shape
        active = np.empty((height, width, len(b)))
        for i in range(height):
            for j in range(width):
                for d in range(len(b)):
                    z = b[d]
                    for di in (-1, 0, 1):
                        for dj in (-1, 0, 1):
                            if 0 <= i + di < height and 0 <= j + dj < width:
                                z += sum(image[i + di, j + dj, c] * w[di + 1, dj + 1, c, d] for c in range(channels))
                    active[i, j, d] = phi(z)
        image = np.array(
            [
                [active[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].sum(axis=(0, 1)) / 4 for j in range(width // 2)]
                for i in range(height // 2)
            ]
        )
    flat = [image[i, j, d] for i in range(image.shape[0]) for j in range(image.shape[1]) for d in range(image.shape[2])]
    return looped_affine(params["head"], flat)


# Values.


def test_battery_covers_every_activation():
    assert list(FORMULAS) == list(models.ACTIVATIONS)


@pytest.mark.parametrize("activation", FORMULAS)
def test_mlp_equals_literal_loops(activation):
    apply, params = mlp((3, 4, 2, 2), activation=activation, init=Uniform(2.0))
    x = np.random.default_rng(1).normal(size=3)
    expected = looped_mlp(arrays(params), x.tolist(), FORMULAS[activation])
    np.testing.assert_allclose(jax.jit(apply)(params, jnp.asarray(x)), expected, rtol=1e-13)


@pytest.mark.parametrize("shape", [(8, 9), (5, 7, 2), (16,)])
def test_cnn_equals_literal_loops(shape):
    apply, params = cnn(shape, 3, widths=(2, 3), activation="softplus", init=Uniform(2.0))
    assert isinstance(apply, CNN)
    x = np.random.default_rng(1).normal(size=shape)
    expected = looped_cnn(arrays(params), x.reshape(apply.image_shape), FORMULAS["softplus"])
    outputs = jax.jit(apply)
    np.testing.assert_allclose(outputs(params, jnp.asarray(x)), expected, rtol=1e-13)
    np.testing.assert_array_equal(outputs(params, jnp.asarray(x.ravel())), outputs(params, jnp.asarray(x)))


def test_mlp_without_hidden_layer_is_affine_and_flattens_its_input():
    apply, params = mlp((4, 2), init=Uniform())
    x = jnp.arange(4.0).reshape(2, 2)
    np.testing.assert_allclose(
        apply(params, x), np.arange(4.0) @ np.asarray(params[0]["w"]) + params[0]["b"], rtol=1e-14
    )


# Parameters.


def test_parameter_counts():
    assert mlp((64, 64, 10)).num_params == 4810
    assert build("mlp", (64,), 10).num_params == 4810
    widths = (3, 5, 4, 2)
    assert mlp(widths).num_params == sum((i + 1) * o for i, o in itertools.pairwise(widths))
    assert cnn((8, 8), 10).num_params == (9 + 1) * 8 + (9 * 8 + 1) * 16 + (2 * 2 * 16 + 1) * 10
    assert cnn((7, 9, 3), 2, widths=(4, 5)).num_params == (27 + 1) * 4 + (36 + 1) * 5 + (1 * 2 * 5 + 1) * 2


def test_layout():
    (first, last) = mlp((3, 4, 2)).params
    assert (first["w"].shape, first["b"].shape) == ((3, 4), (4,))
    assert (last["w"].shape, last["b"].shape) == ((4, 2), (2,))


@pytest.mark.parametrize("make", [functools.partial(mlp, (4, 3, 2)), functools.partial(cnn, (4, 4), 2)])
@pytest.mark.parametrize("init", [Normal(), Uniform()])
def test_parameters_are_determined_by_the_seed(make, init):
    same, again, other = (jax.tree.leaves(make(seed=seed, init=init).params) for seed in (5, 5, 6))
    for a, b, c in zip(same, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.array_equal(a, c) == (isinstance(init, Normal) and a.ndim == 1)


@pytest.mark.parametrize("init", [Normal(), Uniform()])
def test_no_two_layers_share_random_numbers(init):
    layers = mlp((4, 4, 4, 4), init=init).params  # of one fan_in, so that equal draws are equal entries
    numbers = np.concatenate([layer["w"].ravel() for layer in layers])
    assert len(np.unique(numbers)) == 3 * 16
    if isinstance(init, Uniform):
        assert len(np.unique(np.concatenate([numbers, *(layer["b"] for layer in layers)]))) == 3 * 20


def test_layers_are_drawn_apart():
    """A seed's first layer is the same in any network, and is not the stream that data sets are shuffled with."""
    short, long = mlp((4, 3)).params, mlp((4, 3, 2)).params
    np.testing.assert_array_equal(short[0]["w"], long[0]["w"])
    assert not np.array_equal(short[0]["w"].ravel(), np.random.default_rng(0).normal(0, 0.5, 12))


def test_float32_parameters_are_the_float64_ones_rounded():
    single, double = mlp((4, 3), dtype="float32").params, mlp((4, 3)).params
    np.testing.assert_array_equal(single[0]["w"], np.asarray(double[0]["w"], np.float32))


@pytest.mark.parametrize("scale", [1, 0.5])
def test_initial_laws(scale):
    fan_in, count = 400, 400 * 300
    (normal,) = mlp((fan_in, 300), init=Normal(scale)).params
    (uniform,) = mlp((fan_in, 300), init=Uniform(scale)).params
    size = scale / math.sqrt(fan_in)
    np.testing.assert_array_equal(normal["b"], 0)
    assert abs(float(uniform["w"].max())) <= size
    assert float(jnp.abs(uniform["b"]).max()) <= size
    # Five standard errors of mean, variance and fourth moment over variance² (3 and 9/5), for seed 0.
    for w, variance, kurtosis, eighth in (
        (normal["w"], size**2, 3, 105),
        (uniform["w"], size**2 / 3, 9 / 5, 9),
    ):
        z = np.asarray(w).ravel() / math.sqrt(variance)
        assert abs(z.mean()) < 5 / math.sqrt(count)
        assert abs((z**2).mean() - 1) < 5 * math.sqrt((kurtosis - 1) / count)
        assert abs((z**4).mean() - kurtosis) < 5 * math.sqrt((eighth - kurtosis**2) / count)


def test_convolution_has_fan_in_nine_times_channels():
    params = cnn((8, 8), 10, widths=(64, 200)).params
    w = np.asarray(params["conv2"]["w"])
    assert w.shape == (3, 3, 64, 200)
    assert abs(w.var() * 9 * 64 - 1) < 5 * math.sqrt(2 / w.size)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("dtype", ["float32", jnp.float32, np.dtype("float64"), None])
def test_dtype_is_kept(name, dtype):
    model = build(name, (16,), 2, dtype=dtype)
    expected = jnp.dtype(dtype or "float64")
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {expected}
    assert jax.eval_shape(model.apply, model.params, jax.ShapeDtypeStruct((16,), expected)).dtype == expected


def test_float64_needs_x64():
    with jax.enable_x64(False):
        assert mlp((2, 1)).params[0]["w"].dtype == jnp.float32
        with pytest.raises(ValueError, match=r"^model.dtype = float64: x64 is off; set jax.config"):
            mlp((2, 1), dtype="float64")


# Derivatives.


@pytest.fixture(scope="module", params=["mlp", "cnn"])
def small(request):
    return build(request.param, (16,), 2, seed=3, widths=[2, 2], activation="sin")


def test_derivatives_in_both_modes_and_of_second_order(small):
    apply, params = small
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=16))
    v = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
    w = jnp.asarray(rng.normal(size=2))

    h = 1e-3

    @jax.jit  # one program: operation by operation this takes several times as long
    def everything(params, v, w):
        def along(t):
            return apply(jax.tree.map(lambda p, q: p + t * q, params, v), x)

        forward = jax.jvp(lambda p: apply(p, x), (params,), (v,))[1]
        (backward,) = jax.vjp(lambda p: apply(p, x), params)[1](w)
        second = jax.jvp(lambda t: jax.jvp(along, (t,), (1.0,))[1], (0.0,), (1.0,))[1]
        return forward, backward, second, along(h), along(0.0), along(-h)

    forward, backward, second, ahead, here, behind = everything(params, v, w)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(backward))
    adjoint = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(backward), jax.tree.leaves(v), strict=True))
    np.testing.assert_allclose(jnp.vdot(forward, w), adjoint, rtol=1e-12)

    # Central differences of step 1e-3: error h²/6 · third derivative, and for the second rounding/h² ≈ 1e-10.
    np.testing.assert_allclose(forward, (ahead - behind) / (2 * h), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(second, (ahead - 2 * here + behind) / h**2, rtol=1e-4, atol=1e-4)


def test_vmap_equals_one_at_a_time(small):
    apply, params = small
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16)))
    one, many = jax.jit(apply), jax.jit(jax.vmap(apply, (None, 0)))
    batched = many(params, inputs)
    np.testing.assert_allclose(batched, np.stack([one(params, x) for x in inputs]), rtol=1e-13)


@pytest.mark.parametrize("activation", FORMULAS)
def test_smooth_flag_tells_whether_the_second_derivative_is_continuous_at_zero(activation):
    """Differences of φ' alone: φ' has no jump at 0, and its slopes left and right agree to O(h), where φ is smooth."""
    gradient = jax.jit(jax.grad(models.ACTIVATIONS[activation].fn))

    def slope(z):
        return gradient(jnp.asarray(z))

    h = 1e-5
    one_sided = [float((slope(s * 2 * h) - slope(s * h)) / (s * h)) for s in (1.0, -1.0)]
    kink = abs(float(slope(h) - slope(-h)))
    smooth = abs(one_sided[0] - one_sided[1]) < 1e-3 and kink < 1e-3
    assert smooth == is_smooth(activation)
    assert smooth == (activation != "relu")
    assert MLP(activation).smooth == CNN((4, 4, 1), activation).smooth == is_smooth(activation)


@pytest.mark.parametrize("activation", FORMULAS)
def test_activations_stay_finite_with_two_derivatives_far_out(activation):
    phi = models.ACTIVATIONS[activation].fn
    z = jnp.array([-1e3, -40.0, 0.0, 40.0, 1e3])
    for f in (phi, jax.grad(phi), jax.grad(jax.grad(phi))):
        assert np.isfinite(jax.jit(jax.vmap(f))(z)).all()


# Equality.


def test_equal_configurations_compile_once():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def outputs(apply, params, x):
        traces.append(apply)
        return apply(params, x)

    x = jnp.ones(16)
    for seed in (0, 1):
        for name in ("mlp", "cnn"):
            model = build(name, [16], np.int64(2), seed=seed, widths=[3, 3])
            outputs(model.apply, model.params, x).block_until_ready()
    assert len(traces) == 2
    other = build("mlp", (16,), 2, widths=(3, 3), activation="sin")
    outputs(other.apply, other.params, x).block_until_ready()
    assert len(traces) == 3


def test_equality_and_hash():
    assert mlp((2, 3, 1)).apply == mlp([2, 5, 1], seed=4).apply == MLP("tanh")
    assert hash(cnn([16], 2).apply) == hash(cnn((4, 4, 1), 3).apply) == hash(CNN((4, 4, 1)))
    assert MLP("tanh") != MLP("sin")
    assert cnn((4, 4), 2).apply != cnn((4, 4, 2), 2).apply
