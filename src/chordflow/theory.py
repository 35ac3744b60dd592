"""Predictions in output space that a training run is compared with: closed forms and small integrals.

This module knows losses and nothing of networks, problems or flows: that a flow equals its prediction is a
comparison of two independent codes.

======== ========================= ===========================================================================
symbol   shape                     meaning
======== ========================= ===========================================================================
x, y     (N, Q) or flat (n,)       outputs and labels on the training inputs; rows sample-major, then output
x0       like y                    outputs at the start of the flow
N        scalar                    number of samples (the sum of sample weights), *not* the n = NQ outputs
s        scalar or (T,)            gradient-flow time of (2.3) and (2.26)
t        scalar or (T,)            clock time in [0, 1], s = −N ln(1 − t) (2.51)
S        (n, n)                    the outputs of a flow move with S times the wanted velocity; P in the paper
G0       (n, n) or (N, Q, N, Q)    output-space Gram matrix DDᵀ (empirical tangent kernel) at the start
======== ========================= ===========================================================================

All of it is for one unweighted term. With weights W = diag(N wₖ ωₖₙ/Ωₖ), deviation and frozen_kernel hold for W^½x0,
W^½y, S and G0 formed from W^½D, and what they return is W^½ times the outputs; frozen_kernel_new takes those, K* W^½
and f0 as it is, and returns plain outputs. The others are the same with weights, where n is the sum of sample weights.

Results have the dtype of x0, and times are taken to it. One time gives the shape of x0, T times give (T, ...).
Everything may be called under ``jax.jit`` and ``jax.vmap``; checks that need values, not shapes, are made outside only.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import xlogy
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from chordflow.losses import AbstractLoss, CrossEntropy

Outputs = Float[Array | np.ndarray, "..."]
Matrices = Float[Array | np.ndarray, "..."]

# Full float32 products on accelerators too, where the default may round to bfloat16 or TensorFloat-32.
_EXACT = jax.lax.Precision.HIGHEST


def linear_interpolation(x0: Outputs, y: Outputs, t: ArrayLike) -> Float[Array, "..."]:
    """(1 − t) x0 + t y: the outputs of the adapted flow with squared error, on the clock t (2.53–2.56).

    Proposition 2.4: with a Jacobian of full rank the outputs run straight from x0 to the labels, reached at t = 1.

    Parameters
    ----------
    x0, y
        Outputs at the start and labels, both (N, Q) or both (n,), of one floating dtype.
    t
        Clock time, scalar or (T,); 0 gives x0 and 1 gives y to the last bit. Other values extend the line.

    Returns
    -------
    Array
        The shape of x0 for one time, (T, ...) for T times. Costs 3 operations per entry.

    Raises
    ------
    ValueError
        Shapes or dtypes of x0 and y differ, they are empty, or t has more than one dimension.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> x0, y = jnp.array([[0.0, 4.0]]), jnp.array([[1.0, 0.0]])
    >>> linear_interpolation(x0, y, 0.25).tolist()
    [[0.25, 3.0]]
    >>> linear_interpolation(x0, y, jnp.array([0.0, 1.0])).shape
    (2, 1, 2)
    """
    x0, y = _pair("linear_interpolation", x0, y)
    t = _times("linear_interpolation", "t", t, x0.dtype)
    return _outer(1 - t, x0) + _outer(t, y)


def exponential_decay(x0: Outputs, y: Outputs, s: ArrayLike, n: ArrayLike) -> Float[Array, "..."]:
    """y + e^(−s/N)(x0 − y): the same straight line in gradient-flow time s (2.48–2.49).

    The cost ½|x − y|²/N, quadratic in the residual, e-folds in N/2 units of s.

    Parameters
    ----------
    x0, y
        Outputs at the start and labels, both (N, Q) or both (n,), of one floating dtype.
    s
        Gradient-flow time, scalar or (T,), in units where one e-folding of the residual takes N. Infinity gives y.
    n
        N, the number of samples over which the cost is a mean, whatever Q is; the sum of their weights
        if they have weights.

    Returns
    -------
    Array
        The shape of x0 for one time, (T, ...) for T times. Costs 3 operations per entry.

    Raises
    ------
    ValueError
        Shapes or dtypes of x0 and y differ, they are empty, s has more than one dimension, or n is not positive.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> x0, y = jnp.array([[8.0], [0.0]]), jnp.array([[0.0], [4.0]])
    >>> x = exponential_decay(x0, y, 2 * jnp.log(2.0), n=2)
    >>> bool(jnp.allclose(x, jnp.array([[4.0], [2.0]])))
    True
    """
    x0, y = _pair("exponential_decay", x0, y)
    s = _times("exponential_decay", "s", s, x0.dtype)
    exponent = s / _sample_count("exponential_decay", x0, n)
    # Convex form: both ends are exact, and 1 − e^(−s/N) keeps its digits for small s.
    return _outer(jnp.exp(-exponent), x0) - _outer(jnp.expm1(-exponent), y)


def deviation(
    x0: Outputs,
    y: Outputs,
    ts: ArrayLike,
    S: Matrices | Callable[[Array], Any],
    feedback: bool = True,
    *,
    rtol: float | None = None,
    atol: ArrayLike | None = None,
    max_steps: int = 100_000,
    solver: diffrax.AbstractSolver | None = None,
) -> Float[Array, "..."]:
    """r(t) = x(t) − ((1−t) x0 + t y): how far outputs that move with S leave the chord (2.57–2.59).

    ``feedback=True`` is the paper's flow x' = −S (x − y)/(1−t), for t in [0, 1)::

        r' = −S_t r/(1−t) + (1 − S_t)(x0 − y),  r(0) = 0
        r(t) = ∫₀ᵗ U(t,t') (1 − S_t')(x0 − y) dt',  ∂ₜU(t,t') = −S_t U(t,t')/(1−t),  U(t',t') = 1

    integrated in σ = −ln(1−t), where it is regular: dr/dσ = −S r + (1−t)(1 − S)(x0 − y). ``feedback=False`` is the
    flow with the constant velocity y − x0, x' = S (y − x0): then r(t) = ∫₀ᵗ (1 − S_t')(x0 − y) dt', for t in [0, 1].
    The two agree for S = 1, where r = 0, and otherwise not; for S = 0 both are t (x0 − y).

    Parameters
    ----------
    x0, y
        Outputs at the start and labels, both (N, Q) or both (n,), of one floating dtype.
    ts
        Times (T,) at which r is wanted, strictly increasing from any t ≥ 0. The integral starts at 0 in any case.
    S
        Either a JAX-traceable callable: ``S(t)``, with t a scalar in [0, ts[-1]], gives an (n, n) array, an operator
        with a method ``mv`` on flat (n,) vectors (lineax's have it), or a function of a flat vector.
        Or an array (T, n, n), or (T, N, Q, N, Q), of samples at ts, which then must begin with 0.
        Between samples S is the cubic through the four nearest of them, in σ for the feedback form and in t for the
        other (fewer than four: the parabola, the line). For S four times differentiable its error is at most
        h⁴ max|S''''|/24 with h the spacing in that variable, and r inherits the order. At a jump of S (a change of
        rank) the order falls to h. A callable has no such error: prefer it where accuracy counts.
    rtol, atol
        Tolerances of the integration, in the maximum norm. rtol: 1e-10, in float32 1e-5. atol: 1e-3 rtol max|x0 − y|;
        lower it if r is less than 1e-3 of x0 − y and its own leading digits matter. S close to 1 carries a
        rounding error of one machine epsilon of x0 − y into r, whatever the tolerance.
    max_steps
        Limit on integration steps.
    solver
        A diffrax solver; Dopri8 by default. About 1 + max|S| σ/6 steps are forced by stability: few for filters with
        S ≤ 1, but many for the standard flow, S = DDᵀ, where ``diffrax.Kvaerno5()`` is the alternative.

    Returns
    -------
    Array
        r at ts, (T, N, Q) or (T, n). Steps end on each of ts, 25 to 50 more are typical for S ≤ 1, and a step takes 13
        evaluations of S and products with it. Samples of S are gathered four at a time. Differentiable in reverse mode.

    Raises
    ------
    ValueError
        Wrong shapes or dtypes; ts outside [0, 1) ([0, 1] without feedback) or not increasing; samples of S that do
        not start at 0; not finite x0, y or S; rtol below ten machine epsilons; atol not positive.
    RuntimeError
        More than max_steps steps, or a step size that shrank to rounding because S is not finite or not smooth.

    Examples
    --------
    The direction in which S = 0 never moves, so all of its way is missing; the other is on the chord:

    >>> import jax.numpy as jnp
    >>> x0, y, ts = jnp.array([2.0, 2.0]), jnp.zeros(2), jnp.array([0.25, 0.5])
    >>> r = deviation(x0, y, ts, lambda t: jnp.diag(jnp.array([0.0, 1.0])))
    >>> bool(jnp.allclose(r, jnp.array([[0.5, 0.0], [1.0, 0.0]]), atol=1e-5))
    True

    S = ½ with the feedback form has r = (√(1−t) − (1−t))(x0 − y):

    >>> r = deviation(x0, y, ts, lambda t: 0.5 * jnp.eye(2))
    >>> bool(jnp.allclose(r[1], (jnp.sqrt(0.5) - 0.5) * x0, rtol=1e-4))
    True
    """
    x0, y = _pair("deviation", x0, y)
    ts = _times("deviation", "ts", ts, x0.dtype)
    _check_increasing("deviation", ts)
    _check_clock(ts, feedback)
    _check_finite("deviation", x0=x0, y=y)
    chord = jnp.ravel(x0 - y)
    tolerances = _tolerances("deviation", rtol, atol, 1e-3 * jnp.max(jnp.abs(chord)), max_steps, solver)
    nodes = -jnp.log1p(-ts) if feedback else ts
    called = callable(S)
    transfer = _CalledTransfer(S, ts[-1], feedback) if called else _SampledTransfer(nodes, _samples(S, ts, x0))
    r = _integrate(
        "deviation",
        _feedback_field if feedback else _constant_field,
        (transfer, chord),
        jnp.zeros_like(chord),
        nodes,
        tolerances,
    )
    return r.reshape(ts.shape + x0.shape)


def cross_entropy_equilibrium(x0: Outputs, y: Outputs) -> Float[Array, "N Q"]:
    """log yₙ + cₙ 1 with cₙ = (1/Q) 1ᵀ(xₙ(0) − log yₙ): where the logits' Euclidean flow ends (2.89–2.104).

    Softmax cross-entropy conserves each 1ᵀxₙ (2.73), and on that hyperplane there is one equilibrium, a global
    minimum whose mean cost is :func:`label_entropy`. It is approached like e^(−s μ/N) with μ between the two smallest
    components of yₙ.

    Parameters
    ----------
    x0, y
        Logits at the start and labels on the probability simplex, both (N, Q), of one floating dtype.

    Returns
    -------
    Array
        (N, Q). Under ``jit``, where labels cannot be looked at, a label with a component 0 gives NaN in that component
        and +∞ in the others.

    Raises
    ------
    ValueError
        A label has a component 0 (one-hot labels: no finite equilibrium, logits grow like log s) or is off
        the simplex; wrong shapes or dtypes.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> x = cross_entropy_equilibrium(jnp.array([[3.0, -1.0]]), jnp.array([[0.25, 0.75]]))
    >>> bool(jnp.allclose(jax.nn.softmax(x), jnp.array([[0.25, 0.75]]))), round(float(x.sum()), 5)
    (True, 2.0)
    """
    x0, y = _pair("cross_entropy_equilibrium", x0, y, per_sample=True)
    _check_targets("cross_entropy_equilibrium", CrossEntropy(), y)
    if not _traced(y) and (np.asarray(y) == 0).any():
        sample = (np.asarray(y) == 0).any(axis=1).argmax()
        raise ValueError(
            f"cross_entropy_equilibrium: y[{sample}] has a component 0, as one-hot labels have: no finite equilibrium, "
            "expected all components positive; smooth the labels with smooth_labels(y, 0.1)"
        )
    log_y = jnp.log(y)
    return log_y + jnp.mean(x0 - log_y, axis=1, keepdims=True)


def euclidean_flow(
    x0: Outputs,
    y: Outputs,
    loss: AbstractLoss,
    ts: ArrayLike,
    *,
    n: ArrayLike | None = None,
    rtol: float | None = None,
    atol: ArrayLike | None = None,
    max_steps: int = 100_000,
    solver: diffrax.AbstractSolver | None = None,
) -> Float[Array, "T N Q"]:
    """xₙ' = −(1/N) ∇ℓ(xₙ, yₙ): gradient flow of the mean loss on free outputs (2.19; logits: 2.69–2.71).

    What the adapted flow does to outputs when its Jacobian has full rank (Lemma 2.2). Samples do not see each other.

    Parameters
    ----------
    x0, y
        Outputs at the start and targets, both (N, Q): a loss acts per sample.
    loss
        The per-sample loss ℓ; the mean over samples is taken here.
    ts
        Gradient-flow times s (T,), strictly increasing from any s ≥ 0; x0 is the state at s = 0.
    n
        N of the formula if it is not the number of rows of x0.
    rtol, atol
        Tolerances of the integration, in the maximum norm over all samples. rtol: 1e-10, in float32 1e-5. atol: 1e-2
        rtol times the largest of |x0| and |y|.
    max_steps
        Limit on integration steps.
    solver
        A diffrax solver; Dopri8 by default. Stability forces about s/(6N) steps times the largest Hessian eigenvalue
        of ℓ: 1 for squared error, ½ for cross-entropy. For a loss where it is large use ``diffrax.Kvaerno5()``.

    Returns
    -------
    Array
        Outputs at ts, (T, N, Q). Takes 13 gradients of ℓ per sample and step. Runge–Kutta steps keep linear invariants:
        1ᵀxₙ of cross-entropy stays to rounding. Differentiable in reverse mode.

    Raises
    ------
    ValueError
        Wrong shapes or dtypes; ts negative, infinite or not increasing; targets outside the loss's domain; not finite
        x0 or y; n or atol not positive; rtol below ten machine epsilons.
    RuntimeError
        More than max_steps steps, or a step size that shrank to rounding because ∇ℓ is not finite or not smooth.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from chordflow.losses import SquaredError
    >>> x0, y, ts = jnp.array([[3.0], [1.0]]), jnp.zeros((2, 1)), jnp.array([0.0, 4.0])
    >>> x = euclidean_flow(x0, y, SquaredError(), ts)
    >>> bool(jnp.allclose(x, exponential_decay(x0, y, ts, n=2), atol=1e-4))
    True
    """
    if not isinstance(loss, AbstractLoss):
        raise ValueError(
            f"euclidean_flow: loss must be a chordflow loss, as CrossEntropy() or Loss(fn), got {type(loss).__name__}"
        )
    x0, y = _pair("euclidean_flow", x0, y, per_sample=True)
    ts = _times("euclidean_flow", "ts", ts, x0.dtype)
    _check_increasing("euclidean_flow", ts)
    _check_finite("euclidean_flow", x0=x0, y=y, ts=ts)
    _check_targets("euclidean_flow", loss, y)
    scale = jnp.maximum(jnp.max(jnp.abs(x0)), jnp.max(jnp.abs(y)))
    return _integrate(
        "euclidean_flow",
        _euclidean_field,
        (loss, y, _sample_count("euclidean_flow", x0, n)),
        x0,
        ts,
        _tolerances("euclidean_flow", rtol, atol, 1e-2 * scale, max_steps, solver),
    )


def frozen_kernel(
    x0: Outputs, y: Outputs, s: ArrayLike, G0: Matrices, *, n: ArrayLike | None = None
) -> Float[Array, "..."]:
    """y + e^(−G0 s/N)(x0 − y): the standard flow with squared error if its kernel never changed.

    The standard flow moves outputs with x' = −DDᵀ(x − y)/N (2.17, 2.47), which has no closed form because D moves too;
    with DDᵀ frozen at the start it has this one. Kernel drift is what makes the two differ.

    Parameters
    ----------
    x0, y
        Outputs at the start and labels, both (N, Q) or both (n,), of one floating dtype.
    s
        Gradient-flow time, scalar or (T,). Infinity gives the limit: y on range G0, x0 on its complement.
    G0
        Gram matrix DDᵀ at the start, symmetric positive semidefinite, (n, n) in the row order of x0 or (N, Q, N, Q).
        Eigenvalues below n machine epsilons times the largest are rounding of 0: those directions stay where they are.
        What is further from symmetric, or more negative, than √epsilon of the largest entry is an error; NaN under jit.
    n
        N, the number of samples; the rows of x0 by default. Must be given if x0 is flat.

    Returns
    -------
    Array
        The shape of x0 for one time, (T, ...) for T times. One eigendecomposition whatever T, about 9 n³ operations and
        2 n² numbers, then 2 n² operations per time. Not differentiable in G0 where eigenvalues coincide.

    Raises
    ------
    ValueError
        Wrong shapes or dtypes; G0 not finite, not symmetric or with a negative eigenvalue; n missing or not positive.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> x0, y, G0 = jnp.array([[1.0], [1.0]]), jnp.zeros((2, 1)), jnp.diag(jnp.array([2.0, 0.0]))
    >>> x = frozen_kernel(x0, y, jnp.log(4.0), G0)
    >>> bool(jnp.allclose(x, jnp.array([[0.25], [1.0]])))
    True
    """
    x0, y = _pair("frozen_kernel", x0, y)
    s = _times("frozen_kernel", "s", s, x0.dtype)
    values, vectors = _kernel_spectrum("frozen_kernel", G0, x0)
    exponents = _exponents(values, s, _sample_count("frozen_kernel", x0, n))
    residual = jnp.exp(-exponents) * jnp.matmul(jnp.ravel(x0 - y), vectors, precision=_EXACT).reshape(1, -1)
    return _plus(y, jnp.matmul(residual, vectors.T, precision=_EXACT), s)


def frozen_kernel_new(
    x0: Outputs,
    y: Outputs,
    s: ArrayLike,
    G0: Matrices,
    f0: Outputs,
    kernel_new: Matrices,
    *,
    n: ArrayLike | None = None,
) -> Float[Array, "..."]:
    """f0 + K* G0⁺(1 − e^(−G0 s/N))(y − x0): the frozen-kernel prediction at inputs that were not trained on.

    A function beside :func:`frozen_kernel`, so that what comes back does not depend on which arguments are given.
    With the training inputs themselves as new inputs, f0 = x0 and K* = G0, the two agree.

    Parameters
    ----------
    x0, y, s, G0, n
        As in :func:`frozen_kernel`. G0⁺(1 − e^(−λs/N)) is computed as (s/N) φ₁(λs/N), φ₁(z) = (1 − e^(−z))/z and
        φ₁(0) = 1, so a zero eigenvalue needs no decision at finite s; at s = ∞ it is the pseudoinverse.
    f0
        Outputs at the new inputs at the start, (M, Q) or flat (m,), of the dtype of x0.
    kernel_new
        K* = D*Dᵀ between new and training inputs at the start, (m, n) or (M, Q, N, Q).

    Returns
    -------
    Array
        The shape of f0 for one time, (T, ...) for T times. Costs as :func:`frozen_kernel`, and 2 m n per time.

    Raises
    ------
    ValueError
        As in :func:`frozen_kernel`; shapes or dtypes of f0 and kernel_new do not fit.

    Examples
    --------
    A new input that is the first training input twice, and one that is unrelated to both:

    >>> import jax.numpy as jnp
    >>> x0, y, G0 = jnp.zeros((2, 1)), jnp.ones((2, 1)), jnp.diag(jnp.array([2.0, 0.0]))
    >>> f = frozen_kernel_new(x0, y, jnp.inf, G0, jnp.zeros((2, 1)), jnp.array([[4.0, 0.0], [0.0, 0.0]]))
    >>> f.ravel().tolist()
    [2.0, 0.0]
    """
    x0, y = _pair("frozen_kernel_new", x0, y)
    f0 = jnp.asarray(f0)
    _check_dtype("frozen_kernel_new", "f0", f0, x0)
    s = _times("frozen_kernel_new", "s", s, x0.dtype)
    count = _sample_count("frozen_kernel_new", x0, n)
    K = _as_matrix("frozen_kernel_new", "kernel_new", kernel_new, f0, x0)
    values, vectors = _kernel_spectrum("frozen_kernel_new", G0, x0)
    exponents = _exponents(values, s, count)
    # (s/N) φ₁(λs/N); for λ = 0 its limit s/N, and 0 at s = ∞, because K* vanishes on the null space of G0.
    at_zero = jnp.where(jnp.isfinite(s), s / count, 0).reshape(-1, 1)
    positive = (values != 0).reshape(1, -1)
    gain = jnp.where(positive, -jnp.expm1(-exponents) / jnp.where(positive, values.reshape(1, -1), 1), at_zero)
    moved = gain * jnp.matmul(jnp.ravel(y - x0), vectors, precision=_EXACT).reshape(1, -1)
    change = jnp.matmul(moved, jnp.matmul(K, vectors, precision=_EXACT).T, precision=_EXACT)
    return _plus(f0, change, s)


def hyperplane_drift(x: Outputs, x0: Outputs) -> Float[Array, "..."]:
    """max over samples of |1ᵀxₙ − 1ᵀxₙ(0)|, which the Euclidean flow of cross-entropy keeps at 0 (2.72–2.74).

    Parameters
    ----------
    x
        Logits, (N, Q) or along a path (T, N, Q).
    x0
        Logits at the start, (N, Q), of the same dtype.

    Returns
    -------
    Array
        A scalar, or (T,) along a path, in the units of the logits. One pass over x.

    Raises
    ------
    ValueError
        Shapes or dtypes do not fit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> float(hyperplane_drift(jnp.array([[1.0, 2.0], [0.0, 0.5]]), jnp.array([[2.0, 1.0], [0.0, 0.0]])))
    0.5
    """
    x, x0 = jnp.asarray(x), jnp.asarray(x0)
    if x0.ndim != 2 or x.ndim not in (2, 3) or x.shape[-2:] != x0.shape or x0.size == 0:
        raise ValueError(
            f"hyperplane_drift: x must be (N, Q) or (T, N, Q) with x0 (N, Q), got {x.shape} and {x0.shape}"
        )
    _check_dtype("hyperplane_drift", "x", x, x0)
    # Differences first: the sums of large logits would cancel.
    return jnp.max(jnp.abs(jnp.sum(x - x0.reshape((1,) * (x.ndim - 2) + x0.shape), axis=-1)), axis=-1)


def label_entropy(y: Outputs) -> Float[Array, ""]:
    """−(1/N) Σₙ yₙᵀ log yₙ with 0 log 0 = 0: the least value of the mean cross-entropy (2.91).

    Parameters
    ----------
    y
        Labels on the probability simplex, (N, Q).

    Returns
    -------
    Array
        Scalar, in nats; 0 for one-hot labels, whose infimum is not reached. One pass over y.

    Raises
    ------
    ValueError
        y is not (N, Q), or off the simplex.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> round(float(label_entropy(jnp.array([[0.5, 0.5], [1.0, 0.0]]))), 4)
    0.3466
    """
    y, _ = _pair("label_entropy", y, y, per_sample=True)
    _check_targets("label_entropy", CrossEntropy(), y)
    return -jnp.sum(xlogy(y, y)) / y.shape[0]


def _outer(weight: Array, x: Array) -> Array:
    """Weight () or (T,) times x, as (...) or (T, ...)."""
    return weight.reshape(weight.shape + (1,) * x.ndim) * x.reshape((1,) * weight.ndim + x.shape)


# What is integrated: the right-hand sides, and S along the way.


class _CalledTransfer(eqx.Module):
    """S from the user's callable, at the clock time that belongs to the variable of integration."""

    S: Callable[[Array], Any]
    t_end: Array
    feedback: bool = eqx.field(static=True)

    def __call__(self, z: Array, v: Array) -> Array:
        t = -jnp.expm1(-z) if self.feedback else z
        # The way t → σ → t ends one rounding off; a callable that is defined on a trajectory only must not see that.
        S: Any = self.S(jnp.clip(t, 0, self.t_end))
        apply = getattr(S, "mv", S)
        if callable(apply):
            Sv: Any = apply(v)
        else:
            Sv = jnp.matmul(_as_matrix("deviation", "S(t)", S, v, v), v, precision=_EXACT)
        if Sv.shape != v.shape or Sv.dtype != v.dtype:
            raise ValueError(f"deviation: S(t) must map {v.shape} {v.dtype} to the same, got {Sv.shape} {Sv.dtype}")
        return Sv


class _SampledTransfer(eqx.Module):
    """S as the polynomial through the (up to) four nearest samples, by Lagrange's weights."""

    nodes: Array  # (T,)
    matrices: Array  # (T, n, n)

    def __call__(self, z: Array, v: Array) -> Array:
        num_samples = self.nodes.shape[0]
        num_points = min(4, num_samples)
        # Two samples on either side where there are two.
        first = jnp.clip(jnp.searchsorted(self.nodes, z, side="right") - 2, 0, num_samples - num_points)
        near = jax.lax.dynamic_slice_in_dim(self.nodes, first, num_points)
        self_pair = jnp.eye(num_points, dtype=bool)
        gaps = jnp.where(self_pair, 1, near[:, None] - near[None, :])
        weights = jnp.prod(jnp.where(self_pair, 1, (z - near)[None, :] / gaps), axis=1)
        S = jax.lax.dynamic_slice_in_dim(self.matrices, first, num_points)
        return jnp.einsum("j,jab,b->a", weights, S, v, precision=_EXACT)


def _feedback_field(t: Array, y: Array, args: tuple[Callable[[Array, Array], Array], Array]) -> Array:
    """−S r + (1−t)(1 − S)(x0 − y) in σ, with one product: S acts on r + (1−t)(x0 − y), which is x − y."""
    transfer, chord = args
    remaining = jnp.exp(-t) * chord
    return remaining - transfer(t, y + remaining)


def _constant_field(t: Array, y: Array, args: tuple[Callable[[Array, Array], Array], Array]) -> Array:
    """(1 − S)(x0 − y) in t."""
    del y
    transfer, chord = args
    return chord - transfer(t, chord)


def _euclidean_field(t: Array, y: Array, args: tuple[AbstractLoss, Array, Array]) -> Array:
    """−∇ℓ/N per sample."""
    del t
    loss, targets, count = args
    return -jax.vmap(loss.gradient)(y, targets) / count


class _Tolerances(eqx.Module):
    """How exactly and with which method to integrate."""

    rtol: float
    atol: Array
    max_steps: int = eqx.field(static=True)
    solver: diffrax.AbstractSolver


def _integrate(caller: str, field: Callable[..., Array], args: Any, start: Array, ts: Array, how: _Tolerances) -> Array:
    """Integrate ``field`` from ``start`` at 0 and return the states at ``ts``; an error if that does not succeed."""
    states, succeeded, at_limit = _solve(field, args, start, ts, how)
    states = _raise_if(
        at_limit,
        f"{caller}: not done after max_steps={how.max_steps} steps; raise it, loosen rtol, or give an implicit solver",
        states,
    )
    return _raise_if(
        ~succeeded,
        f"{caller}: the step size shrank to rounding: the right-hand side is not finite, not smooth or too stiff here",
        states,
    )


def _raise_if(failed: Array, message: str, states: Array) -> Array:
    if _traced(failed):
        return eqx.error_if(states, failed, message)
    if bool(failed):
        raise RuntimeError(message)
    return states


@eqx.filter_jit
def _solve(
    field: Callable[..., Array], args: Any, start: Array, ts: Array, how: _Tolerances
) -> tuple[Array, Array, Array]:
    """States at ``ts``, whether all went well, and whether the step limit was the reason if not."""
    pid = diffrax.PIDController(
        rtol=how.rtol,
        atol=how.atol,
        norm=lambda x: jnp.max(jnp.abs(x)),  # the error of a sample must not depend on how many others there are
        # A NaN would shrink the step until max_steps. Far below rounding, so that a step which ends next to one of ts
        # is not taken for that.
        dtmin=1e-6 * float(jnp.finfo(ts.dtype).eps) * ts[-1],
        force_dtmin=False,
    )
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),  # pyright: ignore[reportArgumentType]
        how.solver,
        t0=jnp.zeros((), ts.dtype),
        t1=ts[-1],
        dt0=None,
        y0=start,
        args=args,
        saveat=diffrax.SaveAt(ts=ts),
        # Steps end on ts: the interpolant between steps was measured 10 to 1000 times less accurate than the steps, and
        # sampled S has kinks there.
        stepsize_controller=diffrax.ClipStepSizeController(pid, step_ts=ts),
        max_steps=how.max_steps,
        throw=False,
    )
    assert solution.ys is not None
    at_limit = solution.result == diffrax.RESULTS.max_steps_reached
    return solution.ys, solution.result == diffrax.RESULTS.successful, at_limit


# The spectrum of a frozen kernel.


def _kernel_spectrum(caller: str, G0: Matrices, x0: Array) -> tuple[Array, Array]:
    """Eigenvalues (n,) of G0, those at rounding level set to 0, and eigenvectors (n, n)."""
    G = _as_matrix(caller, "G0", G0, x0, x0)
    _check_finite(caller, G0=G)
    eps = float(jnp.finfo(G.dtype).eps)
    values, vectors = jnp.linalg.eigh(G)
    # eigh would symmetrise anything: what is asymmetric or indefinite far beyond rounding is no Gram matrix.
    slack = eps**0.5 * jnp.max(jnp.abs(G))
    asymmetry = jnp.max(jnp.abs(G - G.T))
    is_gram = (asymmetry <= slack) & (values[0] >= -slack)
    if not (_traced(is_gram) or bool(is_gram)):
        raise ValueError(
            f"{caller}: G0 must be symmetric positive semidefinite, as DDᵀ is, got |G0 − G0ᵀ| up to "
            f"{float(asymmetry):.3g} and the smallest eigenvalue {float(values[0]):.3g}"
        )
    rounding = G.shape[0] * eps * jnp.max(jnp.abs(values))
    return jnp.where(is_gram, jnp.where(values <= rounding, 0, values), jnp.nan), vectors


def _exponents(values: Array, s: Array, count: Array) -> Array:
    """λ s/N as (T, n), 0 for λ = 0 also at s = ∞."""
    lam = values.reshape(1, -1)
    return jnp.where(lam == 0, 0, lam * (s / count).reshape(-1, 1))


def _plus(x: Array, changes: Array, s: Array) -> Array:
    """x plus each row of changes (1 or T, n), as x if s is one time."""
    return (x.ravel().reshape(1, -1) + changes).reshape(s.shape + x.shape)


# Checks. Shapes and dtypes always; values only where they are known, that is outside jit.


def _traced(*arrays: Any) -> bool:
    return any(isinstance(array, Tracer) for array in arrays)


def _pair(caller: str, x0: Outputs, y: Outputs, *, per_sample: bool = False) -> tuple[Array, Array]:
    x0, y = jnp.asarray(x0), jnp.asarray(y)
    shapes = "(N, Q): one row per sample" if per_sample else "(N, Q) or (n,)"
    if x0.shape != y.shape or x0.ndim not in ((2,) if per_sample else (1, 2)) or x0.size == 0:
        raise ValueError(f"{caller}: outputs and labels must be non-empty, {shapes}, got {x0.shape} and {y.shape}")
    _check_dtype(caller, "y", y, x0)
    return x0, y


def _check_dtype(caller: str, name: str, array: Array, x0: Array) -> None:
    if array.dtype != x0.dtype or not jnp.issubdtype(x0.dtype, jnp.floating):
        raise ValueError(
            f"{caller}: x0 and {name} must have one floating dtype, got {x0.dtype} and {array.dtype}; use .astype"
        )


def _times(caller: str, name: str, t: ArrayLike, dtype: Any) -> Array:
    times = jnp.asarray(t, dtype)
    if times.ndim > 1:
        raise ValueError(f"{caller}: {name} must be a scalar or have shape (T,), got shape {times.shape}")
    return times


def _sample_count(caller: str, x0: Array, n: ArrayLike | None) -> Array:
    if n is None and x0.ndim == 1:
        raise ValueError(f"{caller}: flat outputs {x0.shape} do not tell the number of samples; give n or pass (N, Q)")
    count = x0.shape[0] if n is None else n
    if np.ndim(count) != 0 or not (_traced(count) or 0 < float(np.asarray(count)) < np.inf):
        raise ValueError(f"{caller}: n, the number of samples, must be one positive number, got {n}")
    return jnp.asarray(count, x0.dtype)


def _check_increasing(caller: str, ts: Array) -> None:
    if ts.ndim != 1 or ts.size == 0:
        raise ValueError(f"{caller}: ts must be non-empty with shape (T,), got shape {ts.shape}")
    if not _traced(ts) and not (np.asarray(ts)[0] >= 0 and (np.diff(np.asarray(ts)) > 0).all()):
        raise ValueError(f"{caller}: ts must increase strictly from ≥ 0, got {_shown(ts)}; sort them, drop repeats")


def _check_clock(ts: Array, feedback: bool) -> None:
    if _traced(ts):
        return
    last = float(np.asarray(ts)[-1])
    if feedback and not last < 1:
        raise ValueError(f"deviation: with feedback ts must be in [0, 1), got {last}; end before 1")
    if not last <= 1:
        raise ValueError(f"deviation: ts must be in [0, 1], got {last}; s is mapped by t = 1 − exp(−s/N)")


def _check_finite(caller: str, **arrays: Array) -> None:
    for name, array in arrays.items():
        if not _traced(array) and not np.isfinite(np.asarray(array)).all():
            raise ValueError(f"{caller}: {name} must be finite, got NaN or infinity in it")


def _tolerances(
    caller: str,
    rtol: float | None,
    atol: ArrayLike | None,
    scale: Array,
    max_steps: int,
    solver: diffrax.AbstractSolver | None,
) -> _Tolerances:
    """The tolerances given, or the defaults: rtol of the dtype and rtol times ``scale``."""
    if rtol is None:
        rtol = 1e-10 if scale.dtype == np.float64 else 1e-5
    least = 10 * float(jnp.finfo(scale.dtype).eps)
    if not least <= rtol < 1:
        raise ValueError(
            f"{caller}: rtol must be in [{least:.1e}, 1) in {scale.dtype}, got {rtol}; for less use float64"
        )
    # tiny: with scale 0, that is a start at the labels, the error of the first step would be 0/0.
    atol = jnp.maximum(rtol * scale, jnp.finfo(scale.dtype).tiny) if atol is None else jnp.asarray(atol, scale.dtype)
    if not (_traced(atol) or float(atol) > 0):
        raise ValueError(f"{caller}: atol must be positive, got {float(atol)}")
    return _Tolerances(rtol, atol, max_steps, diffrax.Dopri8() if solver is None else solver)


def _check_targets(caller: str, loss: AbstractLoss, y: Array) -> None:
    invalid = jax.vmap(loss.invalid_target)(y)
    if not _traced(invalid) and np.asarray(invalid).any():
        sample = np.asarray(invalid).argmax()
        raise ValueError(f"{caller}: y must hold {loss.target_domain}, got y[{sample}] = {_shown(y[sample])}")


def _samples(S: Matrices, ts: Array, x0: Array) -> Array:
    """S sampled at ts as (T, n, n)."""
    S = jnp.asarray(S)
    n = x0.size
    if S.shape not in ((ts.size, n, n), (*ts.shape, *x0.shape, *x0.shape)):
        raise ValueError(f"deviation: S must be callable or of shape (T, n, n) = {(ts.size, n, n)}, got {S.shape}")
    _check_dtype("deviation", "S", S, x0)
    _check_finite("deviation", S=S)
    if not _traced(ts) and np.asarray(ts)[0] != 0:
        raise ValueError(
            f"deviation: samples of S must begin at t = 0, as the integral does, got ts {_shown(ts)}; add 0"
        )
    return S.reshape(ts.size, n, n)


def _as_matrix(caller: str, name: str, G: Matrices, rows: Array, columns: Array) -> Array:
    """G of shape (m, n) or (M, Q, N, Q) as (m, n)."""
    G = jnp.asarray(G)
    flat = (rows.size, columns.size)
    if G.shape not in (flat, (*rows.shape, *columns.shape)):
        raise ValueError(f"{caller}: {name} must have shape {flat} to fit the outputs, got {G.shape}")
    _check_dtype(caller, name, G, columns)
    return G.reshape(flat)


def _shown(values: Array) -> str:
    return np.array2string(np.asarray(values).ravel(), threshold=6, precision=4).replace("\n", "")
