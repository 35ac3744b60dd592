"""What a step of a fit does and reports, and how one that was cut short goes on: against NumPy and laws of order."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import chordflow as cf
from chordflow import models
from chordflow.solve import SVD, Cholesky, Iterative
from chordflow.training import follow
from chordflow.training.linearise import Aim
from chordflow.training.loop import _resumed, default_solver

RNG = np.random.default_rng(7)
ROWS = jnp.asarray(RNG.normal(size=(8, 3)))


def steep_problem():
    """A network from weights so large that steps are rejected."""
    params = jax.tree.map(lambda leaf: 3 * leaf, models.mlp((3, 6, 1), seed=2).params)
    return cf.Problem(models.MLP("tanh"), ROWS, jnp.sin(4 * ROWS[:, :1])), params


def cuts_between_tries(problem, params, max_steps, method):
    """Cut a fit after each number of steps and go on; how many of the cuts fall between two tries of one step."""
    options: dict[str, Any] = {"linear_solver": method, "damping": 1e-6}
    whole = cf.fit(problem, params, max_steps=max_steps, **options)
    between = 0
    for steps in range(1, max_steps):
        half = cf.fit(problem, params, max_steps=steps, **options)
        between += int(half.state.rejections) > 0
        rest = cf.fit(problem, params, max_steps=max_steps, state=half.state, **options)
        assert np.array_equal(rest.state.theta, whole.state.theta), steps
        assert float(rest.state.lam) == float(whole.state.lam), steps
    return between


@pytest.mark.parametrize("method", [Cholesky(), SVD()], ids=["Cholesky", "SVD"])
def test_a_fit_cut_anywhere_even_between_two_tries_goes_on_exactly(method):
    assert cuts_between_tries(*steep_problem(), 14, method) >= (2 if method == Cholesky() else 0)


def test_a_cut_between_two_tries_goes_on_with_the_samples_of_its_step():
    term = cf.Term(
        models.MLP("tanh"), lambda key: jax.random.normal(key, (8, 3)), lambda rows: jnp.sin(4 * rows[:, :1])
    )
    assert cuts_between_tries(cf.Problem.from_terms([term]), steep_problem()[1], 12, Cholesky()) >= 2


@pytest.mark.parametrize("shift", [0.0, -5.0], ids=["positive", "negative"])
def test_a_saved_cost_is_believed_where_it_is_the_cost_to_rounding(shift):
    loss = cf.Loss(lambda x, y: jnp.sum((x - y) ** 2) + shift)
    rows = jnp.linspace(0.1, 1, 9)[:, None]
    problem = cf.Problem(lambda w, row: jnp.atleast_1d(jnp.exp(row @ w)), rows, jnp.exp(rows), loss=loss)
    theta = jnp.ones(1)
    aim = Aim(problem, theta, None, None, jnp.ones(()), aims_part=False)

    def resumed(cost):
        none = jnp.zeros((), int)
        state = cf.FitState(theta, jnp.asarray(cost), jnp.ones(()), none, none, jax.random.key(0))
        return float(_resumed(aim, theta, state, None).cost)

    exact = float(problem.cost(theta))
    assert exact == shift
    # What the last digits of the outputs make of this cost in another program, which may be all there is of it.
    assert resumed(exact + 3e-27) == exact + 3e-27
    assert resumed(exact + 1e-3) == np.inf


@pytest.mark.parametrize("order", [1, 2, 3])
def test_each_taylor_term_keeps_the_outputs_straight_to_one_more_order(order):
    # More parameters than outputs: A⁺ reaches every correction, so that only the order limits the straightness.
    problem, params = (
        cf.Problem(models.MLP("tanh"), ROWS[:4], jnp.sin(ROWS[:4, :1])),
        models.mlp((3, 8, 1), seed=1).params,
    )
    theta, _ = problem.ravel(params)
    aim = Aim(problem, params, None, None, jnp.ones(()), aims_part=False)
    point = follow.linearise(aim, SVD(), theta)
    factor = point.decomposition.at(1e-24 * point.decomposition.scale)
    full = factor.damped(aim.residual(point.x), 1)

    def off(size):
        v = size * full
        end = follow._bent(aim, point, factor, v, order)[1] if order > 1 else theta + v
        return float(jnp.linalg.norm(aim.outputs(end) - point.x - factor.push(v)))

    sizes = [0.02, 0.01]
    measured = np.log2(off(sizes[0]) / off(sizes[1]))
    assert measured == pytest.approx(order + 1, abs=0.1)


def test_the_third_term_can_be_asked_for():
    problem, params = steep_problem()
    options: dict[str, Any] = {"max_steps": 1, "corrections": 0, "reuses": 0}
    by_order = {order: cf.fit(problem, params, order=order, **options) for order in (1, 2, 3)}
    assert [by_order[order].order for order in (1, 2, 3)] == [1, 2, 3]
    assert np.array_equal(cf.fit(problem, params, **options).params[0]["w"], by_order[2].params[0]["w"])
    assert len({float(fit.cost) for fit in by_order.values()}) == 3


def test_history_is_what_numpy_finds():
    problem, params = steep_problem()
    theta, unravel = problem.ravel(params)
    x, y = np.asarray(problem.outputs(params))[:, 0], np.asarray(problem.targets)[:, 0]
    D = np.asarray(problem.jacobian(params).as_matrix())
    options: dict[str, Any] = {"max_steps": 1, "damping": 0.1, "corrections": 0, "reuses": 0, "order": 1}
    fit = cf.fit(problem, params, linear_solver=Cholesky(), **options)
    row = {
        name: float(getattr(fit.history, name)[0]) for name in ("gain", "effective_dimension", "unreachable_fraction")
    }
    lam = 0.1 * np.sum(D**2)
    assert float(fit.history.damping[0]) == pytest.approx(lam, rel=1e-12)
    v = D.T @ np.linalg.solve(D @ D.T + lam * np.eye(8), y - x)
    costs = [float(problem.cost(unravel(point))) for point in (theta, theta + v)]
    model = 0.5 * (np.sum((y - x) ** 2) - np.sum((y - x - D @ v) ** 2)) / 8
    assert row["gain"] == pytest.approx((costs[0] - costs[1]) / model, rel=1e-9)
    assert row["unreachable_fraction"] == pytest.approx(np.linalg.norm(y - x - D @ v) / np.linalg.norm(y - x), rel=1e-9)
    squares = np.linalg.svd(D, compute_uv=False) ** 2
    exact = np.sum(squares / (squares + lam))
    assert row["effective_dimension"] == pytest.approx(exact, rel=0.15), "estimated from 16 probes"
    by_svd = cf.fit(problem, params, linear_solver=SVD(), **options)
    taken = float(by_svd.history.damping[0])
    assert float(by_svd.history.effective_dimension[0]) == pytest.approx(np.sum(squares / (squares + taken)), rel=1e-9)


def test_one_hot_labels_are_fitted_to_a_target_and_say_so():
    labels = jnp.eye(3)[jnp.arange(8) % 3]
    problem = cf.Problem(models.MLP("tanh"), ROWS, labels, loss=cf.CrossEntropy())
    fit = cf.fit(problem, models.mlp((3, 8, 3), seed=0).params, target=1e-3)
    assert fit.result_name == "target_reached"
    assert np.array_equal(np.argmax(problem.outputs(fit.params), axis=1), np.arange(8) % 3)


def test_a_bar_shows_steps_and_the_cost(capsys):
    problem, params = steep_problem()
    cf.fit(problem, params, max_steps=2, progress=True)
    shown = capsys.readouterr().err
    assert "fit:" in shown
    assert "cost=" in shown


@pytest.mark.parametrize(
    ("shape", "megabytes", "expected"),
    [
        ((50, 3, 20), 1000, SVD),
        ((50, 3, 20), 0.01, Iterative),  # nothing of the size of the Jacobian, nor n²
        ((400, 3, 500), 1000, Cholesky),
        ((400, 3, 500), 12, Cholesky),  # AAᵀ, but not the Jacobian
        ((400, 3, 500), 2, Iterative),
        ((3000, 3, 300), 30, Iterative),  # AᵀA needs the Jacobian
        ((3000, 3, 300), 1000, Cholesky),
    ],
)
def test_the_solver_is_chosen_by_size_and_memory(shape, megabytes, expected, monkeypatch):
    n, features, hidden = shape
    problem = cf.Problem(models.MLP("tanh"), jnp.zeros((n, features)), jnp.zeros((n, 1)))
    monkeypatch.setenv("CHORDFLOW_MEMORY_LIMIT", str(int(megabytes * 1e6)))
    K = (features + 2) * hidden + 1
    assert isinstance(default_solver(problem, K), expected)


def test_states_and_goals_that_do_not_belong_here_are_refused():
    problem, params = steep_problem()
    state = cf.fit(problem, params, max_steps=1).state
    with pytest.raises(ValueError, match="order must be an integer of at least 1, got 0"):
        cf.fit(problem, params, order=0)
    with pytest.raises(ValueError, match="give key or state, not both"):
        cf.fit(problem, params, state=state, key=jax.random.key(0))
    other = models.mlp((3, 4, 1), seed=0).params
    with pytest.raises(ValueError, match="state has 31 trainable parameters, these params have 21"):
        cf.fit(problem, other, state=state)
    drawn = cf.Problem.from_terms(
        [cf.Term(models.MLP("tanh"), lambda key: jax.random.normal(key, (8, 3)), jnp.zeros((8, 1)))]
    )
    with pytest.raises(ValueError, match="a goal in output space belongs to fixed samples"):
        cf.fit(drawn, params, goal=(jnp.zeros((8, 1)),))
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    rows = jnp.asarray(ROWS, jnp.float32)
    with pytest.raises(ValueError, match="float32 parameters need float64"):
        cf.fit(cf.Problem(models.MLP("tanh"), rows, rows[:, :1]), single)


def test_under_jit_what_needs_a_host_is_refused_and_what_is_traced_is_not():
    problem, params = steep_problem()
    refused: list[dict[str, Any]] = [{"callback": lambda state: None}, {"time_limit": 1.0}, {"progress": True}]
    for options in refused:
        with pytest.raises(ValueError, match=f"{next(iter(options))} cannot work under jit"):
            jax.jit(lambda p, options=options: cf.fit(problem, p, max_steps=1, **options).cost)(params)
    dampings = jnp.array([1e-3, 1e-1])
    costs = jax.jit(jax.vmap(lambda d: cf.fit(problem, params, damping=d, max_steps=1, linear_solver=Cholesky()).cost))(
        dampings
    )
    alone = [cf.fit(problem, params, damping=float(d), max_steps=1, linear_solver=Cholesky()).cost for d in dampings]
    np.testing.assert_allclose(costs, alone, rtol=1e-9)


def test_a_pass_that_is_kept_gives_the_same_products():
    problem, params = steep_problem()
    x, J = problem.jacobian(params).with_outputs()
    np.testing.assert_array_equal(x, problem.outputs(params))
    w = jnp.asarray(RNG.normal(size=(8, 1)))
    D = np.asarray(J.as_matrix())
    np.testing.assert_allclose(problem.ravel(J.T.mv(w))[0], D.T @ np.asarray(w)[:, 0], rtol=1e-12, atol=1e-13)
    assert J.T.T.shape == D.shape
