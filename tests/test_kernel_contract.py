"""What the Gram engine promises beside its numbers: fallbacks, dtypes, compilation, memory, errors, several terms."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_kernel_zoo import assert_close, dense_gram
from zoo import ZOO, dense_layers, mlp, normal

import chordflow as cf
from chordflow.kernel import Options, Setup
from chordflow.kernel.samples import PerSample


def nothing(params):
    """A tree of frozen leaves without any."""
    return jax.tree.map(lambda _: None, params)


SQUARE = {"w": normal(4, 4), "g": normal(2)}


def forward_only(p, x):
    return jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.tanh(p["w"] @ c[1])), (0, x))[1][:2] * p["g"]


def branches(p, x):
    return jax.lax.cond(x[0] > 0, lambda x: p["w"] @ x, lambda x: jnp.sin(p["w"].T @ x), x)[:2] * p["g"]


@jax.custom_jvp
def doubled(w):
    return w


doubled.defjvp(lambda primals, tangents: (primals[0], 2 * tangents[0]))  # not the derivative of what it computes


def own_rule(p, x):
    return (doubled(p["w"]) @ x)[:2] * p["g"]


def sliced(p, x):
    return p["w"][:2] @ x * p["g"]


def sorted_weights(p, x):
    return jnp.sort(p["w"], axis=0)[:2] @ x * p["g"]


def powers(p, x):
    return (p["w"] ** 2 @ x)[:2] / p["g"]


FALLBACKS = {
    forward_only: "Reverse-mode differentiation does not work",
    branches: "enters cond",
    own_rule: "enters custom_jvp_call",
    sliced: "enters slice",
    sorted_weights: "enters sort",
    powers: "enters",
}


@pytest.mark.parametrize("fn", FALLBACKS, ids=lambda fn: fn.__name__)
def test_what_no_rule_covers_falls_back_with_a_reason(fn):
    x = normal(4, 4)
    plan = cf.gram_plan(fn, SQUARE, x)
    (leaf,) = [leaf for leaf in plan.leaves if leaf.name == "['w']"]
    assert leaf.rule == "fallback"
    assert FALLBACKS[fn] in leaf.why
    jacobian = jax.jacfwd if fn is forward_only else jax.jacrev
    jac = jax.vmap(lambda x: jacobian(fn)(SQUARE, x))(x)
    D = np.concatenate([np.reshape(j, (4, 2, -1)) for j in jax.tree.leaves(jac)], axis=-1)
    assert_close(cf.gram(fn, SQUARE, x), np.einsum("nqk,mrk->nqmr", D, D))


def test_leaves_that_leave_untouched_are_counted():
    def constant(p, x):
        return jnp.concatenate([p["b"], jnp.sum(x)[None] * p["a"]])

    def out_of_a_scan(p, x):
        return jax.lax.scan(lambda h, z: (h * z, p["b"].T), jnp.ones(()), x)[1][-1] + x[:1]

    def itself(p, x):
        return p["b"]

    params, x = {"a": normal(2), "b": normal(2)}, normal(3, 4)
    for fn in (constant, out_of_a_scan, itself):
        assert cf.gram_plan(fn, params, x).rules["['b']"] == "fallback"
        assert_close(cf.gram(fn, params, x), dense_gram(fn, params, x))


def test_terms_without_a_common_leaf():
    params, x = {"a": normal(8, 8), "b": normal(8, 8)}, normal(3, 8)
    terms = [cf.Term(lambda p, x, key=key: x @ p[key], x, jnp.zeros((3, 8))) for key in "ab"]
    J = cf.Problem.from_terms(terms).jacobian(params)
    G = np.asarray(J.gram())
    assert_close(G, np.asarray(J.as_matrix() @ J.as_matrix().T))
    assert not G[:24, 24:].any()


def test_one_leaf_falling_back_leaves_the_others_their_rules():
    params = {"w": normal(8, 8), "v": normal(8, 8)}
    plan = cf.gram_plan(lambda p, x: jnp.tanh(x @ p["v"]) @ jnp.sin(p["w"]), params, normal(5, 8))
    assert plan.rules == {"['v']": "dense pairs", "['w']": "fallback"}


def test_lookups_out_of_bounds_are_clipped_or_constant():
    table = normal(5, 3)
    ids = jnp.array([[0, 7], [4, -1], [9, 2]])
    for mode in ("clip", "fill"):

        def fn(w, i, mode=mode):
            return jnp.nan_to_num(jnp.tanh(w).at[i].get(mode=mode)).sum(axis=0) + w.at[i].get(mode=mode).sum(axis=0)

        def lookup(w, i, mode=mode):
            return jnp.where(jnp.isnan(rows := w.at[i].get(mode=mode)), 0.0, rows).sum(axis=0)

        assert cf.gram_plan(lookup, table, ids).rules == {"": "lookup columns"}
        assert_close(cf.gram(lookup, table, ids), dense_gram(lookup, table, ids))
        assert_close(cf.gram(fn, table, ids), dense_gram(fn, table, ids))


def test_one_sample_and_one_output():
    fn, params, x = mlp, dense_layers(3, 4, 1), normal(1, 3)
    assert_close(cf.gram(fn, params, x), dense_gram(fn, params, x))


def test_dtypes_are_kept_and_float64_sums_are_more_accurate():
    params, x = dense_layers(20, 64, 64, 1), normal(12, 20)
    exact = dense_gram(mlp, params, x)
    small = jax.tree.map(lambda v: v.astype(jnp.float32), (params, x))
    single = cf.gram(mlp, *small)
    mixed = cf.gram(mlp, *small, accumulate=jnp.float64)
    assert (single.dtype, mixed.dtype) == (jnp.float32, jnp.float64)
    scale = np.max(np.abs(exact))
    # Both carry the rounding of the network in float32; a float32 sum adds its own.
    assert np.max(np.abs(np.asarray(mixed) - exact)) < 1e-5 * scale
    assert np.max(np.abs(np.asarray(single) - exact)) < 1e-5 * scale
    one_tile = np.asarray(cf.gram(mlp, *jax.tree.map(lambda v: v.astype(jnp.float64), small)))
    assert np.max(np.abs(np.asarray(mixed) - one_tile)) > 0  # the network did run in float32


def test_second_call_does_not_trace_again():
    calls = []

    def fn(p, x):
        calls.append(1)
        return mlp(p, x)

    params, x = dense_layers(3, 4, 2), normal(4, 3)
    cf.gram(fn, params, x)
    first = len(calls)
    cf.gram(fn, jax.tree.map(lambda v: v + 1, params), x + 1)
    assert first > 0
    assert len(calls) == first


def test_inside_jit_and_vmap():
    params, x = dense_layers(3, 4, 2), normal(4, 3)
    expected = dense_gram(mlp, params, x)
    assert_close(jax.jit(lambda p, x: cf.gram(mlp, p, x))(params, x), expected)
    two = jax.tree.map(lambda v: jnp.stack([v, 2 * v]), params)
    both = jax.vmap(lambda p: cf.gram(mlp, p, x))(two)
    assert_close(both[0], expected)
    assert_close(both[1], dense_gram(mlp, jax.tree.map(lambda v: 2 * v, params), x))


def test_several_terms_and_their_cross_blocks():
    params = dense_layers(2, 6, 1)

    def interior(p, z):
        return jnp.trace(jax.hessian(lambda z: mlp(p, z)[0])(z))[None]

    def two_values(p, z):
        return jnp.concatenate([mlp(p, z), mlp(p, 2 * z)])

    inner, edge = normal(5, 2), normal(3, 2)
    problem = cf.Problem.from_terms(
        [cf.Term(interior, inner, jnp.zeros((5, 1))), cf.Term(two_values, edge, jnp.zeros((3, 2)))]
    )
    J = problem.jacobian(params)
    D = np.asarray(J.as_matrix())
    assert_close(J.gram(), D @ D.T)


def test_shapes_are_enough_for_a_plan():
    model = ZOO["cnn"]()
    params, inputs = eqx.filter_eval_shape(lambda tree: tree, (model.params, model.inputs))
    assert str(cf.gram_plan(model.fn, params, inputs)) == str(cf.gram_plan(model.fn, model.params, model.inputs))


def test_what_does_not_fit_is_refused_before_it_is_allocated():
    params, x = dense_layers(8, 8, 2), normal(2, 8)
    many = jax.ShapeDtypeStruct((10**6, 8), jnp.float64)
    with pytest.raises(MemoryError, match=r"needs 298\d\d\.\d\d GiB .* but 6.00 GiB are available: use gram_trace"):
        cf.gram_plan(mlp, params, many, memory=6 * 2**30)
    with pytest.raises(MemoryError, match=r"0\.00 GiB are available"):
        cf.gram(mlp, params, x, memory=100)


def test_mistakes_have_one_line():
    params, x = dense_layers(3, 2), normal(4, 3)
    with pytest.raises(ValueError, match=r"must return one array \(Q,\) for one sample, got float64\[\]"):
        cf.gram(lambda p, x: mlp(p, x)[0], params, x)
    with pytest.raises(ValueError, match="share a first axis"):
        cf.gram(mlp, params, (x, x[:2]))
    with pytest.raises(ValueError, match="at least one sample"):
        cf.gram(mlp, params, x[:0])
    with pytest.raises(ValueError, match="positive number of bytes"):
        cf.gram(mlp, params, x, memory=-1)
    with pytest.raises(ValueError, match="floating dtype"):
        cf.gram(mlp, params, x, accumulate=jnp.int32)
    with pytest.raises(ValueError, match=r"v must be like the outputs \(4, 2\), got \(4, 3\)"):
        cf.gram_mv(mlp, params, x, x)
    with pytest.raises(ValueError, match="kind must be"):
        cf.gram_plan(mlp, params, x, kind="half")
    with pytest.raises(ValueError, match="no trainable parameters"):
        cf.gram(mlp, params, x, trainable=False)


def test_the_setup_is_the_same_for_shapes_and_arrays():
    params, x = dense_layers(3, 4, 2), normal(4, 3)
    shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), (params, x))
    one = Setup.of((PerSample(mlp, x, nothing(params)),), params, None, "full", Options(10**9))
    two = Setup.of((PerSample(mlp, shapes[1], nothing(params)),), shapes[0], None, "full", Options(10**9))
    assert (one.groups, one.budget) == (two.groups, two.budget)


def test_rows_put_together_are_the_matrix():
    params, x = dense_layers(3, 4, 2), normal(7, 3)
    pieces = {where.start: piece for where, piece in cf.gram_rows(mlp, params, x, rows=3)}
    assert list(pieces) == [0, 3, 6]
    assert_close(jnp.concatenate(list(pieces.values())), dense_gram(mlp, params, x))
    (whole,) = [piece for _, piece in cf.gram_rows(mlp, params, x)]
    assert_close(whole, dense_gram(mlp, params, x))


def test_one_file_reads_jaxprs():
    files = Path(cf.__file__).parent.rglob("*.py")
    assert [path.name for path in files if "jaxpr" in path.read_text(encoding="utf-8")] == ["trace.py"]
