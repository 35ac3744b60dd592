"""Velocities: what each tells the outputs to do, by literal formulas and by differences in t."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import WIDE_N, wide, wide_params
from tolerances import tol

import chordflow as cf
from chordflow import velocities
from chordflow.losses import smooth_labels
from chordflow.velocities import Along, Descent, Route, Straight

ROUNDING = tol("float64", "rounding")
PARAMS = wide_params()
PROBLEM = wide()
LABELS = smooth_labels(jax.nn.one_hot(jnp.asarray([0, 1, 1, 0]), 2, dtype=jnp.float64), 0.3)
ENTROPY = wide(targets=LABELS, loss=cf.CrossEntropy())
TWO = cf.Problem.from_terms([PROBLEM.terms[0], wide(1).terms[0]])
X0 = PROBLEM.outputs(PARAMS)
X = PROBLEM.flatten(X0) + jnp.asarray(np.random.default_rng(41).normal(size=8))
T = jnp.asarray(0.3)


def path(t):
    return X0 + jnp.sin(3 * t) * jnp.ones_like(X0)


def between(t, x0, y):
    return x0 + t**2 * (y - x0)


BOUND = {
    "Descent": (Descent(), True, 1),
    "Straight": (Straight(), False, 1),
    "Along": (Along(path, 2.0), False, 0),
    "Route": (Route(between, 2.0), False, 0),
}


def test_every_velocity_is_in_the_battery():
    public = {c for c in vars(velocities).values() if inspect.isclass(c) and issubclass(c, velocities.AbstractVelocity)}
    assert {type(v) for v, _, _ in BOUND.values()} == public - {velocities.AbstractVelocity}


@pytest.mark.parametrize("name", BOUND)
def test_a_bound_velocity_is_flat_keeps_dtype_and_compiles(name):
    velocity, autonomous, _ = BOUND[name]
    bound = velocity.bind(PROBLEM, X0)
    u = bound(PROBLEM, T, X)
    assert u.shape == X.shape
    assert u.dtype == X.dtype
    assert velocity.is_autonomous is autonomous
    np.testing.assert_allclose(jax.jit(lambda t, x: bound(PROBLEM, t, x))(T, X), u, atol=ROUNDING)


def test_descent_and_the_straight_line_are_the_same_program():
    # Two flows with one filter share a compiled right-hand side because their velocities differ in data only.
    descent, straight = (jax.tree.structure(BOUND[name][0].bind(PROBLEM, X0)) for name in ("Descent", "Straight"))
    assert descent == straight


def test_descent_of_squared_error():
    u = Descent().bind(PROBLEM, X0)(PROBLEM, T, X)
    np.testing.assert_allclose(u, -(X - PROBLEM.flatten(PROBLEM.targets)) / WIDE_N, atol=ROUNDING)


def test_descent_of_cross_entropy():
    u = Descent().bind(ENTROPY, X0)(ENTROPY, T, X).reshape(4, 2)
    p = np.exp(X.reshape(4, 2)) / np.exp(X.reshape(4, 2)).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(u, -(p - LABELS) / WIDE_N, atol=ROUNDING)


def test_descent_lowers_the_cost_along_its_line():
    for problem in (PROBLEM, ENTROPY, wide(loss=cf.Loss(lambda x, y: jnp.sum(jnp.log(jnp.cosh(x - y)))))):
        u = Descent().bind(problem, X0)(problem, T, X)
        before, after = (float(problem.cost_at(problem.unflatten(X + h * u))) for h in (0.0, 1e-3))
        assert after < before


def test_the_straight_line_ends_at_the_labels_and_ignores_x_and_t():
    bound = Straight().bind(PROBLEM, X0)
    np.testing.assert_allclose(
        PROBLEM.flatten(X0) + bound(PROBLEM, T, X), PROBLEM.flatten(PROBLEM.targets), atol=ROUNDING
    )
    np.testing.assert_array_equal(bound(PROBLEM, T, X), bound(PROBLEM, jnp.asarray(0.9), 2 * X))


def test_the_straight_line_of_cross_entropy_ends_at_the_equilibrium():
    end = X0 + Straight().bind(ENTROPY, X0)(ENTROPY, T, X).reshape(4, 2)
    np.testing.assert_allclose(jax.nn.softmax(end), LABELS, atol=ROUNDING)
    np.testing.assert_allclose(jnp.sum(end, axis=1), jnp.sum(X0, axis=1), atol=ROUNDING)


@pytest.mark.parametrize("kind", ["array", "numpy"])
def test_a_target_of_ones_own(kind):
    goal = {"array": X0 + 1, "numpy": np.asarray(X0 + 1)}[kind]
    np.testing.assert_allclose(Straight(goal).bind(PROBLEM, X0)(PROBLEM, T, X), np.ones(8), atol=ROUNDING)


def test_several_terms_have_a_target_each():
    outputs = TWO.outputs(PARAMS)
    bound = Straight(tuple(x + 1 for x in outputs)).bind(TWO, outputs)
    np.testing.assert_allclose(bound(TWO, T, TWO.flatten(outputs)), np.ones(16), atol=ROUNDING)
    labels = Straight().bind(TWO, outputs)(TWO, T, TWO.flatten(outputs))
    np.testing.assert_allclose(labels, TWO.flatten(TWO.targets) - TWO.flatten(outputs), atol=ROUNDING)


def test_a_path_is_followed_at_its_own_speed_and_pulled_back_to():
    free, pulled = (Along(path, gain).bind(PROBLEM, X0) for gain in (0.0, 2.0))
    h = 1e-5
    slope = (PROBLEM.flatten(path(T + h)) - PROBLEM.flatten(path(T - h))) / (2 * h)
    # The third derivative of sin 3t is 27: central differences are wrong by 27 h²/6 at most.
    np.testing.assert_allclose(free(PROBLEM, T, X), slope, atol=1e-8)
    back = pulled(PROBLEM, T, X) - free(PROBLEM, T, X)
    np.testing.assert_allclose(back, 2.0 * (PROBLEM.flatten(path(T)) - X), atol=ROUNDING)


def test_a_path_that_starts_elsewhere_needs_a_gain():
    def displaced(t):
        return path(t).at[1, 0].add(-0.25)

    with pytest.raises(ValueError, match=r"path\(0\) is 0.25 away from the outputs .* or give a gain"):
        Along(displaced).bind(PROBLEM, X0)
    with pytest.raises(ValueError, match=r"path\(0\) is nan away"):
        Along(lambda t: path(t) * jnp.nan).bind(PROBLEM, X0)
    Along(displaced, 0.5).bind(PROBLEM, X0)
    # Rounding of the start is no distance, nor is an absent sample; traced values cannot be looked at.
    Along(lambda t: path(t) * (1 + 1e-9)).bind(PROBLEM, X0)
    Along(displaced).bind(wide(weights=jnp.asarray([1.0, 0.0, 1.0, 1.0])), X0)
    jax.jit(lambda x0: Along(displaced).bind(PROBLEM, x0)(PROBLEM, T, X))(X0)


def test_a_route_is_the_path_between_its_ends():
    x = X0 + 0.3**2 * (PROBLEM.targets - X0)
    expected = PROBLEM.flatten(0.6 * (PROBLEM.targets - X0) + 2.0 * (x - PROBLEM.unflatten(X)))
    np.testing.assert_allclose(Route(between, 2.0).bind(PROBLEM, X0)(PROBLEM, T, X), expected, atol=ROUNDING)
    with pytest.raises(ValueError, match="gain must be in"):
        Route(between, -1.0)


def test_a_path_for_several_terms():
    outputs = TWO.outputs(PARAMS)
    bound = Along(lambda t: tuple(x + (k + 1) * t for k, x in enumerate(outputs))).bind(TWO, outputs)
    np.testing.assert_allclose(bound(TWO, T, jnp.zeros(16)), [1.0] * 8 + [2.0] * 8, atol=ROUNDING)
