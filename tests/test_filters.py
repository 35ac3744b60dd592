"""A battery over all filters: φ against literal formulas in 40-digit arithmetic, and the laws of each."""

import inspect

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from tolerances import tol

from chordflow import filters
from chordflow.filters import Cutoff, Damped, Interpolated, Power, Transpose

LAM = 1e-6  # for σ_max = 1: ε = 1e-3
SIGMA = np.array([1.0, 0.3, 1e-2, 1.1e-3, 0.9e-3, 1e-5, 1e-9, 1e-145, 0.0])


def damped(m):
    return lambda s, lam: (1 - (lam / (s**2 + lam)) ** m) / s


def interpolated(tau, m):
    return lambda s, lam: (1 - mpmath.mpf(tau)) * s + mpmath.mpf(tau) * damped(m)(s, lam)


# filter, φ(σ; λ) for σ > 0 as it stands in theory, whether its transfer stays in [0, 1]
BATTERY = {
    "transpose": (Transpose(), lambda s, lam: s, False),
    "cutoff": (Cutoff(1e-3), lambda s, lam: 1 / s if s * s > lam else mpmath.mpf(0), True),
    "damped": (Damped(), damped(2), True),
    "damped m=1": (Damped(1e-3, 1), damped(1), True),
    "damped m=3": (Damped(1e-3, 3), damped(3), True),
    "interpolated 0": (Interpolated(0.0), interpolated(0, 2), False),
    "interpolated half": (Interpolated(0.5), interpolated("0.5", 2), False),
    "interpolated 1": (Interpolated(1.0, passes=1), interpolated(1, 1), True),
    "power 0": (Power(0.0), lambda s, lam: s, False),
    "power half": (Power(0.5), lambda s, lam: s / mpmath.sqrt(s**2 + lam), False),
    "power 1": (Power(1.0), damped(1), True),
}
SIGMAS, LAMBDA = jnp.asarray(SIGMA), jnp.asarray(LAM)


def test_every_filter_is_in_the_battery():
    public = {c for c in vars(filters).values() if inspect.isclass(c) and issubclass(c, filters.AbstractFilter)}
    assert {type(f) for f, _, _ in BATTERY.values()} == public - {filters.AbstractFilter}


@pytest.mark.parametrize("name", BATTERY)
def test_phi_agrees_with_forty_digits(name):
    filter_, formula, _ = BATTERY[name]
    with mpmath.workdps(400):  # 1 − λ/(σ²+λ) for σ = 1e-145 needs them
        lam = mpmath.mpf(LAM)
        expected = [float(formula(mpmath.mpf(float(s)), lam)) if s > 0 else 0.0 for s in SIGMA]
    np.testing.assert_allclose(filter_.phi(SIGMAS, LAMBDA), expected, rtol=tol("float64", "rounding"), atol=0)


@pytest.mark.parametrize("name", BATTERY)
@pytest.mark.parametrize("lam", [0.0, LAM])
def test_an_unreached_direction_stays_still(name, lam):
    phi = BATTERY[name][0].phi(jnp.zeros(3), jnp.asarray(lam))
    np.testing.assert_array_equal(phi, np.zeros(3))


@pytest.mark.parametrize("name", BATTERY)
def test_transfer_is_sigma_phi_and_within_its_bounds(name):
    filter_, formula, contracts = BATTERY[name]
    S = filter_.transfer(SIGMAS, LAMBDA)
    with mpmath.workdps(400):
        expected = [float(s * formula(mpmath.mpf(float(s)), mpmath.mpf(LAM))) if s > 0 else 0.0 for s in SIGMA]
    np.testing.assert_allclose(S, expected, rtol=tol("float64", "rounding"), atol=0)
    assert bool(jnp.all(S >= 0))
    if contracts:
        assert float(jnp.max(S)) <= 1 + tol("float64", "rounding")


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_damped_tends_to_the_inverse(passes):
    sigma = jnp.asarray([1.0, 0.1])
    transfers = [Damped(1e-3, passes).transfer(sigma, jnp.asarray(lam)) for lam in (1e-4, 1e-6, 1e-8)]
    errors = [np.max(np.abs(S - 1)) for S in transfers]
    # The bias is (λ/(σ²+λ))^m: a hundredth of λ is 100^m times less of it.
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    expected = [(100 * (1e-2 + lam) / (1e-2 + 100 * lam)) ** passes for lam in (1e-6, 1e-8)]
    np.testing.assert_allclose(ratios[: 2 if passes == 1 else 1], expected[: 2 if passes == 1 else 1], rtol=1e-3)
    assert errors[-1] < 1.1 * (1e-6) ** passes + tol("float64", "rounding")


def test_passes_square_the_bias():
    one = Damped(passes=1).transfer(SIGMAS, LAMBDA)
    for m in (2, 3, 5):
        S = Damped(passes=m).transfer(SIGMAS, LAMBDA)
        np.testing.assert_allclose(S, 1 - (1 - one) ** m, atol=tol("float64", "rounding"))


def test_the_family_ends_at_its_two_flows():
    np.testing.assert_array_equal(Interpolated(0.0).phi(SIGMAS, LAMBDA), Transpose().phi(SIGMAS, LAMBDA))
    np.testing.assert_array_equal(Interpolated(1.0).phi(SIGMAS, LAMBDA), Damped().phi(SIGMAS, LAMBDA))
    np.testing.assert_allclose(
        Power(0.0).phi(SIGMAS, LAMBDA), Transpose().phi(SIGMAS, LAMBDA), rtol=tol("float64", "rounding")
    )
    np.testing.assert_allclose(
        Power(1.0).phi(SIGMAS, LAMBDA), Damped(passes=1).phi(SIGMAS, LAMBDA), rtol=tol("float64", "rounding")
    )


def test_the_cutoff_is_a_jump_and_damping_is_not():
    level = jnp.asarray([1.0 - 1e-9, 1.0 + 1e-9]) * jnp.sqrt(LAMBDA)
    assert float(Cutoff().transfer(level, LAMBDA)[0]) == 0.0
    assert float(Cutoff().transfer(level, LAMBDA)[1]) == 1.0
    assert np.ptp(np.asarray(Damped().transfer(level, LAMBDA))) < 1e-8
    # A singular value exactly at the cutoff does not count.
    assert float(Cutoff().phi(jnp.asarray(0.5), jnp.asarray(0.25))) == 0.0


@pytest.mark.parametrize("name", BATTERY)
def test_a_blend_is_the_filter(name):
    filter_ = BATTERY[name][0]
    blend = filter_.blend()
    assert (blend is None) == isinstance(filter_, (Cutoff, Power))
    if blend is not None:
        made = blend.transpose * SIGMAS + blend.damped * Damped(passes=blend.passes).phi(SIGMAS, LAMBDA)
        np.testing.assert_allclose(made, filter_.phi(SIGMAS, LAMBDA), rtol=tol("float64", "rounding"))
    assert filter_.inverts == (not isinstance(filter_, Transpose))


@pytest.mark.parametrize("name", BATTERY)
def test_dtype_is_kept_and_jit_vmap_agree(name):
    filter_, _, _ = BATTERY[name]
    phi32 = filter_.phi(jnp.asarray(SIGMA[:6], jnp.float32), jnp.asarray(LAM, jnp.float32))
    assert phi32.dtype == jnp.float32
    phi = filter_.phi(SIGMAS, LAMBDA)
    np.testing.assert_allclose(phi32, phi[:6], rtol=tol("float32", "rounding"))
    # XLA may fuse: a few units in the last place.
    np.testing.assert_allclose(jax.jit(filter_.phi)(SIGMAS, LAMBDA), phi, rtol=tol("float64", "rounding"))
    both = jax.vmap(filter_.phi, in_axes=(None, 0))(SIGMAS, jnp.asarray([LAM, 0.5]))
    np.testing.assert_allclose(both[0], phi, rtol=tol("float64", "rounding"))


@pytest.mark.parametrize(
    "make", [lambda v: Damped(v), lambda v: Cutoff(v), lambda v: Interpolated(v), lambda v: Power(v)]
)
def test_parameters_may_be_traced(make):
    expected = make(0.25).phi(SIGMAS, LAMBDA)
    np.testing.assert_allclose(
        jax.jit(lambda v: make(v).phi(SIGMAS, LAMBDA))(0.25), expected, rtol=tol("float64", "rounding")
    )
