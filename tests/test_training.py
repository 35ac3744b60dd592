"""Fit: the trainer's laws, against closed forms and scipy."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import chordflow as cf
from chordflow import models, solve
from chordflow.solve import SVD, Cholesky, Iterative

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


def tanh_problem():
    return cf.Problem(models.MLP("tanh"), ROWS, jnp.sin(2 * ROWS[:, :1])), models.mlp((4, 6, 1), seed=1).params


@pytest.mark.parametrize("less", [{"corrections": 0}, {"reuses": 0}, {"corrections": 0, "reuses": 0}])
def test_following_the_line_takes_the_cost_down_faster(less):
    problem, params = tanh_problem()
    followed, plain = cf.fit(problem, params, max_steps=4), cf.fit(problem, params, max_steps=4, **less)
    assert float(followed.cost) < 0.1 * float(plain.cost)


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
    problem, params = tanh_problem()
    whole = cf.fit(problem, params, max_steps=4)
    half = cf.fit(problem, params, max_steps=2)
    rest = cf.fit(problem, params, max_steps=4, state=half.state)
    assert np.array_equal(rest.state.theta, whole.state.theta)
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


@pytest.mark.parametrize("fraction", [0.1, 0.05])
def test_a_fraction_of_the_way_samples_the_straight_line(fraction):
    problem, params = tanh_problem()
    start, y = problem.outputs(params), problem.targets
    seen = []
    _, unravel = problem.ravel(params)
    cf.fit(problem, params, fraction=fraction, max_steps=4, callback=lambda s: seen.append(s.theta))
    for k, theta in enumerate(seen, start=1):
        left = (1 - fraction) ** k
        np.testing.assert_allclose(problem.outputs(unravel(theta)), y + left * (start - y), atol=1e-3)


def test_the_callback_can_stop():
    fit = cf.fit(CURVE, START, callback=lambda state: state.num_steps == 2)
    assert fit.result_name == "stopped"
    assert int(fit.state.num_steps) == 2


def test_a_loss_that_is_not_convex_ends_with_its_code():
    # Beyond its inflection the Hessian of this loss is negative: it has no factor and the step no metric.
    loss = cf.Loss(lambda x, y: jnp.sum(1 - jnp.exp(-((x - y) ** 2))))
    fit = cf.fit(cf.Problem(lambda w, z: w * z, Z + 1, 3 * (Z + 1), loss), jnp.array([0.5]), max_steps=5)
    assert fit.result_name == "not_finite"
    assert np.array_equal(fit.params, [0.5])


@pytest.mark.parametrize("method", [SVD(), Cholesky()])
def test_a_goal_is_reached_with_every_method(method):
    labels = jnp.asarray(RNG.dirichlet(3 * np.ones(3), size=6))
    problem = cf.Problem(lambda w, row: jnp.tanh(row) @ w.reshape(4, 3), ROWS[:6], labels, loss=cf.CrossEntropy())
    w = 0.1 * jnp.arange(12.0)
    # Within reach, and of the lowest cost, so that the cost does not forbid the way there.
    goal = problem.outputs(cf.fit(problem, w, max_steps=30).params)
    fit = cf.fit(problem, w, goal=goal, linear_solver=method, max_steps=30)
    assert float(jnp.max(jnp.abs(problem.outputs(w) - goal))) > 0.1
    assert float(jnp.max(jnp.abs(problem.outputs(fit.params) - goal))) < 1e-6
    assert np.all(np.diff(fit.history.cost) <= 0)


def test_the_equilibrium_is_a_goal_by_name():
    labels = jnp.asarray(np.random.default_rng(4).dirichlet(3 * np.ones(3), size=4))
    problem = cf.Problem(lambda w, row: row @ w.reshape(4, 3), ROWS[:4], labels, loss=cf.CrossEntropy())
    w = 0.1 * jnp.arange(12.0)
    fit = cf.fit(problem, w, goal="equilibrium", max_steps=30)
    x = np.asarray(problem.outputs(w))
    expected = np.log(labels) + np.mean(x - np.log(labels), axis=1, keepdims=True)
    np.testing.assert_allclose(problem.outputs(fit.params), expected, atol=1e-7)


def test_labels_without_an_equilibrium_say_so():
    sharp = cf.Problem(linear_logits, ROWS[:2], jnp.eye(3)[:2], loss=cf.CrossEntropy())
    with pytest.raises(ValueError, match="one-hot labels have no equilibrium"):
        cf.fit(sharp, jnp.ones((4, 3)), goal="equilibrium")
    unknown = cf.Problem(linear_logits, ROWS[:2], jnp.eye(3)[:2], loss=cf.Loss(lambda x, y: jnp.sum((x - y) ** 4)))
    with pytest.raises(ValueError, match="no equilibrium in closed form"):
        cf.fit(unknown, jnp.ones((4, 3)), goal="equilibrium")


def linear_logits(w, row):
    return row @ w


@pytest.mark.parametrize("damping", [1e-4, 1.0])
def test_the_first_damping_is_a_share_of_the_scale(damping):
    problem, params = tanh_problem()
    D = np.asarray(problem.jacobian(params).as_matrix())
    fit = cf.fit(problem, params, damping=damping, linear_solver=Cholesky(), max_steps=1)
    assert float(fit.history.damping[0]) == pytest.approx(damping * np.sum(D**2), rel=1e-12)


def test_much_is_done_with_a_decomposition_that_costs_much():
    problem, params = tanh_problem()
    few = cf.fit(problem, params, max_steps=2, linear_solver=Cholesky())
    same = cf.fit(problem, params, max_steps=2, linear_solver=Cholesky(), corrections=2, reuses=0)
    more = cf.fit(problem, params, max_steps=2, linear_solver=SVD())
    again = cf.fit(problem, params, max_steps=2, linear_solver=SVD(), corrections=3, reuses=2)
    assert np.array_equal(few.history.cost, same.history.cost)
    assert np.array_equal(more.history.cost, again.history.cost)


def test_a_state_of_another_cost_is_not_believed():
    problem, params = tanh_problem()
    first = cf.fit(problem, params, max_steps=5)
    goes_on = cf.fit(problem, params, max_steps=8, alpha=0.1, state=first.state)
    fresh = cf.fit(problem, goes_on.params, max_steps=1, alpha=0.1)
    assert float(goes_on.cost) == pytest.approx(float(fresh.history.cost[0]), rel=0.2)
    assert float(goes_on.cost) > 0.01 > float(first.cost)


def test_ensembles_over_keys_and_penalties():
    term = cf.Term(curve, lambda key: jax.random.uniform(key, (6, 1)), lambda z: 2 * jnp.exp(-3 * z))
    problem = cf.Problem.from_terms([term])
    keys = jax.random.split(jax.random.key(5), 2)
    by_key = jax.vmap(lambda key: cf.fit(problem, START, max_steps=1, key=key).cost)(keys)
    assert by_key[0] != by_key[1]
    assert float(by_key[1]) == pytest.approx(float(cf.fit(problem, START, max_steps=1, key=keys[1]).cost), rel=1e-3)
    by_alpha = jax.vmap(lambda alpha: cf.fit(CURVE, START, max_steps=6, alpha=alpha).cost)(jnp.array([0.01, 0.1]))
    assert by_alpha[0] < by_alpha[1]


def test_nothing_tried_is_not_a_number():
    fit = cf.fit(CURVE, jnp.array([2.0, 3.0]), gradient_tol=1e-3)
    assert fit.result_name == "gradient_small"
    assert np.isnan(fit.history.unreachable_fraction[0])
    assert int(fit.history.tries[0]) == 0


METHODS = {"SVD": SVD(), "Cholesky": Cholesky(), "Iterative": Iterative(rank=4)}


@pytest.mark.parametrize(
    ("rows", "loss", "alpha"),
    [(12, cf.CrossEntropy(), 0.0), (3, cf.SquaredError(), 0.0), (3, cf.CrossEntropy(), 0.05)],
    ids=["tall entropy", "wide squares", "wide entropy with penalty"],
)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_same_minimum(method, rows, loss, alpha):
    labels = jnp.asarray(RNG.dirichlet(np.ones(3), size=rows))
    problem = cf.Problem(lambda w, row: row @ w.reshape(4, 3), ROWS[:rows], labels, loss=loss)
    fit = cf.fit(problem, jnp.full(12, 0.1), alpha=alpha, max_steps=60, linear_solver=METHODS[method])

    def penalised(w):
        return problem.cost(w) + 0.5 * alpha * jnp.sum(w**2)

    oracle = scipy.optimize.minimize(jax.jit(penalised), np.full(12, 0.1), jac=jax.jit(jax.grad(penalised)), tol=1e-12)
    assert float(fit.cost) == pytest.approx(oracle.fun, abs=1e-9)
    assert fit.method == METHODS[method]


def test_every_method_has_been_tried():
    public = {c for c in vars(solve).values() if inspect.isclass(c) and issubclass(c, solve.AbstractMethod)}
    assert {type(m) for m in METHODS.values()} == public - {solve.AbstractMethod}


def test_drawn_samples_are_drawn_anew_for_each_step_and_restart_exactly():
    term = cf.Term(curve, lambda key: jax.random.uniform(key, (6, 1)), lambda z: 2 * jnp.exp(-3 * z) + 0.1 * z**2)
    problem = cf.Problem.from_terms([term])
    whole = cf.fit(problem, START, max_steps=6, key=jax.random.key(3))
    half = cf.fit(problem, START, max_steps=3, key=jax.random.key(3))
    rest = cf.fit(problem, START, max_steps=6, state=half.state)
    assert np.array_equal(rest.params, whole.params)
    other = cf.fit(problem, START, max_steps=6, key=jax.random.key(4))
    assert not np.array_equal(other.params, whole.params)
    # The cost is that of newly drawn points, so that it cannot only fall.
    assert np.any(np.diff(whole.history.cost) > 0)


def test_no_progress_at_a_minimum_keeps_the_parameters():
    fit = cf.fit(cf.Problem(linear, ROWS, VALUES), jnp.zeros(4), max_steps=60)
    assert fit.result_name == "no_progress"
    assert float(fit.cost) == float(np.min(fit.history.cost))


def test_a_domain_left_is_rejected_and_the_last_good_parameters_are_kept():
    problem = cf.Problem(lambda p, z: jnp.sqrt(p) * z, Z + 1, -(Z + 1))  # the target is behind p = 0
    fit = cf.fit(problem, jnp.array([1.0]), max_steps=40)
    assert np.isfinite(fit.params).all()
    assert fit.result_name == "no_progress"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_steps": 0}, "max_steps must be an integer of at least 1"),
        ({"corrections": -1}, "corrections must be an integer of at least 0"),
        ({"reuses": -1}, "reuses must be an integer of at least 0"),
        ({"gradient_tol": -1.0}, "gradient_tol must be in"),
        ({"fraction": 0.0}, "fraction must be in"),
        ({"goal": jnp.zeros((3, 1))}, "goal must be like the outputs"),
        ({"goal": jnp.full((8, 1), jnp.inf)}, "goal is not finite"),
        ({"goal": "labels"}, "goal must be outputs or"),
        ({"target": 0.0}, "target must be in"),
        ({"damping": 0.0}, "damping must be in"),
        ({"time_limit": -1.0}, "time_limit must be in"),
        ({"alpha": -0.1}, "alpha must be in"),
    ],
)
def test_a_mistake_is_one_line(options, text):
    with pytest.raises(ValueError, match=text):
        cf.fit(CURVE, START, **options)


def test_fits_of_other_lengths_compile_nothing():
    def length(steps):
        return len(cf.fit(CURVE, START, fraction=0.5, max_steps=steps).history.cost)

    assert length(1) == 1
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, duration_secs, **kwargs: compiled.append(event))
    try:
        assert [length(7), length(11)] == [7, 11]
        assert not [event for event in compiled if "backend_compile" in event]
        _ = jax.jit(lambda x: x + 1)(START)
        assert [event for event in compiled if "backend_compile" in event], "compilations are seen"
    finally:
        jax.monitoring.clear_event_listeners()
