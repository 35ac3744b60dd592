"""Laws of the predictions, and oracles that get to them another way: 50 digits, scipy, literal sums of (2.58)."""

import inspect
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from jaxtyping import Array
from tolerances import tol

from chordflow import theory
from chordflow.losses import CrossEntropy, SquaredError, smooth_labels

RNG = np.random.default_rng(20240801)
N, Q = 2, 3  # every integration has these shapes where it can: compiling is most of the time
X0 = jnp.asarray(RNG.normal(size=(N, Q)))
Y = jnp.asarray(RNG.normal(size=(N, Q)))

CHORD = np.asarray(X0 - Y)
LABELS = smooth_labels(jnp.asarray([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), 0.2)

ROUNDING = tol(jnp.float64, "rounding")
INTEGRATED = 1e-9  # what an integration at rtol 1e-10 must reach, relative to its largest result


class Transfer(eqx.Module):
    """S(t) = c 1 + A sin(3t + 1) + B t²: symmetric, its values at two times do not commute. One compilation for all."""

    c: Array
    A: Array
    B: Array

    def __call__(self, t):
        identity = jnp.eye(self.A.shape[0], dtype=self.A.dtype)
        return self.c * identity + self.A * jnp.sin(3 * t + 1) + self.B * t**2

    def numpy(self, t):
        c, A, B = (np.asarray(leaf) for leaf in (self.c, self.A, self.B))
        return c * np.eye(A.shape[0]) + A * np.sin(3 * t + 1) + B * t**2


def symmetric(size, scale):
    A = RNG.normal(size=(size, size))
    return jnp.asarray(scale * (A + A.T) / 2)


ZERO = jnp.zeros((N * Q, N * Q))
MIXING = Transfer(jnp.asarray(0.6), symmetric(N * Q, 0.2), symmetric(N * Q, 0.2))


def scalar(c):
    return Transfer(jnp.asarray(float(c)), ZERO, ZERO)


TS = jnp.array([0.1, 0.45, 0.8])


def relative(result, expected):
    expected = np.asarray(expected)
    return np.max(np.abs(np.asarray(result) - expected)) / np.max(np.abs(expected))


# The straight line.


def test_linear_interpolation_starts_at_x0_and_ends_at_y_to_the_last_bit():
    assert (theory.linear_interpolation(X0, Y, 0.0) == X0).all()
    assert (theory.linear_interpolation(X0, Y, 1) == Y).all()


def test_exponential_decay_starts_at_x0_and_ends_at_y_to_the_last_bit():
    assert (theory.exponential_decay(X0, Y, 0.0, N) == X0).all()
    assert (theory.exponential_decay(X0, Y, jnp.inf, N) == Y).all()


def test_closed_forms_agree_with_fifty_digits():
    mpmath.mp.dps = 50
    for t, s in ((0.3, 1e-9), (1 - 1e-12, 2.5), (0.75, 200.0)):
        line = np.empty((N, Q))
        decay = np.empty((N, Q))
        for i, j in np.ndindex(N, Q):
            a, b = mpmath.mpf(float(X0[i, j])), mpmath.mpf(float(Y[i, j]))
            line[i, j] = float(a + mpmath.mpf(t) * (b - a))
            decay[i, j] = float(b + mpmath.exp(-mpmath.mpf(s) / N) * (a - b))
        assert np.max(np.abs(np.asarray(theory.linear_interpolation(X0, Y, t)) - line)) < ROUNDING
        assert np.max(np.abs(np.asarray(theory.exponential_decay(X0, Y, s, N)) - decay)) < ROUNDING


def test_the_clock_maps_the_decay_to_the_line():
    s = jnp.linspace(0.0, 20.0, 7)
    line = theory.linear_interpolation(X0, Y, 1 - jnp.exp(-s / N))
    assert np.max(np.abs(line - theory.exponential_decay(X0, Y, s, N))) < ROUNDING


def test_the_decay_takes_samples_not_outputs():
    # After s = N ln 2 half of the residual is left; n = NQ would leave more.
    halfway = theory.exponential_decay(X0, Y, N * np.log(2), N)
    assert np.max(np.abs(halfway - (X0 + Y) / 2)) < ROUNDING
    assert np.max(np.abs(theory.exponential_decay(X0, Y, N * np.log(2), N * Q) - (X0 + Y) / 2)) > 0.1


def test_decay_stopped_and_resumed_goes_through():
    middle = theory.exponential_decay(X0, Y, 1.3, N)
    resumed = theory.exponential_decay(middle, Y, 2.1, N)
    assert np.max(np.abs(resumed - theory.exponential_decay(X0, Y, 3.4, N))) < ROUNDING


G0 = jnp.asarray((lambda D: D @ D.T)(RNG.normal(size=(N * Q, N * Q + 2))))
KERNEL_NEW = jnp.asarray(RNG.normal(size=(2 * Q, N * Q)))
F0 = jnp.asarray(RNG.normal(size=(2, Q)))


def at_each_time(name):
    return {
        "line": lambda t: theory.linear_interpolation(X0, Y, t),
        "decay": lambda s: theory.exponential_decay(X0, Y, s, N),
        "kernel": lambda s: theory.frozen_kernel(X0, Y, s, G0),
        "kernel_new": lambda s: theory.frozen_kernel_new(X0, Y, s, G0, F0, KERNEL_NEW),
    }[name]


@pytest.mark.parametrize("name", ["line", "decay", "kernel", "kernel_new"])
def test_many_times_are_each_time(name):
    formula, times = at_each_time(name), jnp.array([0.0, 0.3, 0.9])
    together = formula(times)
    for k, time in enumerate(times):
        assert together[k].shape == formula(float(time)).shape
        assert np.max(np.abs(together[k] - formula(float(time)))) < ROUNDING


@pytest.mark.parametrize("name", ["line", "decay", "kernel", "kernel_new"])
def test_closed_forms_under_jit_and_vmap(name):
    formula, times = at_each_time(name), jnp.array([0.0, 0.3, 0.9])
    expected = formula(times)
    assert np.max(np.abs(jax.jit(formula)(times) - expected)) < ROUNDING
    assert np.max(np.abs(jax.jit(jax.vmap(formula))(times) - expected)) < ROUNDING


# The deviation integral.


def literal_propagators(S, d, t_end, num_steps):
    """(2.58) as it stands: ∫ U(t,t') (1 − S_t') d dt', U a product of matrix exponentials over short steps."""
    h = t_end / num_steps
    middles = (np.arange(num_steps) + 0.5) * h
    matrices = np.stack([S(t) for t in middles])
    rates = -matrices / (1 - middles)[:, None, None]
    half, whole = scipy.linalg.expm(rates * h / 2), scipy.linalg.expm(rates * h)
    total, U = np.zeros_like(d), np.eye(d.size)  # U takes the end of the current step to t_end
    for j in reversed(range(num_steps)):
        total += U @ half[j] @ (d - matrices[j] @ d) * h
        U = U @ whole[j]
    return total


def test_the_mixing_transfer_does_not_commute_with_itself():
    A, B = MIXING.numpy(0.1), MIXING.numpy(0.8)
    assert np.max(np.abs(A @ B - B @ A)) > 0.05


@pytest.fixture(scope="module")
def mixing_deviation():
    return theory.deviation(X0, Y, TS, MIXING)


def test_deviation_is_the_integral_of_propagators(mixing_deviation):
    d = CHORD.ravel()
    for t, r in zip(TS, mixing_deviation, strict=True):
        coarse, fine = (literal_propagators(MIXING.numpy, d, float(t), k) for k in (300, 600))
        expected = fine + (fine - coarse) / 3  # the midpoint rule's error is even in the step
        assert relative(r.ravel(), expected) < INTEGRATED


def test_deviation_is_outputs_minus_chord_of_the_constrained_flow(mixing_deviation):
    y = np.asarray(Y).ravel()
    outputs = scipy.integrate.solve_ivp(
        lambda t, x: -MIXING.numpy(t) @ (x - y) / (1 - t),  # (2.57) in t, with no r in it
        (0, float(TS[-1])),
        np.asarray(X0).ravel(),
        method="DOP853",
        t_eval=np.asarray(TS),
        rtol=1e-12,
        atol=1e-13,
    ).y.T
    expected = outputs - np.asarray(theory.linear_interpolation(X0, Y, TS)).reshape(3, -1)
    assert relative(mixing_deviation.reshape(3, -1), expected) < INTEGRATED


def test_constant_velocity_deviation_is_an_ordinary_integral():
    d = CHORD.ravel()
    result = theory.deviation(X0, Y, TS, MIXING, feedback=False)
    for t, r in zip(TS, result, strict=True):
        expected, _ = scipy.integrate.quad_vec(lambda u: d - MIXING.numpy(u) @ d, 0, float(t), epsabs=1e-13)
        assert relative(r.ravel(), expected) < INTEGRATED


def test_feedback_and_constant_velocity_are_different_flows(mixing_deviation):
    constant = theory.deviation(X0, Y, TS, MIXING, feedback=False)
    assert relative(constant, mixing_deviation) > 0.05


@pytest.mark.parametrize("c", [0.25, 0.9, 1 - 1e-7, 2.0])
def test_scalar_transfer_has_a_closed_form(c):
    """S = c 1: r = ((1−t)^c − (1−t)) (x0 − y), each entry to 1e-9 of itself; 50 digits because of the cancellation."""
    mpmath.mp.dps = 50
    # atol for the third: r is 1e-7 of the chord, and what S = 1 − 1e-7 keeps of 1 − S is 1e-9 of that.
    r = theory.deviation(X0, Y, TS, scalar(c), atol=1e-17)
    factors = np.array([float((1 - mpmath.mpf(float(t))) ** mpmath.mpf(c) - (1 - mpmath.mpf(float(t)))) for t in TS])
    assert np.max(np.abs(np.asarray(r) / (factors[:, None, None] * CHORD) - 1)) < 3e-9


def test_deviation_close_to_the_end_of_the_clock():
    ts = jnp.array([0.5, 1 - 1e-6, 1 - 1e-12])
    left = np.asarray(1 - ts)
    r = theory.deviation(X0, Y, ts, scalar(0.5))
    assert relative(r, (np.sqrt(left) - left)[:, None, None] * CHORD) < INTEGRATED


@pytest.mark.parametrize("feedback", [True, False])
def test_full_rank_has_no_deviation_and_no_motion_has_all_of_it(feedback):
    none = theory.deviation(X0, Y, TS, scalar(1), feedback)
    assert np.max(np.abs(none)) < 1e-12 * np.max(np.abs(CHORD))
    everything = theory.deviation(X0, Y, TS, scalar(0), feedback)
    assert relative(everything, np.asarray(TS)[:, None, None] * CHORD) < INTEGRATED


def test_deviation_at_time_zero_is_zero_and_times_do_not_depend_on_each_other(mixing_deviation):
    r = theory.deviation(X0, Y, jnp.array([0.0, 0.45, 0.6]), MIXING)
    assert (r[0] == 0).all()
    assert relative(r[1], mixing_deviation[1]) < INTEGRATED


def test_a_start_at_the_labels_has_no_deviation():
    assert (theory.deviation(Y, Y, TS, MIXING) == 0).all()


def test_flat_outputs_give_the_same_deviation(mixing_deviation):
    flat = theory.deviation(X0.ravel(), Y.ravel(), TS, MIXING)
    assert (flat == mixing_deviation.reshape(3, -1)).all()


def test_callables_may_return_operators_and_are_asked_between_zero_and_the_last_time():
    # Where the rounding of -expm1(log1p(-t)) goes beyond t depends on the XLA: above ½ in jax 0.10, below in 0.12.
    candidates = jnp.linspace(0.2, 0.8, 2001)
    there_and_back = jax.jit(lambda t: -jnp.expm1(jnp.log1p(-t)))(candidates)
    beyond = candidates[there_and_back > candidates]
    assert beyond.size, "no rounding to guard against"
    ts = jnp.asarray([0.0, 0.1, beyond[-1]])

    def operator(t):
        inside = jnp.where((t >= 0) & (t <= ts[-1]), 1.0, jnp.nan)
        return lx.MatrixLinearOperator(inside * MIXING(t))

    assert relative(theory.deviation(X0, Y, ts, operator), theory.deviation(X0, Y, ts, MIXING)) < INTEGRATED


# Samples of S. The oracles are in NumPy, so that each shape is compiled once only.


def polynomial(z):
    """A cubic of matrices."""
    return np.eye(N * Q) / 2 + np.asarray(MIXING.A) * z - np.asarray(MIXING.B) * z**2 + np.asarray(MIXING.A) ** 2 * z**3


def in_sigma(S, end):
    """r at σ = end by scipy, for S given as a function of σ."""
    d = CHORD.ravel()
    return scipy.integrate.solve_ivp(
        lambda z, r: -S(z) @ (r + np.exp(-z) * d) + np.exp(-z) * d,
        (0, end),
        np.zeros_like(d),
        method="DOP853",
        rtol=1e-12,
        atol=1e-13,
    ).y[:, -1]


def test_four_samples_of_a_cubic_in_sigma_are_enough():
    ts = jnp.array([0.0, 0.1, 0.45, 0.8])
    sigma = -np.log1p(-np.asarray(ts))
    r = theory.deviation(X0, Y, ts, np.stack([polynomial(z) for z in sigma]))
    assert relative(r[-1].ravel(), in_sigma(polynomial, sigma[-1])) < INTEGRATED
    # A cubic in t is none in σ.
    r = theory.deviation(X0, Y, ts, np.stack([polynomial(t) for t in ts]))
    assert relative(r[-1].ravel(), in_sigma(lambda z: polynomial(-np.expm1(-z)), sigma[-1])) > 1e-5


def test_two_samples_give_a_line_in_t_to_the_constant_velocity():
    ts, d = jnp.array([0.0, 0.8]), CHORD.ravel()
    S_0, S_1 = polynomial(0.0), polynomial(0.8)
    r = theory.deviation(X0, Y, ts, np.stack([S_0, S_1]), False)
    assert relative(r[-1].ravel(), 0.8 * (d - (S_0 + S_1) @ d / 2)) < INTEGRATED


def test_sampled_transfer_converges_with_fourth_order():
    exact, errors = in_sigma(lambda z: MIXING.numpy(-np.expm1(-z)), 1.6), []
    for num in (17, 33):
        ts = -np.expm1(-np.linspace(0.0, 1.6, num))
        samples = np.stack([MIXING.numpy(t) for t in ts]).reshape(num, N, Q, N, Q)
        errors.append(relative(theory.deviation(X0, Y, ts, samples)[-1].ravel(), exact))
    assert errors[1] < 1e-5
    assert np.log2(errors[0] / errors[1]) > 3.5, errors


def test_a_sample_acts_within_two_intervals_of_it():
    ts = -np.expm1(-np.linspace(0.0, 1.6, 17))
    samples = np.stack([MIXING.numpy(t) for t in ts])
    other = samples.copy()
    other[10] += np.eye(N * Q)
    r, r_other = theory.deviation(X0, Y, ts, samples), theory.deviation(X0, Y, ts, other)
    assert relative(r_other[:9], r[:9]) < ROUNDING
    assert relative(r_other[9], r[9]) > 1e-4


def test_a_stiff_transfer_given_as_a_function_with_an_implicit_solver():
    ts = jnp.array([0.5])
    r = theory.deviation(X0, Y, ts, lambda t: lambda v: 300 * v, rtol=1e-8, solver=diffrax.Kvaerno5())
    assert relative(r[0], (0.5**300 - 0.5) * CHORD) < 1e-7


def test_deviation_is_differentiable_in_reverse_under_jit(mixing_deviation):
    @jax.jit
    def value_and_pullback(x0, ts):
        r, pullback = jax.vjp(lambda x0: theory.deviation(x0, Y, ts, MIXING), x0)
        return r, pullback(jnp.ones_like(r))[0]

    r, gradient = value_and_pullback(X0, TS)
    assert relative(r, mixing_deviation) < 1e-12
    # r is linear in x0 − y, so its derivative along the chord is r itself.
    assert relative(jnp.sum(gradient * CHORD), jnp.sum(mixing_deviation)) < 1e-8


# Cross-entropy.


def test_equilibrium_is_stationary_on_its_hyperplane_and_costs_the_label_entropy():
    x0, y = X0, LABELS
    x = theory.cross_entropy_equilibrium(x0, y)
    loss = CrossEntropy()
    assert np.max(np.abs(jax.vmap(loss.gradient)(x, y))) < ROUNDING
    assert np.max(theory.hyperplane_drift(x, x0)) < ROUNDING
    cost = jnp.mean(jax.vmap(loss.value)(x, y))
    assert abs(cost - theory.label_entropy(y)) < ROUNDING
    worse = jnp.mean(jax.vmap(loss.value)(x + 0.1 * x0, y))
    assert worse > cost + 1e-4


def test_equilibrium_agrees_with_fifty_digits():
    mpmath.mp.dps = 50
    x = theory.cross_entropy_equilibrium(X0, LABELS)
    for n in range(N):
        logs = [mpmath.log(float(v)) for v in LABELS[n]]
        c = sum(mpmath.mpf(float(a)) - b for a, b in zip(X0[n], logs, strict=True)) / Q
        assert max(abs(float(x[n, q]) - float(logs[q] + c)) for q in range(Q)) < ROUNDING


def test_label_entropy_of_one_hot_labels_is_zero():
    assert theory.label_entropy(jnp.eye(4)) == 0
    expected = -np.mean([sum(v * np.log(v) for v in row) for row in np.asarray(LABELS)])
    assert abs(theory.label_entropy(LABELS) - expected) < ROUNDING


def test_one_hot_labels_have_no_finite_equilibrium():
    with pytest.raises(ValueError, match=r"y\[0\] has a component 0.*no finite equilibrium.*smooth_labels"):
        theory.cross_entropy_equilibrium(X0, LABELS.at[0].set(jnp.eye(Q)[0]))
    traced = jax.jit(theory.cross_entropy_equilibrium)(X0, LABELS.at[0].set(jnp.eye(Q)[0]))
    assert jnp.isnan(traced[0, 1:]).all()
    assert traced[0, 0] == jnp.inf
    assert jnp.isfinite(traced[1]).all()


def test_hyperplane_drift_is_a_maximum_over_samples_per_time():
    path = jnp.stack([X0, X0 + 1, X0.at[1, 0].add(-5.0)])
    assert np.max(np.abs(theory.hyperplane_drift(path, X0) - jnp.array([0.0, Q, 5.0]))) < ROUNDING
    assert theory.hyperplane_drift(X0, X0).shape == ()
    # The sum of large logits cancels, that of their differences does not.
    huge = X0 + 1e12
    assert theory.hyperplane_drift(huge.at[0, 0].add(1.0), huge) == 1


# Euclidean flow.


S_TIMES = jnp.array([0.0, 1.5, 4.0])


def test_squared_error_flow_is_the_exponential_decay():
    x = theory.euclidean_flow(X0, Y, SquaredError(), S_TIMES)
    assert (x[0] == X0).all()
    assert relative(x, theory.exponential_decay(X0, Y, S_TIMES, N)) < INTEGRATED


def test_another_sample_count_is_another_clock():
    x = theory.euclidean_flow(X0, Y, SquaredError(), S_TIMES, n=2 * N)
    assert relative(x, theory.exponential_decay(X0, Y, S_TIMES, 2 * N)) < INTEGRATED


@pytest.fixture(scope="module")
def logit_flow():
    return theory.euclidean_flow(X0, LABELS, CrossEntropy(), S_TIMES)


def test_flow_agrees_with_a_loop_over_samples(logit_flow):
    def field(_, flat):
        x, velocity = flat.reshape(N, Q), np.zeros((N, Q))
        for n in range(N):
            e = [np.exp(v) for v in x[n]]
            for q in range(Q):
                velocity[n, q] = -(e[q] / sum(e) - float(LABELS[n, q])) / N
        return velocity.ravel()

    oracle = scipy.integrate.solve_ivp(field, (0, 4.0), np.asarray(X0).ravel(), method="DOP853", rtol=1e-12, atol=1e-13)
    assert relative(logit_flow[-1].ravel(), oracle.y[:, -1]) < INTEGRATED


def test_flow_stopped_and_resumed_goes_through(logit_flow):
    resumed = theory.euclidean_flow(logit_flow[1], LABELS, CrossEntropy(), jnp.array([0.5, 1.0, 2.5]))
    assert relative(resumed[-1], logit_flow[-1]) < INTEGRATED


def test_flow_under_jit_vmap_and_reverse_mode(logit_flow):
    def conserved(x0):
        x = theory.euclidean_flow(x0, LABELS, CrossEntropy(), S_TIMES)
        return jnp.sum(x[-1][1]), x

    both = jax.jit(jax.vmap(jax.value_and_grad(conserved, has_aux=True)))
    (_, x), gradient = both(jnp.stack([X0, 2 * X0]))
    assert relative(x[0], logit_flow) < INTEGRATED
    # 1ᵀxₙ does not change, so its gradient in x0 is 1 for the sample and 0 elsewhere.
    assert np.max(np.abs(gradient - jnp.zeros((2, N, Q)).at[:, 1].set(1.0))) < 1e-8


def test_cross_entropy_reaches_its_equilibrium_in_the_predicted_time():
    y = jnp.array([[0.02, 0.18, 0.8], [0.3, 0.3, 0.4]])
    x0 = jnp.array([[3.0, 1.0, -2.0], [-5.0, 3.0, 4.0]])
    end = theory.cross_entropy_equilibrium(x0, y)
    distance = float(jnp.max(jnp.abs(x0 - end)))
    s = 2 * np.log(distance / 1e-6) / 0.02
    x = theory.euclidean_flow(x0, y, CrossEntropy(), jnp.array([0.0, s / 20, s]))
    assert np.max(theory.hyperplane_drift(x, x0)) < 1e-10
    assert np.max(np.abs(x[-1] - end)) < 1e-6
    assert np.max(np.abs(x[1] - end)) > 1e-3, "a twentieth of the time must not do"


def test_one_hot_logits_grow_like_the_logarithm_of_time():
    """From 0 with y = (1, 0, 0), d = x₁ − x₂ = x₁ − x₃ has d' = 3/(N(e^d + 2)): e^d + 2d = 3s/N + 1, without an end."""
    y = jnp.tile(jnp.array([[1.0, 0.0, 0.0]]), (N, 1))
    ts = jnp.array([1.0, 1e2, 1e4])
    x = theory.euclidean_flow(jnp.zeros((N, Q)), y, CrossEntropy(), ts)
    d = x[:, 0, 0] - x[:, 0, 1]
    assert relative(jnp.exp(d) + 2 * d, 3 * ts / N + 1) < 1e-8  # d is to 1e-9, and exp(d) grows its error tenfold
    assert d[2] - d[1] > 4


# Frozen kernel.


def test_frozen_kernel_is_a_matrix_exponential():
    for s in (0.0, 0.7, 5.0):
        expected = np.asarray(Y) + (scipy.linalg.expm(-np.asarray(G0) * s / N) @ CHORD.ravel()).reshape(N, Q)
        assert np.max(np.abs(theory.frozen_kernel(X0, Y, s, G0) - expected)) < 10 * ROUNDING


def test_frozen_kernel_stopped_and_resumed_goes_through():
    middle = theory.frozen_kernel(X0, Y, 0.4, G0)
    resumed = theory.frozen_kernel(middle, Y, 0.3, G0)
    assert np.max(np.abs(resumed - theory.frozen_kernel(X0, Y, 0.7, G0))) < 10 * ROUNDING


def test_identity_kernel_is_the_adapted_flow():
    x = theory.frozen_kernel(X0, Y, S_TIMES, jnp.eye(N * Q))
    assert np.max(np.abs(x - theory.exponential_decay(X0, Y, S_TIMES, N))) < ROUNDING


def test_frozen_kernel_takes_its_matrix_in_both_shapes_and_flat_outputs_with_n():
    x = theory.frozen_kernel(X0, Y, 0.7, G0)
    assert (theory.frozen_kernel(X0, Y, 0.7, G0.reshape(N, Q, N, Q)) == x).all()
    assert (theory.frozen_kernel(X0.ravel(), Y.ravel(), 0.7, G0, n=N) == x.ravel()).all()
    with pytest.raises(ValueError, match="give n"):
        theory.frozen_kernel(X0.ravel(), Y.ravel(), 0.7, G0)


def joint_linear_flow(G, K, s):
    """Both predictions as one linear system x' = −G(x − y)/N, f' = −K(x − y)/N, by scipy."""
    n = G.shape[0]
    start = np.concatenate([CHORD.ravel(), np.asarray(F0).ravel()])
    A = np.block([[-G, np.zeros((n, F0.size))], [-K, np.zeros((F0.size, F0.size))]]) / N
    return (scipy.linalg.expm(A * s) @ start)[n:].reshape(F0.shape)


@pytest.fixture(scope="module")
def deficient():
    """A Jacobian of rank 4 for 6 outputs, its Gram matrix, and the kernel to new inputs that belongs to it."""
    D = RNG.normal(size=(N * Q, 4))
    D_new = RNG.normal(size=(F0.size, 4))
    G = D @ D.T
    assert np.linalg.matrix_rank(G) == 4
    return jnp.asarray(G), jnp.asarray(D_new @ D.T)


def test_frozen_kernel_at_new_inputs_is_the_linear_flow(deficient):
    for G, K in ((G0, KERNEL_NEW), deficient):
        for s in (0.0, 0.7, 5.0):
            f = theory.frozen_kernel_new(X0, Y, s, G, F0, K.reshape(2, Q, N, Q))
            assert np.max(np.abs(f - joint_linear_flow(np.asarray(G), np.asarray(K), s))) < 100 * ROUNDING


def test_new_inputs_that_are_the_training_inputs_agree(deficient):
    for s in (0.0, 1.0, jnp.inf):
        for G in (G0, deficient[0]):
            f = theory.frozen_kernel_new(X0, Y, s, G, X0, G)
            assert np.max(np.abs(f - theory.frozen_kernel(X0, Y, s, G))) < 10 * ROUNDING


def test_a_zero_eigenvalue_rests_and_gives_no_nan(deficient):
    G, K = deficient
    P = np.asarray(G) @ np.linalg.pinv(np.asarray(G), rcond=1e-10)
    limit = np.asarray(Y) + ((np.eye(N * Q) - P) @ CHORD.ravel()).reshape(N, Q)
    ends = theory.frozen_kernel(X0, Y, jnp.array([1e12, jnp.inf]), G)
    assert np.max(np.abs(ends - limit[None])) < 10 * ROUNDING
    f_limit = np.asarray(F0) - (np.asarray(K) @ np.linalg.pinv(np.asarray(G), rcond=1e-10) @ CHORD.ravel()).reshape(
        2, Q
    )
    assert np.max(np.abs(theory.frozen_kernel_new(X0, Y, jnp.inf, G, F0, K) - f_limit)) < 100 * ROUNDING
    # No kernel at all: nothing moves.
    assert np.max(np.abs(theory.frozen_kernel(X0, Y, jnp.inf, ZERO) - X0)) < ROUNDING
    assert (theory.frozen_kernel_new(X0, Y, jnp.inf, ZERO, F0, jnp.zeros((2 * Q, N * Q))) == F0).all()


def test_phi_1_limit_for_a_direction_without_kernel():
    # x' = 0 in that direction, so f moves with constant velocity K*(y − x0)/N for as long as one waits.
    f = theory.frozen_kernel_new(X0, Y, 6.0, ZERO, F0, KERNEL_NEW)
    expected = np.asarray(F0) - (np.asarray(KERNEL_NEW) @ CHORD.ravel()).reshape(2, Q) * 6 / N
    assert np.max(np.abs(f - expected)) < 10 * ROUNDING


def test_what_is_no_gram_matrix_is_nan_under_jit():
    assert jnp.isnan(jax.jit(partial(theory.frozen_kernel, X0, Y, 1.0))(G0 - 20 * jnp.eye(N * Q))).all()


# What all share: dtypes and errors.


def test_dtype_is_kept(mixing_deviation, logit_flow):
    x0, y, labels, G = (a.astype(jnp.float32) for a in (X0, Y, LABELS, G0))
    S = Transfer(*(leaf.astype(jnp.float32) for leaf in (MIXING.c, MIXING.A, MIXING.B)))
    results = {
        "line": theory.linear_interpolation(x0, y, TS),
        "decay": theory.exponential_decay(x0, y, 1.0, np.float64(N)),
        "called": theory.deviation(x0, y, TS, S),
        "sampled": jax.eval_shape(partial(theory.deviation, x0, y), TS, jnp.tile(G, (3, 1, 1))),
        "equilibrium": theory.cross_entropy_equilibrium(x0, labels),
        "flow": theory.euclidean_flow(x0, labels, CrossEntropy(), S_TIMES, n=np.float64(N)),
        "kernel": theory.frozen_kernel(x0, y, TS, G),
        "kernel_new": theory.frozen_kernel_new(x0, y, TS, G, F0.astype(jnp.float32), KERNEL_NEW.astype(jnp.float32)),
        "drift": theory.hyperplane_drift(x0, x0),
        "entropy": theory.label_entropy(labels),
    }
    assert {name: result.dtype for name, result in results.items()} == dict.fromkeys(results, jnp.dtype("float32"))
    # 1e-4: ten times the float32 default of the integrations.
    assert relative(results["called"], mixing_deviation) < 1e-4
    assert relative(results["flow"], logit_flow) < 1e-4
    assert mixing_deviation.dtype == logit_flow.dtype == jnp.float64


def test_numpy_arrays_are_taken():
    x = theory.linear_interpolation(np.asarray(X0), np.asarray(Y), np.array([0.0, 1.0]))
    assert isinstance(x, jax.Array)
    assert theory.deviation(np.asarray(X0), np.asarray(Y), np.asarray(TS), MIXING).shape == (3, N, Q)


NAN = X0.at[1, 1].set(jnp.nan)
EYES = jnp.broadcast_to(jnp.eye(N * Q), (3, N * Q, N * Q))
BAD_CALLS = {
    "shapes": (lambda: theory.linear_interpolation(X0, Y.T, 0.5), r"\(N, Q\) or \(n,\), got \(2, 3\) and \(3, 2\)"),
    "empty": (lambda: theory.linear_interpolation(X0[:0], Y[:0], 0.5), "non-empty"),
    "dtypes": (lambda: theory.linear_interpolation(X0, Y.astype(jnp.float32), 0.5), "one floating dtype"),
    "times_2d": (lambda: theory.linear_interpolation(X0, Y, TS[None]), r"scalar or have shape \(T,\)"),
    "n_zero": (lambda: theory.exponential_decay(X0, Y, 1.0, 0), "positive number, got 0"),
    "n_vector": (lambda: theory.exponential_decay(X0, Y, 1.0, jnp.ones(2)), "one positive number"),
    "n_nan": (lambda: theory.exponential_decay(X0, Y, 1.0, float("nan")), "positive number, got nan"),
    "t_is_one": (lambda: theory.deviation(X0, Y, jnp.array([0.5, 1.0]), MIXING), r"\[0, 1\), got 1.0"),
    "t_beyond": (lambda: theory.deviation(X0, Y, jnp.array([0.5, 1.5]), MIXING, False), r"\[0, 1\], got 1.5"),
    "t_negative": (lambda: theory.deviation(X0, Y, -TS[::-1], MIXING), "increase strictly from ≥ 0"),
    "t_repeated": (lambda: theory.deviation(X0, Y, jnp.array([0.1, 0.1]), MIXING), "increase strictly.*drop repeats"),
    "t_nan": (lambda: theory.deviation(X0, Y, jnp.array([0.1, jnp.nan]), MIXING), "increase strictly"),
    "t_scalar": (lambda: theory.deviation(X0, Y, 0.5, MIXING), r"non-empty with shape \(T,\), got shape \(\)"),
    "S_shape": (lambda: theory.deviation(X0, Y, TS, EYES[:2]), r"\(T, n, n\) = \(3, 6, 6\), got \(2, 6, 6\)"),
    "S_start": (lambda: theory.deviation(X0, Y, TS, EYES), "begin at t = 0.*add 0"),
    "S_nan": (lambda: theory.deviation(X0, Y, TS, EYES.at[1, 2, 3].set(jnp.nan)), "S must be finite"),
    "S_dtype": (lambda: theory.deviation(X0, Y, TS, EYES.astype(jnp.float32)), "x0 and S must have one floating"),
    "S_called": (lambda: theory.deviation(X0, Y, TS, lambda t: jnp.eye(2)), r"S\(t\) must have shape \(6, 6\)"),
    "S_applied": (lambda: theory.deviation(X0, Y, TS, lambda t: lambda v: v[:2]), r"S\(t\) must map \(6,\)"),
    "x0_nan": (lambda: theory.deviation(NAN, Y, TS, MIXING), "x0 must be finite"),
    "rtol_small": (lambda: theory.deviation(X0, Y, TS, MIXING, rtol=1e-16), "rtol must be in .*got 1e-16"),
    "rtol_negative": (lambda: theory.deviation(X0, Y, TS, MIXING, rtol=-1.0), "rtol must be in"),
    "atol_negative": (lambda: theory.deviation(X0, Y, TS, MIXING, atol=-1.0), "atol must be positive, got -1"),
    "logits_flat": (lambda: theory.cross_entropy_equilibrium(X0[0], LABELS[0]), r"\(N, Q\): one row per sample"),
    "off_simplex": (
        lambda: theory.cross_entropy_equilibrium(X0, 2 * LABELS),
        r"probability simplex.*got y\[0\] = \[1.7333",
    ),
    "negative_label": (lambda: theory.label_entropy(LABELS.at[1, 0].set(-0.1)), r"probability simplex.*got y\[1\]"),
    "flow_labels": (lambda: theory.euclidean_flow(X0, Y, CrossEntropy(), S_TIMES), "probability simplex"),
    "flow_nan": (lambda: theory.euclidean_flow(NAN, Y, SquaredError(), S_TIMES), "x0 must be finite"),
    "flow_endless": (
        lambda: theory.euclidean_flow(X0, Y, SquaredError(), jnp.array([1.0, jnp.inf])),
        "ts must be finite",
    ),
    "kernel_shape": (lambda: theory.frozen_kernel(X0, Y, 1.0, jnp.eye(N)), r"G0 must have shape \(6, 6\)"),
    "kernel_asymmetric": (lambda: theory.frozen_kernel(X0, Y, 1.0, G0.at[0, 1].add(1.0)), "symmetric.*up to 1"),
    "kernel_indefinite": (lambda: theory.frozen_kernel(X0, Y, 1.0, -G0), "positive semidefinite.*smallest eigenvalue"),
    "kernel_nan": (lambda: theory.frozen_kernel(X0, Y, 1.0, G0.at[0, 0].set(jnp.nan)), "G0 must be finite"),
    "new_shape": (lambda: theory.frozen_kernel_new(X0, Y, 1.0, G0, F0, KERNEL_NEW[:2]), "kernel_new must have shape"),
    "new_dtype": (
        lambda: theory.frozen_kernel_new(X0, Y, 1.0, G0, F0.astype(jnp.float32), KERNEL_NEW),
        "x0 and f0 must have one floating dtype",
    ),
    "drift_shape": (lambda: theory.hyperplane_drift(X0.ravel(), X0), r"x must be \(N, Q\) or \(T, N, Q\)"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input_is_one_clear_line(case):
    call, message = BAD_CALLS[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_function_is_no_loss():
    unchecked: Any = inspect.unwrap(theory.euclidean_flow)  # in use no type checker stands before the function
    with pytest.raises(ValueError, match=r"must be a chordflow loss, as CrossEntropy\(\) or Loss\(fn\), got function"):
        unchecked(X0, Y, lambda x, y: x, S_TIMES)


def test_a_transfer_that_is_not_finite_ends_at_once():
    with pytest.raises(RuntimeError, match="not finite"):
        theory.deviation(X0, Y, TS, scalar(jnp.nan))


def test_the_step_limit_is_an_error_that_names_itself():
    with pytest.raises(RuntimeError, match="max_steps=4 steps"):
        theory.deviation(X0, Y, TS, MIXING, max_steps=4)
