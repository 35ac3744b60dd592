"""Losses as geometry: derivatives against 50-digit differences, factors against Hessians, what a flow keeps."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from tolerances import tol

from chordflow import losses
from chordflow.losses import AbstractLoss, CrossEntropy, Loss, SquaredError, smooth_labels

RNG = np.random.default_rng(7)
Q = 4
X = jnp.asarray(RNG.normal(size=Q))
TARGET = jnp.asarray(RNG.normal(size=Q))
LABEL = jnp.asarray([0.5, 0.2, 0.25, 0.05])
ONES = jnp.ones(Q)

ROUNDING = tol(jnp.float64, "rounding")


def log_cosh(x, y):
    return jnp.sum(jnp.log(jnp.cosh(x - y)))


# Every loss with a target and, written down a second time, its value in arbitrary precision.
BATTERY = {
    "squared_error": (
        SquaredError(),
        TARGET,
        lambda x, y: sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / 2,
    ),
    "cross_entropy": (
        CrossEntropy(),
        LABEL,
        lambda x, y: sum(b * (mpmath.log(sum(mpmath.exp(c) for c in x)) - a) for a, b in zip(x, y, strict=True)),
    ),
    "user": (
        Loss(log_cosh),
        TARGET,
        lambda x, y: sum(mpmath.log(mpmath.cosh(a - b)) for a, b in zip(x, y, strict=True)),
    ),
}
battery = pytest.mark.parametrize(("loss", "y", "oracle"), BATTERY.values(), ids=BATTERY)


def test_every_public_loss_is_in_the_battery():
    public = {
        member
        for name, member in vars(losses).items()
        if inspect.isclass(member) and issubclass(member, AbstractLoss) and not name.startswith(("_", "Abstract"))
    }
    assert public == {type(loss) for loss, _, _ in BATTERY.values()}


def exact_point(*arrays):
    mpmath.mp.dps = 50
    return [[mpmath.mpf(float(v)) for v in array] for array in arrays]


def shifted(x, *moves):
    moved = list(x)
    for i, step in moves:
        moved[i] += step
    return moved


@battery
def test_value_and_gradient_are_those_of_fifty_digits(loss, y, oracle):
    x, target = exact_point(X, y)
    assert abs(float(loss.value(X, y)) - float(oracle(x, target))) < ROUNDING
    h = mpmath.mpf(10) ** -15  # central differences: error h², and 50 digits leave 35 after the division
    for i, g in enumerate(loss.gradient(X, y)):
        exact = (oracle(shifted(x, (i, h)), target) - oracle(shifted(x, (i, -h)), target)) / (2 * h)
        assert abs(float(g) - float(exact)) < ROUNDING


@battery
def test_hessian_is_that_of_fifty_digits(loss, y, oracle):
    x, target = exact_point(X, y)
    h, H = mpmath.mpf(10) ** -12, loss.hessian(X, y)
    for i, j in np.ndindex(Q, Q):
        corners = [(s * t, oracle(shifted(x, (i, s * h), (j, t * h)), target)) for s in (1, -1) for t in (1, -1)]
        exact = sum(sign * value for sign, value in corners) / (4 * h * h)
        assert abs(float(H[i, j]) - float(exact)) < ROUNDING


@battery
def test_closed_forms_are_the_automatic_derivatives(loss, y, oracle):
    plain = Loss(loss.value)
    v = jnp.asarray(RNG.normal(size=Q))
    assert np.max(np.abs(loss.gradient(X, y) - plain.gradient(X, y))) < ROUNDING
    assert np.max(np.abs(loss.hessian(X, y) - plain.hessian(X, y))) < ROUNDING
    assert np.max(np.abs(loss.hessian_mv(X, y, v) - plain.hessian(X, y) @ v)) < ROUNDING
    assert np.max(np.abs(plain.hessian_mv(X, y, v) - loss.hessian(X, y) @ v)) < ROUNDING


@battery
def test_factor_times_its_transpose_is_the_hessian(loss, y, oracle):
    B, H = loss.hessian_factor(X, y), loss.hessian(X, y)
    assert np.max(np.abs(B @ B.T - H)) < ROUNDING
    general = AbstractLoss.hessian_factor(loss, X, y)
    assert np.max(np.abs(general @ general.T - H)) < 10 * ROUNDING


@battery
def test_equilibrium_is_stationary_and_costs_the_minimum(loss, y, oracle):
    end, least = loss.equilibrium(X, y), loss.minimum(y)
    if isinstance(loss, Loss):
        assert end is None
        assert least is None
        return
    assert np.max(np.abs(loss.gradient(end, y))) < ROUNDING
    assert abs(loss.value(end, y) - least) < ROUNDING
    # Where a flow has ended it stays, and no other point of the battery costs less.
    assert np.max(np.abs(loss.equilibrium(end, y) - end)) < ROUNDING
    assert all(loss.value(end + 0.1 * d, y) > least + 1e-6 for d in (X, TARGET))


@battery
def test_float32_is_kept_under_strict_promotion_jit_and_vmap(loss, y, oracle):
    x, labels = (jnp.stack([a, a]).astype(jnp.float32) for a in (X, y))
    for method in ("value", "gradient", "hessian"):
        result = jax.jit(jax.vmap(getattr(loss, method)))(x, labels)
        assert result.dtype == jnp.float32
        assert np.max(np.abs(np.asarray(result[0]) - np.asarray(getattr(loss, method)(X, y)))) < tol(
            jnp.float32, "rounding"
        )
    assert jax.vmap(loss.hessian_mv)(x, labels, x).dtype == jnp.float32
    B = np.asarray(jax.vmap(loss.hessian_factor)(x, labels)[0])
    assert B.dtype == np.float32
    assert np.max(np.abs(B @ B.T - np.asarray(loss.hessian(X, y)))) < tol(jnp.float32, "rounding")
    if not isinstance(loss, Loss):
        assert jax.vmap(loss.minimum)(labels).dtype == jnp.float32
        assert jax.vmap(loss.equilibrium)(x, labels).dtype == jnp.float32


# Cross-entropy.


def test_cross_entropy_hessian_has_the_ones_as_only_null_vector():
    """Lemma 2.6, over points from balanced to badly misclassified."""
    loss = CrossEntropy()
    onto_rest = np.linalg.svd(np.ones((1, Q)))[2][1:]  # an orthonormal basis of 1^⊥, (Q − 1, Q)
    for scale in (0.0, 1.0, 10.0):
        H = np.asarray(loss.hessian(scale * X, LABEL))
        assert np.max(np.abs(H @ np.ones(Q))) < ROUNDING
        assert np.max(np.abs(loss.hessian_mv(scale * X, LABEL, ONES))) < ROUNDING
        # H restricted to 1^⊥ is at least min p, because xᵀHx is the variance of x under p.
        least = float(jnp.min(jax.nn.softmax(scale * X)))
        assert np.linalg.eigvalsh(onto_rest @ H @ onto_rest.T)[0] > least * (1 - 1e-6) - ROUNDING


def test_cross_entropy_conserves_the_sum_of_logits_and_ignores_their_mean():
    loss = CrossEntropy()
    assert abs(jnp.sum(loss.gradient(X, LABEL))) < ROUNDING
    assert abs(loss.value(X + 5.0, LABEL) - loss.value(X, LABEL)) < ROUNDING
    assert abs(jnp.sum(loss.equilibrium(X, LABEL)) - jnp.sum(X)) < ROUNDING
    # Not on the simplex the gradient still sums to 0, which softmax(x) − y alone would not.
    assert abs(jnp.sum(loss.gradient(X, 3 * LABEL))) < ROUNDING
    assert abs(jnp.sum(jax.nn.softmax(X) - 3 * LABEL)) > 1


def test_extreme_logits_stay_finite():
    loss, x = CrossEntropy(), jnp.array([1e4, -1e4, 0.0, 1.0])
    for result in (
        loss.value(x, LABEL),
        loss.gradient(x, LABEL),
        loss.hessian(x, LABEL),
        loss.hessian_factor(x, LABEL),
    ):
        assert jnp.isfinite(result).all()


def test_label_entropy_is_the_minimum_and_zero_for_one_hot():
    loss = CrossEntropy()
    assert loss.minimum(jnp.eye(Q)[1]) == 0
    assert abs(loss.minimum(ONES / Q) - np.log(Q)) < ROUNDING
    assert loss.value(LABEL, LABEL) > loss.minimum(LABEL), "the minimum is at log y, not at y"


def test_one_hot_labels_have_no_finite_equilibrium():
    end = CrossEntropy().equilibrium(X, jnp.eye(Q)[1])
    assert end[1] == jnp.inf
    assert jnp.isnan(end[jnp.array([0, 2, 3])]).all()


@pytest.mark.parametrize(
    ("y", "invalid"),
    [
        (LABEL, False),
        (jnp.eye(Q)[0], False),
        (2 * LABEL, True),
        (LABEL.at[0].add(1e-9), True),
        (jnp.array([1.5, -0.5, 0.0, 0.0]), True),
        (LABEL.at[0].set(jnp.nan), True),
        (LABEL.at[0].set(jnp.inf), True),
    ],
)
def test_labels_off_the_simplex_are_found(y, invalid):
    assert bool(CrossEntropy().invalid_target(y)) is invalid
    assert not SquaredError().invalid_target(y), "squared error takes any numbers"


def test_float32_softmax_output_is_a_valid_label():
    y = jax.nn.softmax(jnp.asarray(RNG.normal(size=1000), dtype=jnp.float32))
    assert not CrossEntropy().invalid_target(y)


# User losses.


def test_a_loss_that_is_not_convex_has_no_factor():
    well = Loss(lambda x, y: jnp.sum((x**2 - y) ** 2))
    inside, outside = 0.1 * ONES, 2 * ONES
    assert jnp.linalg.eigvalsh(well.hessian(inside, ONES))[0] < 0
    assert jnp.isnan(well.hessian_factor(inside, ONES) @ well.hessian_factor(inside, ONES).T).all()
    B = well.hessian_factor(outside, ONES)
    assert np.max(np.abs(B @ B.T - well.hessian(outside, ONES))) < 100 * ROUNDING


def test_a_singular_convex_hessian_has_a_factor():
    flat = Loss(lambda x, y: (jnp.sum(x) - jnp.sum(y)) ** 2)  # eigenvalues 2Q, 0, 0, 0 up to rounding
    B = flat.hessian_factor(X, TARGET)
    assert np.max(np.abs(B @ B.T - 2)) < 10 * ROUNDING
    nothing = Loss(lambda x, y: jnp.sum(0 * x))
    assert (nothing.hessian_factor(X, TARGET) == 0).all()


def test_closed_forms_of_a_user_loss_are_passed_on():
    loss = Loss(log_cosh, minimum=lambda y: jnp.zeros((), y.dtype), equilibrium=lambda x0, y: y)
    assert loss.minimum(TARGET) == 0
    end = loss.equilibrium(X, TARGET)
    assert end is not None
    assert np.max(np.abs(loss.gradient(end, TARGET))) == 0


def test_a_second_call_with_the_same_user_loss_does_not_compile_again():
    loss, count = Loss(log_cosh), 0

    @eqx.filter_jit
    def value(loss, x):
        nonlocal count
        count += 1
        return loss.value(x, TARGET)

    assert value(loss, X) != value(Loss(log_cosh), 2 * X)
    assert count == 1


def test_a_loss_without_a_scalar_is_refused():
    with pytest.raises(ValueError, match=r"must return a scalar, got shape \(4,\); sum"):
        Loss(lambda x, y: (x - y) ** 2).gradient(X, TARGET)


# Label smoothing.


def test_smoothed_labels_are_positive_labels():
    y = smooth_labels(jnp.eye(Q), 0.2)
    assert not jax.vmap(CrossEntropy().invalid_target)(y).any()
    assert abs(jnp.min(y) - 0.2 / Q) < ROUNDING
    assert (smooth_labels(LABEL, 0.0) == LABEL).all()
    assert np.max(np.abs(smooth_labels(LABEL, 1.0) - 1 / Q)) < ROUNDING
    assert smooth_labels(jnp.eye(Q, dtype=jnp.float32), np.float64(0.2)).dtype == jnp.float32
    smoothed = smooth_labels(np.eye(Q), 0.2)
    assert type(smoothed) is np.ndarray
    np.testing.assert_array_equal(smoothed, y)


@pytest.mark.parametrize("amount", [-0.1, 1.5, float("nan")])
def test_smoothing_outside_the_unit_interval_is_refused(amount):
    with pytest.raises(ValueError, match=r"amount must be in \[0, 1\], got") as caught:
        smooth_labels(LABEL, amount)
    assert "\n" not in str(caught.value)
