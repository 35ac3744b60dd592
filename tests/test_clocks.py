"""Clocks: inverse, derivative, and digits at both ends, against 40-digit arithmetic."""

import inspect

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from tolerances import tol

from chordflow import clocks

N = 7.0
CLOCKS = {
    "GradientTime": clocks.GradientTime(),
    "Interpolation": clocks.Interpolation(N),
    "Log": clocks.Log(unit=3.0),
}
ORACLE_S = {
    "GradientTime": lambda t: t,
    "Interpolation": lambda t: -mpmath.mpf(N) * mpmath.log(1 - t),
    "Log": lambda t: 3 * (mpmath.exp(t) - 1),
}
# From 1e-12, where 1 − t and eᵗ − 1 lose all digits if written so, to close to the end.
TIMES = np.array([0.0, 1e-12, 1e-6, 0.1, 0.5, 0.9, 1 - 1e-9])


def test_every_clock_is_in_the_battery():
    public = {c for c in vars(clocks).values() if inspect.isclass(c) and issubclass(c, clocks.AbstractClock)}
    assert {type(c) for c in CLOCKS.values()} == public - {clocks.AbstractClock}


@pytest.mark.parametrize("name", CLOCKS)
def test_s_agrees_with_forty_digits(name):
    with mpmath.workdps(40):
        expected = [float(ORACLE_S[name](mpmath.mpf(float(t)))) for t in TIMES]
    np.testing.assert_allclose(CLOCKS[name].s(jnp.asarray(TIMES)), expected, rtol=tol("float64", "rounding"), atol=0)


@pytest.mark.parametrize("name", CLOCKS)
def test_t_is_the_inverse(name):
    clock, s = CLOCKS[name], jnp.asarray([0.0, 1e-13, 1e-3, 1.0, 20.0])
    np.testing.assert_allclose(clock.s(clock.t(s)), s, rtol=tol("float64", "rounding"), atol=0)


@pytest.mark.parametrize("name", CLOCKS)
def test_the_derivative_is_that_of_s_and_positive(name):
    clock, t = CLOCKS[name], jnp.asarray(TIMES)
    np.testing.assert_allclose(clock.derivative(t), jax.vmap(jax.grad(clock.s))(t), rtol=tol("float64", "rounding"))
    assert bool(jnp.all(clock.derivative(t) > 0))


@pytest.mark.parametrize("name", CLOCKS)
def test_the_clock_starts_at_zero_and_knows_its_end(name):
    clock = CLOCKS[name]
    assert float(clock.s(jnp.asarray(0.0))) == 0.0
    assert clock.end == (1.0 if name == "Interpolation" else float("inf"))


@pytest.mark.parametrize("name", CLOCKS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_shape_and_dtype_are_kept(name, shape):
    t = jnp.full(shape, 0.25, jnp.float32)
    for out in (CLOCKS[name].s(t), CLOCKS[name].t(t), CLOCKS[name].derivative(t)):
        assert out.shape == shape
        assert out.dtype == jnp.float32


def test_the_interpolation_clock_makes_decay_a_line():
    s = jnp.linspace(0.0, 30.0, 5)
    np.testing.assert_allclose(
        jnp.exp(-s / N), 1 - clocks.Interpolation(N).t(s), rtol=0, atol=tol("float64", "rounding")
    )
    # The number of outputs in place of the number of samples is another clock.
    assert abs(float(clocks.Interpolation(2 * N).t(jnp.asarray(N))) - (1 - np.exp(-1))) > 0.1


def test_equal_steps_of_log_time_multiply_s():
    s = CLOCKS["Log"].s(jnp.asarray([10.0, 11.0, 12.0]))
    np.testing.assert_allclose(s[1:] / s[:-1], np.e, rtol=1e-4)  # (eᵗ⁺¹ − 1)/(eᵗ − 1) is e up to e⁻ᵗ, here 5e-5


@pytest.mark.parametrize("make", [clocks.Interpolation, clocks.Log])
def test_the_parameter_may_be_traced(make):
    traced = jax.jit(lambda n: make(n).s(jnp.asarray(0.5)))(2.0)
    np.testing.assert_allclose(traced, make(2.0).s(jnp.asarray(0.5)), rtol=tol("float64", "rounding"))
    slopes = jax.vmap(lambda n: make(n).derivative(jnp.asarray(0.0)))(jnp.asarray([1.0, 4.0]))
    np.testing.assert_array_equal(slopes, [1.0, 4.0])
