"""Geometry at a point: spectra, reachability, the metrics of (2.44) and (2.45), and what a path looks like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import exactly_deficient, prescribed, wide, wide_params, with_spectrum
from tolerances import tol

import chordflow as cf
from chordflow.filters import Cutoff, Damped, Interpolated, Power, Transpose
from chordflow.geometry import OutputMetric
from chordflow.solve import RankPolicy

SUMS = tol("float64", "sums")
FULL = with_spectrum(5, 9, [2.0, 1.5, 1.0, 0.7, 0.5])
DEFICIENT = exactly_deficient(6, 9, 4)
V, W = np.random.default_rng(51).normal(size=(2, 6))
FILTERS = {
    "standard": Transpose(),
    "damped": Damped(1e-3),
    "damped once": Damped(0.1, 1),
    "half": Interpolated(0.5, 1e-3),
    "cutoff": Cutoff(1e-3),
    "power": Power(0.5, 1e-3),
}


def at(matrix, filter_, weights=None):
    """Problem, parameters and rank policy with the Jacobian ``matrix``."""
    problem, point = prescribed(matrix, weights=weights)
    return problem, point, cf.geometry.rank_policy(problem, point, filter_)


def projection(matrix):
    """P = DD⁺ by NumPy."""
    return matrix @ np.linalg.pinv(matrix)


def test_the_matrices_are_what_they_are_called():
    assert np.linalg.matrix_rank(FULL) == 5
    assert np.linalg.matrix_rank(DEFICIENT) == 4 < 6


@pytest.mark.parametrize("matrix", [FULL, FULL.T, DEFICIENT], ids=["wide", "tall", "deficient"])
def test_spectrum_and_effective_dimension(matrix):
    problem, point, policy = at(matrix, Damped(1e-2))
    sigma = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(cf.geometry.spectrum(problem, point), sigma, atol=SUMS)
    assert float(cf.geometry.sigma_max(problem, point)) == pytest.approx(sigma[0], rel=SUMS)
    lam = (1e-2 * sigma[0]) ** 2
    assert float(policy.lam) == pytest.approx(lam, rel=SUMS)
    expected = np.trace(matrix @ matrix.T @ np.linalg.inv(matrix @ matrix.T + lam * np.eye(len(matrix))))
    assert float(cf.geometry.effective_dimension(problem, point, policy)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", FILTERS)
def test_transfer_is_how_outputs_move(name):
    # S by its meaning: the change of outputs under the parameter motion that the filter makes of each unit velocity.
    filter_ = FILTERS[name]
    problem, point, policy = at(DEFICIENT, filter_)
    S = np.asarray(cf.geometry.transfer(problem, point, filter_, policy))
    A = cf.solve.WeightedJacobian.at(problem, point)
    method = cf.solve.SVD()
    columns = [A.mv(cf.solve.realise(filter_, method, A, e, policy.lam)) for e in jnp.eye(6)]
    np.testing.assert_allclose(S, np.stack(columns, axis=1), atol=1e-9)
    np.testing.assert_allclose(S, S.T, atol=SUMS)


def test_transfer_in_closed_form():
    G = DEFICIENT @ DEFICIENT.T
    closed = {
        "standard": lambda lam: G,
        "damped once": lambda lam: np.eye(6) - lam * np.linalg.inv(G + lam * np.eye(6)),
        "cutoff": lambda lam: projection(DEFICIENT),
    }
    for name, formula in closed.items():
        problem, point, policy = at(DEFICIENT, FILTERS[name])
        S = cf.geometry.transfer(problem, point, FILTERS[name], policy)
        np.testing.assert_allclose(S, formula(float(policy.lam)), atol=1e-9)


@pytest.mark.parametrize("tau", [0.0, 0.25, 1.0])
def test_metric_at_full_rank(tau):
    # ((1−τ) DDᵀ + τ)⁻¹ (2.44). With σ ≥ 0.5 and ε = 1e-6, m = 2, damping shows below 1e-22.
    filter_ = Interpolated(tau)
    problem, point, policy = at(FULL, filter_)
    metric = OutputMetric.at(problem, point, filter_, policy)
    expected = np.linalg.inv((1 - tau) * FULL @ FULL.T + tau * np.eye(5))
    np.testing.assert_allclose(metric.as_matrix(), expected, atol=1e-10)
    np.testing.assert_allclose(metric.mv(jnp.asarray(V[:5])), expected @ V[:5], atol=1e-10)
    assert float(metric.inner(jnp.asarray(V[:5]), jnp.asarray(W[:5]))) == pytest.approx(V[:5] @ expected @ W[:5])
    np.testing.assert_allclose(metric.project(jnp.asarray(V[:5])), V[:5], atol=SUMS)


@pytest.mark.parametrize("tau", [0.0, 0.25, 1.0])
def test_bundle_metric_at_rank_loss(tau):
    # ((1−τ) DDᵀ + τP)⁺ on range D (2.45).
    filter_ = Interpolated(tau)
    problem, point, policy = at(DEFICIENT, filter_)
    metric = OutputMetric.at(problem, point, filter_, policy)
    P = projection(DEFICIENT)
    expected = np.linalg.pinv((1 - tau) * DEFICIENT @ DEFICIENT.T + tau * P, rcond=1e-9)
    np.testing.assert_allclose(metric.as_matrix(), expected, atol=1e-9)
    np.testing.assert_allclose(metric.project(jnp.asarray(V)), P @ V, atol=1e-12)
    # Directions that D does not reach are not in it: the metric is degenerate on them, not infinite.
    unreached = jnp.asarray(V - P @ V)
    assert np.linalg.norm(metric.mv(unreached)) < 1e-9 * np.linalg.norm(unreached) * np.linalg.norm(expected)


def test_metric_of_the_damped_filter_is_one_plus_lambda_over_the_gram_matrix():
    filter_ = Damped(0.1, 1)
    problem, point, policy = at(FULL, filter_)
    expected = np.eye(5) + float(policy.lam) * np.linalg.inv(FULL @ FULL.T)
    np.testing.assert_allclose(OutputMetric.at(problem, point, filter_, policy).as_matrix(), expected, atol=1e-10)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_the_flow_is_the_gradient_for_its_metric(tau):
    # ⟨x', v⟩_S = −dC(v) for every v in range D, on a network: the definition of a gradient.
    problem, params, filter_ = wide(), wide_params(), Interpolated(tau)
    policy = cf.geometry.rank_policy(problem, params, filter_)
    metric = OutputMetric.at(problem, params, filter_, policy)
    S = cf.geometry.transfer(problem, params, filter_, policy)
    outputs = problem.outputs(params)
    velocity = S @ problem.flatten(problem.descent(outputs))
    v = jnp.asarray(np.random.default_rng(52).normal(size=8))
    slope = jnp.dot(problem.flatten(problem.gradient(outputs)), v)
    assert float(metric.inner(velocity, v)) == pytest.approx(-float(slope), rel=1e-8)


@pytest.mark.parametrize("matrix", [FULL, DEFICIENT], ids=["full", "deficient"])
def test_unreachable_fraction(matrix):
    problem, point, policy = at(matrix, Damped(1e-6))
    n = len(matrix)
    u = jnp.asarray(V[:n])
    expected = np.linalg.norm(V[:n] - projection(matrix) @ V[:n]) / np.linalg.norm(V[:n])
    measured = float(cf.geometry.unreachable_fraction(problem, point, problem.unflatten(u), policy))
    # Measured through a Gram matrix whose null space is rounding: of ε² = 1e-12, that is 1e-4 of the damping.
    assert measured == pytest.approx(expected, abs=tol("float64", "gram"))
    assert float(cf.geometry.unreachable_fraction(problem, point, problem.unflatten(0 * u), policy)) == 0.0
    if n == 6:
        assert expected > 0.1
        inside = problem.unflatten(jnp.asarray(projection(matrix) @ V))
        assert float(cf.geometry.unreachable_fraction(problem, point, inside, policy)) < 1e-9


@pytest.mark.parametrize("eps", [1e-10, 1e-3])
def test_reachability_of_a_policy_that_no_gram_matrix_sees(eps):
    # ε = 1e-10 is below the floor of Cholesky, whose factor is NaN where D lacks rank; the decomposition sees it.
    problem, point, policy = at(DEFICIENT, Damped(eps))
    u = problem.unflatten(jnp.asarray(V[: len(DEFICIENT)]))
    _, sigma, Vt = np.linalg.svd(DEFICIENT.T)
    coefficients = Vt @ V[: len(DEFICIENT)]
    lam = (eps * sigma[0]) ** 2
    left = np.ones(len(DEFICIENT))
    left[: len(sigma)] = (lam / (sigma**2 + lam)) ** 2
    expected = np.linalg.norm(left * coefficients) / np.linalg.norm(coefficients)
    assert float(cf.geometry.unreachable_fraction(problem, point, u, policy)) == pytest.approx(expected, rel=1e-6)
    traced = jax.jit(lambda policy: cf.geometry.unreachable_fraction(problem, point, u, policy))(policy)
    assert float(traced) == pytest.approx(expected, rel=1e-6)


def test_reachability_is_measured_with_the_damped_filter_whatever_the_flow():
    # S of the standard flow has eigenvalues far above 1, so |u − Su|/|u| would say nothing.
    problem, point, _ = at(10 * FULL, Transpose())
    u = problem.unflatten(jnp.asarray(V[:5]))
    values = [
        float(cf.geometry.unreachable_fraction(problem, point, u, cf.geometry.rank_policy(problem, point, f)))
        for f in (Transpose(), Damped(), Interpolated(0.3))
    ]
    assert values[0] == values[1] == values[2] < 1e-9


def test_everything_is_in_the_weighted_inner_product():
    omega = jnp.asarray([1.0, 2.0, 0.0, 0.5, 3.0])
    root = np.sqrt(np.asarray(omega))  # one term: W = N ω/Ω = ω
    problem, point, policy = at(FULL, Damped(1e-2), weights=omega)
    A = root[:, None] * FULL
    np.testing.assert_allclose(cf.geometry.spectrum(problem, point), np.linalg.svd(A, compute_uv=False), atol=SUMS)
    G, lam = A @ A.T, float(policy.lam)
    S = np.eye(5) - np.linalg.matrix_power(lam * np.linalg.inv(G + lam * np.eye(5)), 2)
    np.testing.assert_allclose(cf.geometry.transfer(problem, point, Damped(1e-2), policy), S, atol=1e-9)
    u = V[:5]
    expected = np.linalg.norm(root * u - S @ (root * u)) / np.linalg.norm(root * u)
    measured = cf.geometry.unreachable_fraction(problem, point, problem.unflatten(jnp.asarray(u)), policy)
    assert float(measured) == pytest.approx(expected, rel=1e-6)


def test_a_rank_policy_of_ones_own():
    problem, point, _ = at(FULL, Damped())
    coarse = RankPolicy(jnp.asarray(0.5), jnp.asarray(2.0))
    assert float(cf.geometry.effective_dimension(problem, point, coarse)) < 5 - 1
    assert jax.jit(lambda p: cf.geometry.effective_dimension(problem, p, coarse))(point).shape == ()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_what_a_decomposition_sees_is_numpys_rule(dtype):
    # From a clear value over the floor, 7 machine epsilons of the largest, to far below it.
    sigma = np.asarray([3.0, 1.0, 24.0 * np.finfo(dtype).eps, 18.0 * np.finfo(dtype).eps, 0.0], dtype)
    seen = cf.geometry.above_rounding(np.stack([sigma, sigma]), (5, 7))
    assert seen.tolist() == [[True, True, True, False, False]] * 2
    matrix = np.zeros((5, 7), dtype)
    np.fill_diagonal(matrix, sigma)
    assert np.linalg.matrix_rank(matrix) == 3


def test_kernel_drift():
    G = jnp.asarray(FULL @ FULL.T)
    assert float(cf.geometry.kernel_drift(G, G)) == 0.0
    assert float(cf.geometry.kernel_drift(1.5 * G, G)) == pytest.approx(0.5)
    change = np.zeros((5, 5))
    change[0, 1] = 3.0
    assert float(cf.geometry.kernel_drift(0 * G, 0 * G)) == 0.0
    assert float(cf.geometry.kernel_drift(G, 0 * G)) == np.inf
    assert float(cf.geometry.kernel_drift(G + change, G)) == pytest.approx(3 / np.sqrt(np.sum(np.asarray(G) ** 2)))


def test_straightness_is_length_over_chord():
    line = jnp.linspace(0.0, 1.0, 5)[:, None, None] * jnp.ones((1, 2, 3))
    assert float(cf.geometry.straightness(line)) == pytest.approx(1.0)
    angles = jnp.linspace(0.0, jnp.pi, 1001)
    half_circle = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    # Chords of a half circle are short by (π/1000)²/24 of its length.
    assert float(cf.geometry.straightness(half_circle)) == pytest.approx(np.pi / 2, rel=1e-6)
    loop = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert float(cf.geometry.straightness(loop)) == np.inf
    assert float(cf.geometry.straightness(jnp.ones((4, 2, 3)))) == 1.0


@pytest.mark.parametrize("shape", [(3, 7), (7, 3)])
def test_the_gram_matrix_sees_the_same_spectrum_down_to_its_floor(shape):
    rng = np.random.default_rng(5)
    U, _ = np.linalg.qr(rng.standard_normal((shape[0], 3)))
    V, _ = np.linalg.qr(rng.standard_normal((shape[1], 3)))
    matrix = jnp.asarray((U * np.array([2.0, 1e-3, 1e-12])) @ V.T)
    problem = cf.Problem(lambda w, row: jnp.atleast_1d(row @ w), matrix, jnp.zeros((shape[0], 1)))
    point = jnp.zeros(shape[1])
    exact, seen = (f(problem, point) for f in (cf.geometry.spectrum, cf.geometry.spectrum_from_gram))
    np.testing.assert_allclose(seen[:2], exact[:2], rtol=1e-9)
    assert float(exact[2]) == pytest.approx(1e-12, rel=1e-3), "the decomposition of D sees it"
    assert np.isnan(seen[2]), "its square is below rounding: said, not made up"


def test_the_metric_of_a_hard_cutoff_is_zero_where_nothing_moves():
    problem, point = prescribed(np.diag([1.0, 0.5, 1e-3]))
    policy = RankPolicy.of(Cutoff(0.1), cf.geometry.sigma_max(problem, point), 0.0)
    metric = OutputMetric.at(problem, point, Cutoff(0.1), policy)
    np.testing.assert_allclose(sorted(metric.eigenvalues), [0, 1, 1], atol=SUMS)
    assert np.isfinite(metric.mv(jnp.ones(3))).all()
