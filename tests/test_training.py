"""Fit: the trainer's laws, against closed forms and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import chordflow as cf
from chordflow import models
from chordflow.training.linearise import Aim
from chordflow.training.spectral import initial_damping, step

RNG = np.random.default_rng(0)
ROWS = jnp.asarray(RNG.normal(size=(12, 4)))
VALUES = jnp.asarray(RNG.normal(size=(12, 1)))


def linear(w, row):
    return jnp.atleast_1d(row @ w)


def curve(p, z):
    return p[0] * jnp.exp(-p[1] * z)


Z = jnp.linspace(0, 1, 8)[:, None]
CURVE = cf.Problem(curve, Z, 2 * jnp.exp(-3 * Z))
START = jnp.array([1.0, 1.0])


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_a_linear_model_reaches_the_ridge_solution(alpha):
    fit = cf.fit(cf.Problem(linear, ROWS, VALUES), jnp.ones(4), alpha=alpha, max_steps=12)
    A, y = np.asarray(ROWS), np.asarray(VALUES)[:, 0]
    expected = np.linalg.solve(A.T @ A + alpha * 12 * np.eye(4), A.T @ y)
    np.testing.assert_allclose(fit.params, expected, rtol=1e-9)


def test_the_penalty_shrinks_what_the_data_do_not_see():
    wide = cf.Problem(linear, ROWS[:2], VALUES[:2])
    fit = cf.fit(wide, jnp.ones(4), alpha=0.1, max_steps=30)
    A, y = np.asarray(ROWS[:2]), np.asarray(VALUES[:2])[:, 0]
    np.testing.assert_allclose(fit.params, np.linalg.solve(A.T @ A + 0.2 * np.eye(4), A.T @ y), atol=1e-9)


def test_a_curve_is_fitted_to_the_last_digit_and_the_cost_never_rises():
    fit = cf.fit(CURVE, START, target=1e-26)
    assert fit.result_name == "target_reached"
    np.testing.assert_allclose(fit.params, [2.0, 3.0], rtol=1e-10)
    assert np.all(np.diff(fit.history.cost) <= 0)
    assert float(CURVE.cost(fit.params)) == pytest.approx(float(fit.cost), rel=1e-9)


def test_following_the_line_saves_steps():
    problem = cf.Problem(models.MLP("tanh"), ROWS, jnp.sin(2 * ROWS[:, :1]))
    params = models.mlp((4, 6, 1), seed=1).params
    start = float(problem.cost(params))
    followed = cf.fit(problem, params, target=1e-16 * start)
    # Damping alone: neither second order nor corrections (order 1 is what models without a forward derivative get).
    plain = 0
    aim = Aim(problem, params, None, jnp.asarray(0.0))
    theta, cost = problem.ravel(params)[0], jnp.asarray(start)
    lam = initial_damping(aim, theta)
    take = jax.jit(lambda th, c, lam: step(aim, th, c, lam, order=1, corrections=0)[:3])
    while cost > 1e-16 * start and plain < 50:
        theta, cost, lam = take(theta, cost, lam)
        plain += 1
    assert followed.result_name == "target_reached"
    assert len(followed.history.cost) < plain


def test_cross_entropy_finds_scipys_minimum():
    labels = jnp.asarray(RNG.dirichlet(np.ones(3), size=12))
    problem = cf.Problem(lambda w, row: row @ w.reshape(4, 3), ROWS, labels, loss=cf.CrossEntropy())
    fit = cf.fit(problem, jnp.zeros(12), max_steps=30)
    oracle = scipy.optimize.minimize(
        lambda w: float(problem.cost(jnp.asarray(w))),
        np.zeros(12),
        jac=lambda w: np.asarray(jax.grad(problem.cost)(jnp.asarray(w))),
        method="BFGS",
        options={"gtol": 1e-10},
    )
    assert float(fit.cost) == pytest.approx(oracle.fun, abs=1e-12)
    assert float(fit.cost) <= oracle.fun + 1e-14


def test_terms_and_weights_are_those_of_the_problem():
    terms = [
        cf.Term(linear, ROWS[:7], VALUES[:7], weight=2.0),
        cf.Term(linear, ROWS[7:], VALUES[7:], weights=jnp.arange(5.0)),
    ]
    fit = cf.fit(cf.Problem.from_terms(terms), jnp.zeros(4), max_steps=12)
    w = np.concatenate([np.full(7, 2.0 / 7), np.arange(5.0) / 10])
    A, y = np.asarray(ROWS), np.asarray(VALUES)[:, 0]
    np.testing.assert_allclose(fit.params, np.linalg.solve(A.T * w @ A, A.T * w @ y), rtol=1e-8)


def test_a_restart_goes_on_exactly():
    whole = cf.fit(CURVE, START, max_steps=6)
    half = cf.fit(CURVE, START, max_steps=3)
    rest = cf.fit(CURVE, START, max_steps=6, state=half.state)
    assert np.array_equal(rest.params, whole.params)
    assert np.array_equal(np.concatenate([half.history.cost, rest.history.cost]), whole.history.cost)


def test_jit_and_vmap_agree_with_the_loop_on_the_host():
    starts = jnp.array([[1.0, 1.0], [0.5, 2.0]])
    batched = jax.jit(jax.vmap(lambda p: cf.fit(CURVE, p, max_steps=5)))(starts)
    for i, start in enumerate(starts):
        alone = cf.fit(CURVE, start, max_steps=5)
        rows = len(alone.history.cost)
        np.testing.assert_allclose(batched.history.cost[i, :rows], alone.history.cost, rtol=1e-6, atol=1e-25)
        assert np.isnan(batched.history.cost[i, rows:]).all(), "unused rows are said to be so"


def test_a_model_without_forward_derivatives_says_so():
    @jax.custom_vjp
    def square(w):
        return w**2

    square.defvjp(lambda w: (w**2, w), lambda w, g: (2 * w * g,))
    fit = cf.fit(cf.Problem(lambda p, z: square(p) * z, Z + 1, 4 * (Z + 1)), jnp.array([1.0]), target=1e-20)
    assert fit.order == 1
    np.testing.assert_allclose(fit.params, [2.0], rtol=1e-9)
    assert cf.fit(CURVE, START, max_steps=1).order == 2


@pytest.mark.parametrize(
    ("options", "result"),
    [
        ({"max_steps": 2}, "step_limit"),
        ({"target": 1e-3}, "target_reached"),
        ({"gradient_tol": 1e-2}, "gradient_small"),
        ({"time_limit": 1e-9}, "time_limit"),
    ],
)
def test_how_a_fit_ends(options, result):
    assert cf.fit(CURVE, START, **options).result_name == result


def test_no_progress_at_a_minimum_keeps_the_parameters():
    fit = cf.fit(cf.Problem(linear, ROWS, VALUES), jnp.zeros(4), max_steps=60)
    assert fit.result_name == "no_progress"
    assert float(fit.cost) == float(np.min(fit.history.cost))


def test_a_domain_left_is_rejected_and_the_last_good_parameters_are_kept():
    problem = cf.Problem(lambda p, z: jnp.sqrt(p) * z, Z + 1, -(Z + 1))  # the target is behind p = 0
    fit = cf.fit(problem, jnp.array([1.0]), max_steps=40)
    assert np.isfinite(fit.params).all()
    assert fit.result_name in {"no_progress", "step_limit", "not_finite"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_steps": 0}, "max_steps must be an integer of at least 1"),
        ({"corrections": -1}, "corrections must be an integer of at least 0"),
        ({"target": 0.0}, "target must be positive or None"),
        ({"time_limit": -1.0}, "time_limit must be positive"),
        ({"alpha": -0.1}, "alpha must be non-negative"),
    ],
)
def test_a_mistake_is_one_line(options, text):
    with pytest.raises(ValueError, match=text):
        cf.fit(CURVE, START, **options)
