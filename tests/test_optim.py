"""The optax transformation: laws of the mini-batch step, SPRING against a literal dense loop, and optax's contracts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import chordflow as cf
from chordflow import models
from chordflow.optim import AdaptiveDamping

RNG = np.random.default_rng(5)
ROWS = jnp.asarray(RNG.normal(size=(24, 3)))
VALUES = jnp.sin(2 * ROWS[:, :1]) + 0.3 * ROWS[:, 1:2]
NET, PARAMS = models.mlp((3, 5, 1), seed=2)
BATCH = (ROWS[:6], VALUES[:6])


def update(tx, state, params=None, **extra) -> tuple[Any, Any]:
    """optax annotates the gradients as a tree and the state as any; here they may be None and have fields."""
    return tx.update(None, state, params, **extra)


def apply(params, updates) -> Any:
    return optax.apply_updates(params, updates)


def literal_spring(theta_and_back, rows, values, phi, damping, mu, k):
    """One SPRING step by NumPy on the dense Jacobian: the stacked least-squares problem, not its closed form."""
    theta, unravel = theta_and_back
    jac = np.asarray(jax.jacrev(lambda th: jax.vmap(lambda z: NET(unravel(th), z)[0])(rows))(theta))
    r = np.asarray(values[:, 0] - jax.vmap(lambda z: NET(unravel(theta), z)[0])(rows))
    lam = damping * np.sum(jac**2)
    stacked = np.concatenate([jac, np.sqrt(lam) * np.eye(theta.size)])
    right = np.concatenate([r, np.sqrt(lam) * mu * phi])
    phi = np.linalg.lstsq(stacked, right, rcond=None)[0]
    return phi, phi / np.sqrt(1 - mu ** (2 * k))


@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_steps_are_those_of_the_stacked_least_squares_problem(mu):
    tx = cf.optim.adapted(NET, damping=1e-3, momentum=mu, learning_rate=0.5)
    params, phi = PARAMS, np.zeros(26)
    state: Any = tx.init(PARAMS)
    for k in range(1, 4):
        rows, values = ROWS[6 * k - 6 : 6 * k], VALUES[6 * k - 6 : 6 * k]
        theta, unravel = ravel_pytree(params)
        phi, step = literal_spring((theta, unravel), rows, values, phi, 1e-3, mu, k)
        updates, state = update(tx, state, params, batch=(rows, values))
        np.testing.assert_allclose(ravel_pytree(updates)[0], 0.5 * step, rtol=1e-8, atol=1e-11)
        params = apply(params, updates)
    assert int(state.count) == 3


def test_one_step_on_the_whole_batch_lowers_the_cost_as_a_fit_does_without_bending():
    problem = cf.Problem(NET, ROWS, VALUES)
    fit = cf.fit(problem, PARAMS, max_steps=1, corrections=0, reuses=0, linear_solver=cf.solve.Cholesky())
    A = problem.jacobian(PARAMS).as_matrix()
    tx = cf.optim.adapted(NET, damping=float(fit.history.damping[0] / jnp.sum(A**2)))
    updates, _ = update(tx, tx.init(PARAMS), PARAMS, batch=(ROWS, VALUES))
    plain = apply(PARAMS, updates)
    # The fit bends its step by second order and keeps the cheaper one; the linear parts agree.
    assert float(fit.cost) <= float(problem.cost(plain)) * (1 + 1e-12)
    assert float(problem.cost(plain)) < float(problem.cost(PARAMS))


def test_cross_entropy_steps_are_generalised_gauss_newton():
    labels = jax.nn.one_hot(jnp.arange(8) % 3, 3, dtype=jnp.float64)
    model, w = lambda w, row: row @ w, jnp.asarray(RNG.normal(size=(3, 3)))
    problem = cf.Problem(model, ROWS[:8], labels, cf.CrossEntropy())
    tx = cf.optim.adapted(model, cf.CrossEntropy(), damping=1e-2)
    updates, _ = update(tx, tx.init(w), w, batch=(ROWS[:8], labels))
    # Linear logits: the generalised Gauss-Newton matrix is the Hessian of the cost, by another route.
    hessian = 8 * jax.hessian(lambda v: problem.cost(v.reshape(3, 3)))(w.ravel())
    lam = 1e-2 * jnp.trace(hessian)
    expected = -jnp.linalg.solve(hessian + lam * jnp.eye(9), 8 * jax.grad(problem.cost)(w).ravel())
    np.testing.assert_allclose(updates.ravel(), expected, rtol=1e-9)


def test_jit_scan_vmap_and_chain():
    tx = optax.chain(
        cf.optim.adapted(NET, momentum=0.5, damping=AdaptiveDamping()),
        optax.scale_by_schedule(optax.constant_schedule(0.5)),
    )
    batches = (ROWS.reshape(4, 6, 3), VALUES.reshape(4, 6, 1))

    def step(carry, batch):
        params, state = carry
        updates, state = update(tx, state, params, batch=batch)
        return (apply(params, updates), state), state[0].damping

    def train(params):
        return jax.lax.scan(step, (params, tx.init(params)), batches)

    (scanned, _), dampings = jax.jit(train)(PARAMS)
    carry = (PARAMS, tx.init(PARAMS))
    for i in range(4):
        carry, _ = step(carry, jax.tree.map(lambda leaf, i=i: leaf[i], batches))
    for a, b in zip(jax.tree.leaves(scanned), jax.tree.leaves(carry[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert len(np.unique(dampings)) > 1, "the gain ratio leads the damping"
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.9 * leaf]), PARAMS)
    (ensemble, _), _ = jax.vmap(train)(many)
    np.testing.assert_allclose(ensemble[0]["w"][0], scanned[0]["w"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_adaptive_damping_stays_within_bounds_and_parameters_finite(mu):
    # Three times the same two rows: a Gram matrix of rank two, singular to the last digit without damping.
    batch = tuple(jnp.concatenate([part[:2]] * 3) for part in BATCH)
    tx = cf.optim.adapted(NET, damping=AdaptiveDamping(), momentum=mu, learning_rate=0.5)

    def step(carry, _):
        params, state = carry
        updates, state = update(tx, state, params, batch=batch)
        return (apply(params, updates), state), (state.damping, cf.Problem(NET, batch[0], batch[1]).cost(params))

    (params, _), (dampings, costs) = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), None, length=120)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))
    assert 0 < float(dampings.min()) <= float(dampings.max()) <= 1e2
    assert float(costs[-1]) < 1e-6 * float(costs[0])


def test_frozen_leaves_stay_and_the_norm_is_bounded():
    tx = cf.optim.adapted(NET, max_norm=1e-3, trainable=({"w": True, "b": False}, True))
    updates, state = update(tx, tx.init(PARAMS), PARAMS, batch=BATCH)
    assert not np.any(updates[0]["b"])
    assert float(optax.tree.norm(updates)) == pytest.approx(1e-3)
    free, _ = update(
        cf.optim.adapted(NET, trainable=({"w": True, "b": False}, True)), tx.init(PARAMS), PARAMS, batch=BATCH
    )
    assert float(optax.tree.norm(free)) > 1e-3
    assert jax.tree.structure(state.momentum) == jax.tree.structure(PARAMS)


def test_weights_of_a_batch_are_sample_weights():
    tx = cf.optim.adapted(NET, damping=1e-3)
    weighted, _ = update(tx, tx.init(PARAMS), PARAMS, batch=(*BATCH, jnp.array([1.0, 1, 1, 1, 0, 0])))
    fewer, _ = update(tx, tx.init(PARAMS), PARAMS, batch=(ROWS[:4], VALUES[:4]))
    np.testing.assert_allclose(weighted[0]["w"], fewer[0]["w"], rtol=1e-9, atol=1e-12)


def test_schedules_are_followed():
    """Each by the count of steps, against the literal step with the values of that count."""

    def values(count):
        k = jnp.asarray(count, float)
        return 0.5 / (1 + k), 10.0 ** -(2 + k), 0.3 * (1 + k)  # rate, damping, momentum

    rate, damping, momentum = (lambda count, i=i: values(count)[i] for i in range(3))
    tx = cf.optim.adapted(NET, learning_rate=rate, damping=damping, momentum=momentum)
    params, phi, state = PARAMS, np.zeros(26), tx.init(PARAMS)
    for count in range(3):
        rows, targets = ROWS[6 * count : 6 * count + 6], VALUES[6 * count : 6 * count + 6]
        eta, lam, mu = map(float, values(count))
        phi, step = literal_spring(ravel_pytree(params), rows, targets, phi, lam, mu, count + 1)
        updates, state = update(tx, state, params, batch=(rows, targets))
        np.testing.assert_allclose(ravel_pytree(updates)[0], eta * step, rtol=1e-7, atol=1e-11)
        params = apply(params, updates)


def test_damping_has_the_same_unit_for_every_solver():
    solvers = (cf.solve.Cholesky(), cf.solve.SVD(), cf.solve.Iterative(rank=8, rtol=1e-10))
    steps = []
    for solver in solvers:
        tx = cf.optim.adapted(NET, damping=1e-2, linear_solver=solver)
        steps.append(ravel_pytree(update(tx, tx.init(PARAMS), PARAMS, batch=(ROWS, VALUES))[0])[0])
    np.testing.assert_allclose(steps[1], steps[0], rtol=1e-9, atol=1e-12)
    # Of products alone Σσ² is known to a part of what the sketch leaves.
    assert float(jnp.linalg.norm(steps[2] - steps[0])) < 0.01 * float(jnp.linalg.norm(steps[0]))
    # Negative control: σ_max² as the unit, which differs by a third here, changes the step.
    sigma = jnp.linalg.svd(cf.Problem(NET, ROWS, VALUES).jacobian(PARAMS).as_matrix(), compute_uv=False)
    tx = cf.optim.adapted(NET, damping=1e-2 * float(sigma[0] ** 2 / jnp.sum(sigma**2)))
    other = ravel_pytree(update(tx, tx.init(PARAMS), PARAMS, batch=(ROWS, VALUES))[0])[0]
    assert float(jnp.linalg.norm(other - steps[0])) > 0.05 * float(jnp.linalg.norm(steps[0]))


def test_dtype_is_kept():
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS)
    tx = cf.optim.adapted(NET, damping=1e-2)
    batch = tuple(part.astype(jnp.float32) for part in BATCH)
    updates, state = update(tx, tx.init(params), params, batch=batch)
    assert {leaf.dtype for leaf in jax.tree.leaves((updates, state.momentum))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"damping": 0.0}, "damping must be in"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"learning_rate": -1.0}, "learning_rate must be in"),
        ({"max_norm": 0.0}, "max_norm must be in"),
    ],
)
def test_a_mistake_is_one_line(options, text):
    with pytest.raises(ValueError, match=text):
        cf.optim.adapted(NET, **options)


def test_a_missing_batch_is_said():
    tx = cf.optim.adapted(NET)
    with pytest.raises(ValueError, match="needs params"):
        update(tx, tx.init(PARAMS))
    with pytest.raises(ValueError, match="needs either batch"):
        update(tx, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=r"batch must be \(inputs, targets\)"):
        update(tx, tx.init(PARAMS), PARAMS, batch=(ROWS,))


@pytest.mark.parametrize("damping", [1e-17, lambda count: 1e-17, AdaptiveDamping(initial=1e-17)])
def test_a_damping_that_the_factorisation_cannot_see_is_refused(damping):
    tx = cf.optim.adapted(NET, damping=damping)
    with pytest.raises(ValueError, match="damping = 1e-17 is below what the factorisation can see in float64"):
        update(tx, tx.init(PARAMS), PARAMS, batch=BATCH)
    seen = cf.optim.adapted(NET, damping=damping, linear_solver=cf.solve.SVD())
    updates, _ = update(seen, seen.init(PARAMS), PARAMS, batch=BATCH)
    assert np.all(np.isfinite(ravel_pytree(updates)[0]))


def test_a_schedule_that_leaves_its_interval_is_refused_at_that_step():
    tx = cf.optim.adapted(NET, momentum=lambda count: jnp.where(count < 1, 0.5, 1.0))
    _, state = update(tx, tx.init(PARAMS), PARAMS, batch=BATCH)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1"):
        update(tx, state, PARAMS, batch=BATCH)


def test_a_problem_brings_its_own_loss_and_trainable_parameters():
    labels = jax.nn.softmax(jnp.concatenate([VALUES[:6], 0 * VALUES[:6]], axis=1))
    model, w = lambda w, row: row @ w, jnp.asarray(RNG.normal(size=(3, 2)))
    problem = cf.Problem(model, ROWS[:6], labels, cf.CrossEntropy())
    own, theirs = cf.optim.adapted(model), cf.optim.adapted(model, cf.CrossEntropy())
    other = cf.Problem(model, ROWS[:6], labels, cf.Loss(lambda x, y: jnp.sum((x - y) ** 4)))
    tx = cf.optim.adapted(model, cf.Loss(lambda x, y: jnp.sum((x - y) ** 2)))
    with pytest.raises(ValueError, match="loss=Loss is not that of the problem"):
        update(tx, tx.init(w), w, problem=other)
    expected, _ = update(theirs, theirs.init(w), w, batch=(ROWS[:6], labels))
    for tx in (own, theirs):
        np.testing.assert_allclose(update(tx, tx.init(w), w, problem=problem)[0], expected, rtol=1e-12)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"loss": cf.SquaredError()}, "loss=SquaredError"),
        ({"trainable": True}, "trainable"),
    ]
    for options, text in wrong:
        tx = cf.optim.adapted(model, **options)
        with pytest.raises(ValueError, match=f"{text}.* give it to the problem"):
            update(tx, tx.init(w), w, problem=problem)
