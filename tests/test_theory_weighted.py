"""Predictions on weighted problems: with inputs multiplied by W^½, as documented, and not without."""

import jax.numpy as jnp
import numpy as np
import pytest
from problems import DEFICIENT_N, deficient, deficient_params, perceptron, wide
from tolerances import tol

import chordflow as cf
from chordflow import theory

OMEGA = np.random.default_rng(81).uniform(0.2, 2.0, size=DEFICIENT_N)
OMEGA *= DEFICIENT_N / OMEGA.sum()  # N = 20 as without weights


def test_deviation_of_a_weighted_run_under_rank_loss():
    base, flow, params = deficient().terms[0], cf.adapted(eps=1e-3), deficient_params()
    problem = cf.Problem(perceptron, base.samples, base.targets, weights=OMEGA)
    ts = jnp.asarray([0.0, 0.3, 0.6, 0.9])
    traj = cf.evolve(problem, params, flow, ts=ts, clock=cf.clocks.Interpolation(20), rtol=1e-8, dense=True)
    policy = cf.geometry.rank_policy(problem, params, flow.filter)

    def transfer(t):
        return cf.geometry.transfer(problem, traj.params_at(t), flow.filter, policy)

    root, y = jnp.sqrt(problem.inner_product)[:, None], problem.targets
    x0 = traj.outputs[0]
    measured = traj.outputs - theory.linear_interpolation(x0, y, ts)
    predicted = theory.deviation(root * x0, root * y, ts, transfer) / root[None]
    np.testing.assert_allclose(measured, predicted, atol=1e-6)
    assert float(jnp.max(jnp.abs(measured))) > 1e-3
    # S belongs to W^½x: without the weights the same S predicts another path.
    unweighted = theory.deviation(x0, y, ts, transfer)
    assert float(jnp.max(jnp.abs(measured - unweighted))) > 1e-4


@pytest.fixture(scope="module")
def linear():
    """A model whose kernel is frozen by itself: two weighted terms of x = w z, and the standard flow on it."""
    first, second = wide().terms[0], wide(1).terms[0]

    def model(w, z):
        return w @ z

    terms = [
        cf.Term(model, first.samples, first.targets, weight=0.3, weights=jnp.asarray([1.0, 2.0, 0.5, 3.0])),
        cf.Term(model, second.samples, second.targets, weight=2.0),
    ]
    problem = cf.Problem.from_terms(terms)
    params, s = jnp.asarray([[0.3, -0.2], [0.1, 0.4]]), jnp.asarray([0.0, 1.0, 5.0, 40.0])
    return problem, params, cf.evolve(problem, params, cf.standard(), ts=s, rtol=1e-9, save=("outputs", "params"))


def test_frozen_kernel_of_a_weighted_problem(linear):
    problem, params, traj = linear
    root, N = jnp.sqrt(problem.inner_product), problem.num_samples
    x0, y = problem.flatten(problem.outputs(params)), problem.flatten(problem.targets)
    gram = problem.jacobian(params).gram()
    weighted = root[:, None] * gram * root[None, :]
    predicted = theory.frozen_kernel(root * x0, root * y, traj.ts, weighted, n=N) / root[None]
    measured = jnp.concatenate([block.reshape(4, -1) for block in traj.outputs], axis=1)
    np.testing.assert_allclose(measured, predicted, atol=tol("float64", "tight_run"))
    wrong = theory.frozen_kernel(x0, y, traj.ts, gram, n=N)
    assert float(jnp.max(jnp.abs(measured - wrong))) > 1e-2


def test_frozen_kernel_at_new_inputs_of_a_weighted_problem(linear):
    problem, params, traj = linear
    new = wide(2).terms[0]
    root, N = jnp.sqrt(problem.inner_product), problem.num_samples
    x0, y = problem.flatten(problem.outputs(params)), problem.flatten(problem.targets)
    D = problem.jacobian(params).as_matrix()
    elsewhere = cf.Problem(problem.terms[0].fn, new.samples, new.targets)
    kernel_new = elsewhere.jacobian(params).as_matrix() @ D.T * root[None, :]
    f0 = elsewhere.outputs(params)
    weighted = root[:, None] * (D @ D.T) * root[None, :]
    predicted = theory.frozen_kernel_new(root * x0, root * y, traj.ts, weighted, f0, kernel_new, n=N)
    measured = jnp.stack([elsewhere.outputs(w) for w in traj.saved["params"]])
    np.testing.assert_allclose(measured, predicted, atol=tol("float64", "tight_run"))
