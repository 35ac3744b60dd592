"""Problem and Term: cost by literal loops, chain rule, weights as repetition and absence, parameters of any kind."""

import equinox as eqx
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import WIDE_N, WIDE_Q, flat_params, literal_cost, perceptron, perceptron_params, wide, wide_params
from tolerances import tol

import chordflow as cf
from chordflow.losses import smooth_labels
from chordflow.solve import WeightedJacobian

ROUNDING, SUMS = tol("float64", "rounding"), tol("float64", "sums")
RNG = np.random.default_rng(11)
LABELS = smooth_labels(jax.nn.one_hot(jnp.asarray([0, 1, 1, 0]), WIDE_Q, dtype=jnp.float64), 0.2)
OMEGA = jnp.asarray([0.5, 2.0, 0.0, 1.5])


def boundary(params, sample):
    """A second kind of term: one number per sample, a pytree as sample."""
    return (perceptron(params, sample["at"]) @ sample["normal"])[None]


def two_terms(weights=(None, None), loss=None):
    """Two terms with different functions, shapes and weights on one set of parameters."""
    first = wide(weights=weights[0]).terms[0]
    rng = np.random.default_rng(12)
    samples = {"at": jnp.asarray(rng.normal(size=(3, 2))), "normal": jnp.asarray(rng.normal(size=(3, 2)))}
    targets = jnp.asarray(rng.normal(size=(3, 1)))
    return cf.Problem.from_terms(
        [
            cf.Term(perceptron, first.samples, first.targets, weight=0.25, weights=weights[0]),
            cf.Term(boundary, samples, targets, weight=3.0, weights=weights[1]),
        ],
        loss=loss,
    )


MANY = jnp.asarray([1.0, 3.0, 0.5])
PROBLEMS = {
    "squared error": wide(),
    "cross-entropy": wide(targets=LABELS, loss=cf.CrossEntropy()),
    "weighted": wide(weights=OMEGA),
    "weighted cross-entropy": wide(targets=LABELS, loss=cf.CrossEntropy(), weights=OMEGA),
    "two terms": two_terms(),
    "two weighted terms": two_terms((OMEGA, MANY)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_cost_is_the_literal_double_sum(name):
    problem = PROBLEMS[name]
    outputs = problem.outputs(wide_params())
    np.testing.assert_allclose(problem.cost(wide_params()), literal_cost(problem, outputs), rtol=ROUNDING)
    assert float(problem.cost_at(outputs)) == pytest.approx(float(problem.cost(wide_params())), rel=ROUNDING)


def test_one_unweighted_term_is_the_cost_of_the_paper():
    problem = wide()
    x, y = np.asarray(problem.outputs(wide_params())), np.asarray(problem.targets)
    assert float(problem.cost(wide_params())) == pytest.approx(np.sum((x - y) ** 2) / (2 * WIDE_N), rel=ROUNDING)
    np.testing.assert_array_equal(problem.inner_product, np.ones(WIDE_N * WIDE_Q))
    assert float(problem.num_samples) == WIDE_N


def literal_weights(problem):
    """W by loops: N w_k ω_kn / Ω_k for each output."""
    omegas = [np.asarray(term.weights) for term in problem.terms]
    N = sum(omega.sum() for omega in omegas)
    entries = []
    for term, omega in zip(problem.terms, omegas, strict=True):
        for value in omega:
            entries += [N * float(term.weight) * value / omega.sum()] * term.targets.shape[1]
    return N, np.array(entries)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_inner_product_is_that_of_the_definition(name):
    problem = PROBLEMS[name]
    N, W = literal_weights(problem)
    assert float(problem.num_samples) == pytest.approx(N, rel=ROUNDING)
    np.testing.assert_allclose(problem.inner_product, W, rtol=ROUNDING)


def independent_cost(name, params):
    """C written anew, from closures over data, without a Problem: the oracle of the chain rule."""
    problem = PROBLEMS[name]
    functions = [perceptron, boundary]
    total = 0.0
    for function, term in zip(functions, problem.terms, strict=False):
        rows = []
        for n in range(term.targets.shape[0]):
            x = function(params, jax.tree.map(lambda leaf, n=n: leaf[n], term.samples))
            y = term.targets[n]
            if "cross" in name:
                rows.append(jax.scipy.special.logsumexp(x) - jnp.dot(y, x))
            else:
                rows.append(jnp.dot(x - y, x - y) / 2)
        total = total + term.weight * jnp.dot(term.weights, jnp.stack(rows)) / jnp.sum(term.weights)
    return total


@pytest.mark.parametrize("name", PROBLEMS)
def test_chain_rule(name):
    # ∇_θC = Dᵀ∇ₓC (2.15), against reverse mode through a cost that knows nothing of outputs.
    problem, params = PROBLEMS[name], wide_params()
    expected = flat_params(jax.jit(jax.grad(lambda p: independent_cost(name, p)))(params))
    g = problem.gradient(problem.outputs(params))
    np.testing.assert_allclose(
        flat_params(problem.jacobian(params).T.mv(g)), expected, atol=SUMS * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradient_and_descent_in_output_space(name):
    problem, params = PROBLEMS[name], wide_params()
    outputs = problem.outputs(params)
    g = problem.flatten(problem.gradient(outputs))
    by_jax = problem.flatten(jax.grad(problem.cost_at)(outputs))
    np.testing.assert_allclose(g, by_jax, atol=ROUNDING)
    # −W⁻¹g, where W has an inverse; where a weight is 0 the velocity stays finite.
    _, W = literal_weights(problem)
    u = np.asarray(problem.flatten(problem.descent(outputs)))
    np.testing.assert_allclose(u[W > 0], -np.asarray(g)[W > 0] / W[W > 0], atol=ROUNDING)
    assert np.isfinite(u).all()


@pytest.mark.parametrize("weights", [(None, None), (OMEGA, MANY)], ids=["plain", "weighted"])
def test_squared_error_descends_at_one_rate_in_every_term(weights):
    # "Every term moves on its own straight line on one clock": −(x − y)/N whatever the weights.
    problem = two_terms(weights)
    outputs, N = problem.outputs(wide_params()), float(problem.num_samples)
    for u, x, y in zip(problem.descent(outputs), outputs, problem.targets, strict=True):
        np.testing.assert_allclose(u, -(x - y) / N, atol=ROUNDING)


# --- weights as repetition and absence ------------------------------------------------------------------------------


def repeated(loss=None):
    """The same data twice over: with weights (2, 0, 1, 3), and written out."""
    base = wide(loss=loss, targets=LABELS if isinstance(loss, cf.CrossEntropy) else None).terms[0]
    rows = jnp.asarray([0, 0, 2, 3, 3, 3])
    weighted = cf.Problem(perceptron, base.samples, base.targets, loss, jnp.asarray([2.0, 0.0, 1.0, 3.0]))
    return weighted, cf.Problem(perceptron, base.samples[rows], base.targets[rows], loss), rows


@pytest.mark.parametrize("loss", [cf.SquaredError(), cf.CrossEntropy()], ids=["squared", "entropy"])
def test_weight_two_is_the_sample_twice_and_weight_zero_is_its_absence(loss):
    weighted, written_out, _ = repeated(loss)
    params = wide_params()
    assert float(weighted.num_samples) == float(written_out.num_samples) == 6.0
    np.testing.assert_allclose(weighted.cost(params), written_out.cost(params), rtol=ROUNDING)
    np.testing.assert_allclose(known(weighted.minimum()), known(written_out.minimum()), rtol=ROUNDING)
    gradients = [flat_params(p.jacobian(params).T.mv(p.gradient(p.outputs(params)))) for p in (weighted, written_out)]
    np.testing.assert_allclose(gradients[0], gradients[1], atol=SUMS)
    # The non-zero singular values of W^½D agree; those of the absent and the repeated sample are 0.
    sigma = [np.asarray(cf.geometry.spectrum(p, params)) for p in (weighted, written_out)]
    np.testing.assert_allclose(sigma[0][:6], sigma[1][:6], rtol=SUMS)
    assert sigma[0][6:].max() < tol("float64", "spectrum") * sigma[0][0]
    assert sigma[1][6:].max() < tol("float64", "spectrum") * sigma[0][0]


def test_unequal_weights_do_change_the_problem():
    params = wide_params()
    assert abs(float(wide(weights=OMEGA).cost(params)) - float(wide().cost(params))) > 1e-2


def test_only_the_ratio_of_weights_matters_to_the_cost_and_their_sum_to_the_clock():
    params, twice = wide_params(), wide(weights=2 * OMEGA)
    np.testing.assert_allclose(twice.cost(params), wide(weights=OMEGA).cost(params), rtol=ROUNDING)
    np.testing.assert_allclose(twice.num_samples, 2 * float(jnp.sum(OMEGA)), rtol=ROUNDING)


def known(value):
    """What has a closed form."""
    assert value is not None
    return value


# --- shapes and order -----------------------------------------------------------------------------------------------


def test_flat_rows_are_term_sample_and_output_major():
    problem, params = two_terms(), wide_params()
    outputs = problem.outputs(params)
    assert [x.shape for x in outputs] == [(4, 2), (3, 1)]
    literal = [float(x[n, q]) for x in outputs for n in range(x.shape[0]) for q in range(x.shape[1])]
    np.testing.assert_array_equal(problem.flatten(outputs), literal)
    assert problem.num_outputs == len(literal) == 11
    back = problem.unflatten(problem.flatten(outputs))
    for a, b in zip(back, outputs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_outputs_are_the_model_sample_by_sample():
    problem, params = wide(), wide_params()
    rows = [perceptron(params, z) for z in problem.terms[0].samples]
    np.testing.assert_allclose(problem.outputs(params), jnp.stack(rows), atol=ROUNDING)


def test_a_single_term_list_gives_a_tuple():
    # The return type follows the constructor, not the number of terms.
    base = wide().terms[0]
    problem = cf.Problem.from_terms([base])
    assert isinstance(problem.outputs(wide_params()), tuple)
    assert isinstance(problem.targets, tuple)


def test_inputs_may_be_a_pytree():
    base = wide().terms[0]
    problem = cf.Problem(
        lambda p, z: perceptron(p, jnp.stack([z["a"], z["b"][0]])),
        {"a": base.samples[:, 0], "b": base.samples[:, 1:]},
        base.targets,
    )
    np.testing.assert_allclose(problem.cost(wide_params()), wide().cost(wide_params()), rtol=ROUNDING)


def test_numpy_arrays_and_lists_are_data_too():
    problem = cf.Problem(lambda w, z: w * z, np.array([[1.0], [2.0]]), [[1.0], [1.0]], weights=[1, 1])
    assert float(problem.cost(jnp.asarray([1.0]))) == 0.25


def test_minimum_and_equilibrium():
    params, entropy = wide_params(), PROBLEMS["weighted cross-entropy"]
    outputs = entropy.outputs(params)
    end = known(entropy.equilibrium(outputs))
    np.testing.assert_allclose(entropy.cost_at(end), known(entropy.minimum()), rtol=ROUNDING)
    np.testing.assert_allclose(jnp.sum(end, axis=1), jnp.sum(outputs, axis=1), atol=ROUNDING)
    terms = two_terms()
    for a, b in zip(known(terms.equilibrium(terms.outputs(params))), terms.targets, strict=True):
        np.testing.assert_array_equal(a, b)
    unknown = wide(loss=cf.Loss(lambda x, y: jnp.sum((x - y) ** 4)))
    assert unknown.minimum() is None
    assert unknown.equilibrium(outputs) is None


def test_a_problem_may_be_built_from_traced_data():
    base, params = wide().terms[0], wide_params()
    shifts = jnp.asarray([0.0, 1.0])
    costs = jax.vmap(lambda c: cf.Problem(perceptron, base.samples, base.targets + c).cost(params))(shifts)
    np.testing.assert_allclose(costs[0], wide().cost(params), rtol=ROUNDING)
    np.testing.assert_allclose(
        costs[1], cf.Problem(perceptron, base.samples, base.targets + 1).cost(params), rtol=ROUNDING
    )


def test_dtype_is_kept():
    problem, params = wide(dtype=jnp.float32), wide_params(dtype=jnp.float32)
    results = (
        problem.cost(params),
        problem.inner_product,
        problem.num_samples,
        problem.gradient(problem.outputs(params)),
        problem.jacobian(params).gram(),
    )
    assert {r.dtype for r in results} == {jnp.dtype("float32")}


# --- parameters -----------------------------------------------------------------------------------------------------


class Linen(flax.linen.Module):
    """The perceptron in flax.linen."""

    @flax.linen.compact
    def __call__(self, z):
        h = flax.linen.Dense(6, param_dtype=jnp.float64, name="first")(z)
        return flax.linen.Dense(WIDE_Q, param_dtype=jnp.float64, name="second")(jnp.tanh(h))


class Nnx(flax.nnx.Module):
    """The perceptron in flax.nnx, with a random-number state that is no parameter."""

    def __init__(self, rngs):
        self.first = flax.nnx.Linear(2, 6, param_dtype=jnp.float64, rngs=rngs)
        self.second = flax.nnx.Linear(6, WIDE_Q, param_dtype=jnp.float64, rngs=rngs)
        self.rngs = rngs

    def __call__(self, z):
        return self.second(jnp.tanh(self.first(z)))


def as_equinox(params):
    net = eqx.nn.MLP(2, WIDE_Q, 6, 1, activation=jnp.tanh, key=jax.random.key(0), dtype=jnp.float64)
    leaves = (params["in"], params["bias"], params["out"], params["shift"])
    where = lambda m: (m.layers[0].weight, m.layers[0].bias, m.layers[1].weight, m.layers[1].bias)  # noqa: E731
    return (lambda module, z: module(z)), eqx.tree_at(where, net, leaves)


def as_linen(params):
    first = {"kernel": params["in"].T, "bias": params["bias"]}
    second = {"kernel": params["out"].T, "bias": params["shift"]}
    return Linen().apply, {"params": {"first": first, "second": second}}


def as_nnx(params):
    module = Nnx(flax.nnx.Rngs(0))
    for layer, kernel, bias in ((module.first, "in", "bias"), (module.second, "out", "shift")):
        layer.kernel[...], known(layer.bias)[...] = params[kernel].T, params[bias]
    graph, state = flax.nnx.split(module)
    return (lambda state, z: flax.nnx.merge(graph, state)(z)), state


def as_nested(params):
    """Lists, tuples, None, an integer leaf, a Python number and a string beside the arrays."""
    nested = [
        (params["in"], {"b": params["bias"], "steps": jnp.asarray(7)}),
        None,
        "tanh",
        2.0,
        (params["out"], params["shift"]),
    ]

    def model(p, z):
        (w, inner), _, _, half, (out, shift) = p
        return out @ jnp.tanh(w @ z + inner["b"]) * half / 2 + shift

    return model, nested


def as_numpy(params):
    return perceptron, {name: np.asarray(leaf) for name, leaf in params.items()}


KINDS = {"equinox": as_equinox, "linen": as_linen, "nnx": as_nnx, "nested": as_nested, "numpy": as_numpy}


@pytest.mark.parametrize("kind", KINDS)
def test_any_pytree_holds_parameters(kind):
    base, plain = wide(), wide_params()
    model, params = KINDS[kind](plain)
    problem = cf.Problem(model, base.terms[0].samples, base.targets)
    problem.check(params)
    np.testing.assert_allclose(problem.outputs(params), base.outputs(plain), atol=SUMS)
    theta, unravel = problem.ravel(params)
    assert theta.shape == (32,)
    again = unravel(theta)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    np.testing.assert_array_equal(problem.outputs(again), problem.outputs(params))
    # Another order of parameters, the same singular values; and a product with a tangent like the parameters.
    sigma = cf.geometry.spectrum(problem, params)
    np.testing.assert_allclose(sigma, cf.geometry.spectrum(base, plain), rtol=SUMS)
    J = problem.jacobian(params)
    tangent = problem.partition(params)[0]
    expected = WeightedJacobian.at(base, plain).as_matrix() @ base.ravel(plain)[0]
    np.testing.assert_allclose(J.mv(tangent).reshape(-1), expected, atol=SUMS)


@pytest.mark.parametrize(
    ("trainable", "size"),
    [
        (lambda leaf: leaf.ndim == 2, 24),
        ({"in": True, "bias": False, "out": True, "shift": False}, 24),
        (True, 32),
        ({"in": False, "bias": True, "out": False, "shift": True}, 8),
    ],
    ids=["predicate", "mask", "prefix", "biases"],
)
def test_frozen_leaves(trainable, size):
    problem, params = wide(trainable=trainable), wide_params()
    theta, unravel = problem.ravel(params)
    assert theta.size == size
    assert problem.jacobian(params).shape == (8, size)
    moved = unravel(theta + 1)
    changed = {name for name in params if bool(jnp.any(moved[name] != params[name]))}
    by_size = {24: {"in", "out"}, 32: set(params), 8: {"bias", "shift"}}
    assert changed == by_size[size]
    # A full tangent is accepted, its frozen leaves ignored; the columns of D are those of the trainable leaves.
    full = jax.tree.map(jnp.ones_like, params)
    trained = problem.partition(full)[0]
    np.testing.assert_array_equal(problem.jacobian(params).mv(full), problem.jacobian(params).mv(trained))


def test_a_python_number_is_a_hyperparameter_and_an_array_is_trained():
    problem = cf.Problem(lambda p, z: p["scale"] * p["w"] * z, jnp.ones((1, 1)), jnp.ones((1, 1)))
    w = jnp.asarray([1.0])
    assert problem.ravel({"w": w, "scale": 2.0})[0].size == 1
    assert problem.ravel({"w": w, "scale": jnp.asarray(2.0)})[0].size == 2


def test_frozen_columns_are_left_out():
    params = wide_params()
    full = wide().jacobian(params).as_matrix()
    part = wide(trainable={"in": False, "bias": True, "out": False, "shift": True}).jacobian(params).as_matrix()
    # Ravel order is that of sorted keys: bias 6, in 12, out 12, shift 2.
    np.testing.assert_allclose(part, jnp.concatenate([full[:, :6], full[:, 30:]], axis=1), atol=ROUNDING)


def test_a_pure_model_passes_its_check_with_more_samples_than_are_called():
    params = perceptron_params(0, 2, 3, 1)
    inputs = jnp.asarray(RNG.normal(size=(30, 2)))
    cf.Problem(perceptron, inputs, jnp.zeros((30, 1))).check(params)
