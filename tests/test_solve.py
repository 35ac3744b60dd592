"""A battery over methods, shapes and spectra against NumPy's SVD; Penrose identities; what decides rank."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import exactly_deficient, prescribed, with_spectrum
from tolerances import tol

import chordflow as cf
from chordflow import solve
from chordflow.filters import Cutoff, Damped, Interpolated, Power, Transpose
from chordflow.solve import SVD, Cholesky, Iterative, RankPolicy, WeightedJacobian, default_method, realise
from chordflow.solve.weighted import times_transpose

SPECTRA = {
    "wide": with_spectrum(6, 10, [3.0, 2.0, 1.5, 1.0, 0.7, 0.5]),
    "tall": with_spectrum(10, 6, [3.0, 2.0, 1.5, 1.0, 0.7, 0.5]),
    "square": with_spectrum(6, 6, [3.0, 2.0, 1.5, 1.0, 0.7, 0.5]),
    "deficient wide": exactly_deficient(6, 10, 3),
    "deficient tall": exactly_deficient(10, 6, 3),
    "decaying": with_spectrum(6, 10, 10.0 ** -np.arange(0.0, 12.0, 2.0)),
    "zero": np.zeros((6, 10)),
}
# A stop far below the rounding that the bounds allow: what is left of conjugate gradients is rounding.
METHODS = {"Cholesky": Cholesky(), "SVD": SVD(), "Iterative": Iterative(rank=6, rtol=1e-13)}
V = np.random.default_rng(31).normal(size=10)


def numpy_policy(matrix, eps):
    """λ by NumPy."""
    return (eps * np.linalg.norm(matrix, 2)) ** 2


def numpy_filtered(matrix, v, phi):
    """Σ φ(σᵢ) vᵢuᵢᵀv by a loop over NumPy's triplets."""
    U, sigma, Vt = np.linalg.svd(matrix, full_matrices=False)
    total = np.zeros(matrix.shape[1])
    for i, s in enumerate(sigma):
        total += phi(s) * Vt[i] * (U[:, i] @ v)
    return total


def damped_phi(lam, passes):
    """(1 − (λ/(s²+λ))^m)/s, written so that small s keeps its digits."""
    return lambda s: 0.0 if s == 0 else -np.expm1(passes * np.log1p(-s * s / (s * s + lam))) / s


@eqx.filter_jit
def run(matrix, v, filter_, method, lam):
    """θ' for a problem whose Jacobian is ``matrix``, compiled once per shape, method and kind of filter."""
    problem, point = prescribed(matrix)
    return realise(filter_, method, WeightedJacobian.at(problem, point), v, lam)


def bound(method, eps, dtype="float64"):
    """How far θ' may be from exact, in units of |v| φ_max: rounding over the damping, ε² through a Gram matrix."""
    rounding = tol(dtype, "rounding")
    return 10 * rounding / (eps if isinstance(method, SVD) else eps**2)


def test_every_method_is_in_the_battery():
    public = {c for c in vars(solve).values() if inspect.isclass(c) and issubclass(c, solve.AbstractMethod)}
    assert {type(m) for m in METHODS.values()} == public - {solve.AbstractMethod}


def test_the_deficient_matrices_are():
    for name, rank in (("deficient wide", 3), ("deficient tall", 3), ("square", 6), ("zero", 0)):
        assert np.linalg.matrix_rank(SPECTRA[name]) == rank
    assert np.linalg.cond(SPECTRA["decaying"]) == pytest.approx(1e10, rel=1e-3)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("passes", [1, 2])
def test_damped_agrees_with_the_singular_triplets(spectrum, method, passes):
    matrix, eps = SPECTRA[spectrum], 1e-5
    v, lam = V[: matrix.shape[0]], numpy_policy(matrix, eps)
    theta = run(jnp.asarray(matrix), jnp.asarray(v), Damped(eps, passes), METHODS[method], jnp.asarray(lam))
    expected = numpy_filtered(matrix, v, damped_phi(lam, passes))
    largest = np.linalg.norm(v) / np.sqrt(lam) if lam > 0 else 1.0
    assert np.linalg.norm(theta - expected) <= bound(METHODS[method], eps) * largest


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("method", METHODS)
def test_the_methods_realise_what_a_well_posed_system_allows(spectrum, method):
    # Away from the smallest damping everything is accurate to rounding times a small condition number.
    matrix, eps = SPECTRA[spectrum], 0.1
    v, lam = V[: matrix.shape[0]], numpy_policy(matrix, eps)
    for filter_, phi in (
        (Damped(eps), damped_phi(lam, 2)),
        (Interpolated(0.5, eps, 1), lambda s: 0.5 * s + 0.5 * damped_phi(lam, 1)(s)),
        (Transpose(), lambda s: s),
    ):
        theta = run(jnp.asarray(matrix), jnp.asarray(v), filter_, METHODS[method], jnp.asarray(lam))
        expected = numpy_filtered(matrix, v, phi)
        np.testing.assert_allclose(theta, expected, atol=tol("float64", "sums") * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("filter_", [Cutoff(1e-5), Power(0.5, 1e-5)], ids=["cutoff", "power"])
def test_filters_that_need_a_spectrum(spectrum, filter_):
    matrix = SPECTRA[spectrum]
    v, lam = V[: matrix.shape[0]], numpy_policy(matrix, 1e-5)
    theta = run(jnp.asarray(matrix), jnp.asarray(v), filter_, SVD(), jnp.asarray(lam))
    if isinstance(filter_, Cutoff):
        # NumPy's own pseudoinverse with the same cutoff is the oracle.
        expected = np.linalg.pinv(matrix, rcond=1e-5) @ v
    else:
        expected = numpy_filtered(matrix, v, lambda s: s / np.sqrt(s**2 + lam) if s > 0 else 0.0)
    np.testing.assert_allclose(theta, expected, atol=1e5 * tol("float64", "rounding") * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_penrose_identities_of_the_cutoff(spectrum):
    A = SPECTRA[spectrum]
    lam = jnp.asarray(numpy_policy(A, 1e-11))
    columns = jax.vmap(lambda v: run(jnp.asarray(A), v, Cutoff(1e-11), SVD(), lam))(jnp.eye(A.shape[0]))
    B = np.asarray(columns).T
    # Backward stability: errors of each product are rounding times the norms of its factors.
    size_A, size_B = np.linalg.norm(A, 2), np.linalg.norm(B, 2)
    slack = 100 * np.finfo(float).eps * max(1.0, size_A * size_B)
    assert np.linalg.norm(A @ B @ A - A) <= slack * max(size_A, 1)
    assert np.linalg.norm(B @ A @ B - B) <= slack * max(size_B, 1)
    assert np.linalg.norm(A @ B - (A @ B).T) <= slack
    assert np.linalg.norm(B @ A - (B @ A).T) <= slack


def test_damping_is_not_a_pseudoinverse():
    A = SPECTRA["wide"]
    lam = jnp.asarray(numpy_policy(A, 0.1))
    columns = jax.vmap(lambda v: run(jnp.asarray(A), v, Damped(0.1), SVD(), lam))(jnp.eye(6))
    assert np.linalg.norm(A @ np.asarray(columns).T @ A - A) > 1e-2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", ["wide", "tall"])
def test_under_vmap(method, shape):
    A, lam = jnp.asarray(SPECTRA[shape]), jnp.asarray(1e-2)
    vs = jnp.asarray(np.random.default_rng(32).normal(size=(3, A.shape[0])))
    many = jax.vmap(lambda v: run(A, v, Damped(0.1), METHODS[method], lam))(vs)
    ones = [run(A, v, Damped(0.1), METHODS[method], lam) for v in vs]
    np.testing.assert_allclose(many, jnp.stack(ones), atol=tol("float64", "sums"))
    scaled = jax.vmap(lambda a: run(a * A, vs[0], Damped(0.1), METHODS[method], lam))(jnp.asarray([1.0, 2.0]))
    np.testing.assert_allclose(scaled[0], ones[0], atol=tol("float64", "sums"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", ["wide", "tall", "deficient wide", "zero"])
def test_float32(method, shape):
    matrix, eps = SPECTRA[shape], 1e-2
    v, lam = V[: matrix.shape[0]], numpy_policy(matrix, eps)
    theta = run(
        jnp.asarray(matrix, jnp.float32), jnp.asarray(v, jnp.float32), Damped(eps), METHODS[method], jnp.float32(lam)
    )
    assert theta.dtype == jnp.float32
    expected = numpy_filtered(matrix, v, damped_phi(lam, 2))
    largest = np.linalg.norm(v) / np.sqrt(lam) if lam > 0 else 1.0
    assert np.linalg.norm(np.asarray(theta) - expected) <= bound(METHODS[method], eps, "float32") * largest


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("spectrum", ["deficient wide", "deficient tall", "decaying"])
@pytest.mark.parametrize("method", METHODS)
def test_a_factor_at_its_floor_is_finite(dtype, spectrum, method):
    # The floor is a promise: an ε just above it must not end in the square root of a negative pivot.
    n, K = SPECTRA[spectrum].shape
    for seed in range(5):
        matrix = exactly_deficient(n, K, 3, seed) if "deficient" in spectrum else SPECTRA[spectrum]
        eps = 1.01 * METHODS[method].floor(jnp.dtype(dtype))
        lam = jnp.asarray(numpy_policy(matrix, eps), dtype)
        v = jnp.asarray(V[: matrix.shape[0]], dtype)
        assert bool(jnp.all(jnp.isfinite(run(jnp.asarray(matrix, dtype), v, Damped(0.5), METHODS[method], lam))))


def test_a_large_deficient_factor_at_its_floor_is_finite():
    # Rounding of a Gram matrix grows with n. At ε = √(machine epsilon) one of these five has a negative pivot.
    for seed in range(5):
        rng = np.random.default_rng(seed)
        matrix = rng.normal(size=(300, 60)) @ rng.normal(size=(60, 310))
        lam = jnp.asarray(numpy_policy(matrix, 1.01 * Cholesky().floor(jnp.dtype("float64"))))
        theta = run(jnp.asarray(matrix), jnp.ones(300), Damped(0.5), Cholesky(), lam)
        assert bool(jnp.all(jnp.isfinite(theta)))


def test_a_second_pass_refines_what_the_gram_matrix_lost():
    # One damped solve at cond(G) = 1e10 is wrong in the sixth digit; iterated Tikhonov forms its residual with A.
    matrix = with_spectrum(6, 10, np.logspace(0, -5, 6))
    v, lam = matrix @ np.ones(10), numpy_policy(matrix, 1e-7)
    moved = [
        matrix @ np.asarray(run(jnp.asarray(matrix), jnp.asarray(v), Damped(1e-7, m), Cholesky(), jnp.asarray(lam)))
        for m in (1, 2)
    ]
    errors = [np.linalg.norm(x - v) / np.linalg.norm(v) for x in moved]
    assert errors[1] < 1e-2 * errors[0]


# --- weighted Jacobian and rank policy ------------------------------------------------------------------------------


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_singular_values(spectrum):
    matrix = SPECTRA[spectrum]
    problem, point = prescribed(matrix)
    A, expected = WeightedJacobian.at(problem, point), np.linalg.svd(matrix, compute_uv=False)
    scale = max(expected[0], 1e-300)
    np.testing.assert_allclose(A.sigma() / scale, expected / scale, atol=tol("float64", "spectrum"))
    assert float(A.sigma_max()) == pytest.approx(expected[0], rel=tol("float64", "sums"))
    # From below; twenty products separate σ₁ from σ₂ = 2σ₁/3 to 1e-6 and are a few per cent at worst.
    estimate = float(A.sigma_max_estimate())
    assert (1 - 0.05) * expected[0] <= estimate <= expected[0] * (1 + 1e-12)
    smaller = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(A.small_gram(), smaller, atol=tol("float64", "sums") * max(1, scale**2))


def test_the_policy_is_the_definition():
    sigma = jnp.asarray([2.0, 1.0, 2e-3, 1.9e-3, 0.0])
    policy = RankPolicy.of(Damped(1e-3, 3), jnp.asarray(2.0), 1e-8)
    assert float(policy.lam) == pytest.approx((1e-3 * 2.0) ** 2)
    expected = sum(s**2 / (s**2 + 4e-6) for s in np.asarray(sigma))
    assert float(policy.effective_dimension(sigma)) == pytest.approx(expected)
    assert policy.passes == policy.damped.passes == 3
    # A path of spectra gives a path of dimensions; D = 0 has dimension 0 although λ = 0.
    assert policy.effective_dimension(jnp.stack([sigma, sigma])).shape == (2,)
    assert float(RankPolicy.of(Damped(), jnp.asarray(0.0), 1e-8).effective_dimension(jnp.zeros(4))) == 0.0


def test_one_object_decides_rank_for_filter_and_dimension():
    sigma = jnp.asarray([1.0, 1e-4, 1e-5, 1e-6])
    policy = RankPolicy.of(Cutoff(3e-6), jnp.asarray(1.0), 1e-16)
    np.testing.assert_array_equal(Cutoff(3e-6).phi(sigma, policy.lam) > 0, [True, True, True, False])
    assert float(policy.effective_dimension(sigma)) == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize("filter_", [Transpose(), Cutoff(), Damped(), Interpolated(0.5), Power(0.5)])
def test_a_filter_without_eps_gets_that_of_the_default(filter_):
    policy = RankPolicy.of(filter_, jnp.asarray(1.0), 1e-8)
    assert float(policy.eps) == 1e-6
    assert policy.passes == 2
    assert isinstance(default_method(filter_, (100, 1000)), SVD if isinstance(filter_, (Cutoff, Power)) else Cholesky)
    assert isinstance(default_method(filter_, (20, 10)), SVD)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_eps_below_the_floor_is_refused(dtype):
    scale = jnp.asarray(1.0, dtype)
    for method in METHODS.values():
        floor = method.floor(scale.dtype)
        assert RankPolicy.of(Damped(floor * 1.01), scale, floor).lam.dtype == dtype
        with pytest.raises(ValueError, match="below what the factorisation can see in float"):
            RankPolicy.of(Damped(floor * 0.99), scale, floor)
    assert SVD().floor(scale.dtype) < Cholesky().floor(scale.dtype)


@pytest.mark.parametrize("rows", [7, 1030])
def test_a_product_with_the_transpose_by_blocks(rows):
    # 1030 is no multiple of the eight bands.
    A = np.random.default_rng(5).normal(size=(rows, 5))
    np.testing.assert_allclose(times_transpose(jnp.asarray(A)), A @ A.T, rtol=1e-13, atol=1e-13)


def residual(params, z):
    return cf.physics.laplacian(lambda point: cf.models.MLP("tanh")(params, point)[0], z)[None]


def test_a_residual_of_derivatives_forms_its_jacobian_and_a_plain_network_does_not():
    params = cf.physics.uniform(jax.random.key(0), (2, 16, 16, 1))
    points = jax.random.uniform(jax.random.key(1), (6, 2))
    few = cf.Problem(residual, points, jnp.zeros((6, 1)))
    plain = cf.Problem(cf.models.MLP("tanh"), points, jnp.zeros((6, 1)))
    A = WeightedJacobian.at(few, params)
    assert A.is_worth_forming
    assert not WeightedJacobian.at(plain, params).is_worth_forming
    formed = A.formed()
    v = jax.random.normal(jax.random.key(2), (A.shape[1],))
    np.testing.assert_allclose(formed.mv(v), A.mv(v), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(formed.rmv(v[:6]), A.rmv(v[:6]), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(formed.small_gram(), A.gram(), rtol=1e-12, atol=1e-12)


def test_a_jacobian_that_has_no_room_is_not_kept(monkeypatch):
    problem, point = prescribed(SPECTRA["tall"])
    A = WeightedJacobian.at(problem, point)
    assert A.is_worth_forming  # more rows than columns: AᵀA takes the matrix anyway
    monkeypatch.setattr("chordflow.solve.weighted.available_memory", lambda: 4 * 10 * 6 * 8 - 1)
    assert not A.is_worth_forming
    expected = SPECTRA["tall"].T @ SPECTRA["tall"]
    np.testing.assert_allclose(Cholesky().decompose(A).matrix, expected, rtol=1e-12, atol=1e-12)
