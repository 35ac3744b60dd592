"""D at a point: exact against prescribed matrices, adjoint, forward against reverse, reverse rules alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import WIDE_N, WIDE_Q, flat_params, perceptron, prescribed, wide, wide_params
from tolerances import tol

import chordflow as cf
from chordflow.memory import available_memory, require_memory
from chordflow.solve import WeightedJacobian

ROUNDING, SUMS = tol("float64", "rounding"), tol("float64", "sums")
RNG = np.random.default_rng(21)


@pytest.mark.parametrize(("n", "K", "outputs"), [(6, 9, 3), (6, 4, 2), (5, 5, 1), (4, 1, 4), (1, 3, 1)])
def test_the_prescribed_matrix_is_the_jacobian_to_rounding(n, K, outputs):
    matrix = RNG.normal(size=(n, K))
    problem, point = prescribed(matrix, outputs)
    J = problem.jacobian(point)
    assert J.shape == (n, K)
    assert J.dtype == jnp.float64
    np.testing.assert_array_equal(J.as_matrix(), matrix)
    np.testing.assert_allclose(J.gram(), matrix @ matrix.T, atol=ROUNDING * n * K)
    # The premise that it is nonlinear: a step away the Jacobian is another one.
    assert np.abs(problem.jacobian(point + 0.1).as_matrix() - matrix).max() > 0.1


@pytest.mark.parametrize("kind", ["single", "several"])
def test_products_agree_with_the_dense_form_and_each_other(kind):
    base = wide()
    problem = base if kind == "single" else cf.Problem.from_terms([*base.terms, *wide(1).terms])
    params = wide_params()
    J = problem.jacobian(params)
    D = np.asarray(J.as_matrix())
    v, w = RNG.normal(size=D.shape[1]), RNG.normal(size=D.shape[0])
    Jv = J.mv(problem.ravel(params)[1](jnp.asarray(v)))
    JTw = J.T.mv(problem.unflatten(jnp.asarray(w)))
    np.testing.assert_allclose(problem.flatten(Jv), D @ v, atol=SUMS)
    np.testing.assert_allclose(flat_params(JTw), D.T @ w, atol=SUMS)
    # ⟨Jv, w⟩ = ⟨v, Jᵀw⟩, without the dense form in between.
    assert np.dot(problem.flatten(Jv), w) == pytest.approx(np.dot(v, flat_params(JTw)), rel=SUMS)
    assert jax.tree.structure(Jv) == jax.tree.structure(problem.outputs(params))
    assert jax.tree.structure(JTw) == jax.tree.structure(params)
    assert J.T.T is J


def test_products_are_the_slope_of_the_outputs():
    problem, params = wide(), wide_params()
    theta, unravel = problem.ravel(params)
    v, h = jnp.asarray(RNG.normal(size=theta.size)), 1e-6
    slope = (problem.outputs(unravel(theta + h * v)) - problem.outputs(unravel(theta - h * v))) / (2 * h)
    np.testing.assert_allclose(problem.jacobian(params).mv(unravel(v)), slope, atol=tol("float64", "finite_difference"))


def test_rows_are_term_sample_and_output_major():
    problem = cf.Problem.from_terms([wide().terms[0], wide(1).terms[0]])
    params = wide_params()
    rows = [
        flat_params(jax.grad(lambda p, z=z, q=q: perceptron(p, z)[q])(params))
        for term in problem.terms
        for z in term.samples
        for q in range(WIDE_Q)
    ]
    np.testing.assert_allclose(problem.jacobian(params).as_matrix(), np.stack(rows), atol=SUMS)


def test_products_are_unweighted_and_the_weighted_jacobian_is_not():
    omega, params = jnp.asarray([0.5, 2.0, 0.0, 1.5]), wide_params()
    plain, weighted = wide(), wide(weights=omega)
    np.testing.assert_array_equal(plain.jacobian(params).as_matrix(), weighted.jacobian(params).as_matrix())
    root = np.sqrt(np.repeat(np.asarray(omega), WIDE_Q))
    A = WeightedJacobian.at(weighted, params)
    D = np.asarray(plain.jacobian(params).as_matrix())
    v, w = jnp.asarray(RNG.normal(size=D.shape[1])), jnp.asarray(RNG.normal(size=D.shape[0]))
    np.testing.assert_allclose(A.as_matrix(), root[:, None] * D, atol=SUMS)
    np.testing.assert_allclose(A.gram(), (root[:, None] * D) @ (root[:, None] * D).T, atol=SUMS)
    np.testing.assert_allclose(A.mv(v), root * (D @ v), atol=SUMS)
    np.testing.assert_allclose(A.rmv(w), D.T @ (root * w), atol=SUMS)


# --- a model with only a reverse rule -------------------------------------------------------------------------------


@jax.custom_vjp
def reverse_only(x):
    return jnp.tanh(x)


reverse_only.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))


def reverse_model(params, z):
    return params["out"] @ reverse_only(params["in"] @ z + params["bias"]) + params["shift"]


def few_parameters(w, z):
    """Three outputs, two parameters: more rows than columns for a single sample."""
    return reverse_only(jnp.stack([w[0] * z[0], w[1] * z[1], w[0] + w[1]]))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_model_really_has_no_forward_rule(transform):
    with pytest.raises(TypeError, match="custom_vjp"):
        transform(lambda x: jax.jvp(reverse_only, (x,), (x,)))(1.0)


def test_a_reverse_rule_is_enough():
    base, params = wide(), wide_params()
    problem = cf.Problem(reverse_model, base.terms[0].samples, base.targets)
    J, D = problem.jacobian(params), base.jacobian(params)
    tangent = jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape)), params)
    np.testing.assert_allclose(J.mv(tangent), D.mv(tangent), atol=SUMS)
    np.testing.assert_allclose(J.as_matrix(), D.as_matrix(), atol=SUMS)
    np.testing.assert_allclose(J.gram(), D.gram(), atol=SUMS)
    cotangent = jnp.asarray(RNG.normal(size=(WIDE_N, WIDE_Q)))
    np.testing.assert_allclose(flat_params(J.T.mv(cotangent)), flat_params(D.T.mv(cotangent)), atol=SUMS)


def test_a_reverse_rule_is_enough_with_more_outputs_than_parameters():
    inputs = jnp.asarray(RNG.normal(size=(2, 2)))
    problem = cf.Problem(few_parameters, inputs, jnp.zeros((2, 3)))
    w = jnp.asarray([0.3, -0.2])
    rows = [jax.jacrev(few_parameters)(w, z) for z in inputs]
    np.testing.assert_allclose(problem.jacobian(w).as_matrix(), np.concatenate(rows), atol=ROUNDING)


def test_another_error_in_the_model_is_not_taken_for_a_missing_rule():
    def broken(params, z):
        return perceptron(params, z) + jnp.sin("text")  # pyright: ignore[reportArgumentType]

    base = wide()
    with pytest.raises(TypeError, match="sin"):
        cf.Problem(broken, base.terms[0].samples, base.targets).jacobian(wide_params()).mv(wide_params())


# --- transformations, shapes, memory --------------------------------------------------------------------------------


def test_inside_jit_and_vmap():
    problem, params = wide(), wide_params()
    gram = problem.jacobian(params).gram()
    np.testing.assert_allclose(jax.jit(lambda p: problem.jacobian(p).gram())(params), gram, atol=SUMS)
    seeds = jax.tree.map(lambda a, b: jnp.stack([a, b]), params, wide_params(1))
    many = jax.vmap(lambda p: problem.jacobian(p).T.mv(problem.targets))(seeds)
    one = problem.jacobian(wide_params(1)).T.mv(problem.targets)
    np.testing.assert_allclose(flat_params(jax.tree.map(lambda leaf: leaf[1], many)), flat_params(one), atol=SUMS)


def test_what_does_not_fit_is_refused_with_numbers_before_it_is_allocated(monkeypatch):
    J = wide().jacobian(wide_params())  # 8 x 32 numbers of 8 bytes are 2048 bytes
    monkeypatch.setenv("CHORDFLOW_MEMORY_LIMIT", "2048")
    assert available_memory() == 2048
    J.as_matrix()
    monkeypatch.setenv("CHORDFLOW_MEMORY_LIMIT", "511")  # 8 x 8 numbers
    with pytest.raises(MemoryError, match=r"Gram matrix of n = 8 outputs needs 0.00 GiB"):
        J.gram()
    monkeypatch.setenv("CHORDFLOW_MEMORY_LIMIT", "2047")
    with pytest.raises(MemoryError, match=r"the Jacobian \(8 x 32\)"):
        J.as_matrix()
    monkeypatch.delenv("CHORDFLOW_MEMORY_LIMIT")
    with pytest.raises(MemoryError, match=r"the moon needs 1048576.00 GiB but [0-9.]+ GiB are available: stay at home"):
        require_memory(2**50, "the moon", "stay at home")
