"""The Gram engine against dense Jacobians, on every model of the zoo, and the rule that every leaf gets."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import ZOO

import chordflow as cf

# Sums of up to a few thousand products in another order; the matrix is compared relative to its largest entry.
EXACT = 1e-12


def dense_gram(fn, params, inputs, inputs2=None):
    """DDᵀ by jacrev of one sample at a time, in NumPy."""
    theta, frozen = eqx.partition(params, eqx.is_inexact_array)
    jacobian = jax.jit(lambda x: jax.jacrev(lambda theta: fn(eqx.combine(theta, frozen), x))(theta))

    def rows(inputs):
        jacs = [jax.tree.leaves(jacobian(x)) for x in inputs]
        return np.stack([np.concatenate([np.reshape(j, (j.shape[0], -1)) for j in jac], axis=1) for jac in jacs])

    D = rows(inputs)
    E = D if inputs2 is None else rows(inputs2)
    return np.einsum("nqk,mrk->nqmr", D, E)


def assert_close(actual, expected):
    scale = np.max(np.abs(expected))
    assert actual.shape == expected.shape
    assert np.max(np.abs(np.asarray(actual) - expected)) <= EXACT * scale


@pytest.fixture(params=ZOO, scope="module")
def case(request):
    model = ZOO[request.param]()
    return model, dense_gram(model.fn, model.params, model.inputs)


def test_gram_is_the_dense_one(case):
    model, expected = case
    assert_close(cf.gram(model.fn, model.params, model.inputs), expected)


@pytest.fixture(params=["ten outputs", "transformer", "tied pairs", "laplacian", "gradient pairs"], scope="module")
def some_case(request):
    model = ZOO[request.param]()
    return model, dense_gram(model.fn, model.params, model.inputs)


def test_trace_and_blocks_are_parts_of_it(some_case):
    model, expected = some_case
    assert_close(cf.gram_trace(model.fn, model.params, model.inputs), np.einsum("nqmq->nm", expected))
    assert_close(cf.gram_blocks(model.fn, model.params, model.inputs), np.einsum("nqnr->nqr", expected))


def test_products_need_no_matrix(some_case):
    model, expected = some_case
    v = jnp.cos(jnp.arange(expected[0, 0].size, dtype=jnp.float64)).reshape(expected.shape[2:])
    product = np.einsum("nqmr,mr->nq", expected, v)
    # Cancellation in the sum over (m, r) is measured by the sum of magnitudes.
    actual = np.asarray(cf.gram_mv(model.fn, model.params, model.inputs, v))
    assert np.max(np.abs(actual - product)) <= EXACT * np.max(np.einsum("nqmr,mr->nq", np.abs(expected), np.abs(v)))


def test_each_leaf_takes_its_structured_path(case):
    model, _ = case
    plan = cf.gram_plan(model.fn, model.params, model.inputs)
    assert plan.rules == model.rules
    assert "fallback" not in plan.explain()


@pytest.mark.parametrize("name", ["ten outputs", "cnn", "rnn", "tied pairs"])
def test_other_inputs_and_ragged_tiles(name, monkeypatch):
    model = ZOO[name]()
    many = jax.tree.map(lambda x: jnp.concatenate([x, x[::-1], x[:3]]), model.inputs)
    one = jax.tree.map(lambda x: x[:1], model.inputs)
    expected = dense_gram(model.fn, model.params, many, one)
    assert_close(cf.gram(model.fn, model.params, many, one), expected)
    assert_close(cf.gram_trace(model.fn, model.params, one, many), np.einsum("nqmq->mn", expected))
    # Tiles of about two samples, for which N is no multiple.
    monkeypatch.setattr("chordflow.kernel.budget.TILE", 2 * expected.shape[1])
    jax.clear_caches()
    assert cf.gram_plan(model.fn, model.params, many).step < len(many)
    assert_close(cf.gram(lambda p, x: model.fn(p, x), model.params, many), dense_gram(model.fn, model.params, many))


@pytest.mark.parametrize("name", ["positions", "tied pairs", "gradient pairs"])
def test_positions_are_added_one_by_one(name, monkeypatch):
    model = ZOO[name]()
    monkeypatch.setattr("chordflow.kernel.contract.UNROLLED", 1)
    jax.clear_caches()
    expected = dense_gram(model.fn, model.params, model.inputs)
    assert_close(cf.gram(model.fn, model.params, model.inputs), expected)
    assert_close(cf.gram_trace(model.fn, model.params, model.inputs), np.einsum("nqmq->nm", expected))
    assert_close(cf.gram_blocks(model.fn, model.params, model.inputs), np.einsum("nqnr->nqr", expected))


@pytest.mark.parametrize("name", ["ten outputs", "transformer", "rnn"])
def test_a_memory_budget_costs_time_only(name):
    model = ZOO[name]()
    many = jax.tree.map(lambda x: jnp.concatenate([x] * 5), model.inputs)
    free = cf.gram_plan(model.fn, model.params, many)
    tight = cf.gram_plan(model.fn, model.params, many, memory=int(0.8 * free.peak_bytes))
    assert tight.blocked
    assert not free.blocked
    assert tight.peak_bytes <= 0.8 * free.peak_bytes
    assert_close(
        cf.gram(model.fn, model.params, many, memory=int(0.8 * free.peak_bytes)),
        dense_gram(model.fn, model.params, many),
    )


def test_frozen_leaves_are_left_out():
    model = ZOO["deep"]()
    trainable = (*[{"w": True, "b": False}] * 2, *[False] * 2)

    def fn(params, x):
        stop = jax.lax.stop_gradient
        first = tuple({"w": layer["w"], "b": stop(layer["b"])} for layer in params[:2])
        return model.fn((*first, *stop(params[2:])), x)

    expected = dense_gram(fn, model.params, model.inputs)
    assert_close(cf.gram(model.fn, model.params, model.inputs, trainable=trainable), expected)
    # Taken out by the function itself the same leaves fall back, to a Jacobian of zeros.
    assert_close(cf.gram(fn, model.params, model.inputs), expected)


def test_a_perturbed_gram_is_not_the_dense_one(some_case):
    """Negative control: the tolerance sees one part in 10¹⁰."""
    model, expected = some_case
    with pytest.raises(AssertionError):
        assert_close(cf.gram(model.fn, model.params, model.inputs) * (1 + 1e-10), expected)
