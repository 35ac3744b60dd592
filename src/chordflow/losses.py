"""Losses as geometry of output space: value, gradient, Hessian and the points where they are least.

Everything here is per sample: ``x`` and ``y`` have shape ``(Q,)``. Means, sample weights and the sum over terms
live in :class:`chordflow.Problem` and nowhere else.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy
from jaxtyping import Array, Float

Vector = Float[Array, " q"]
Scalar = Float[Array, ""]
Matrix = Float[Array, "q q"]
Labels = TypeVar("Labels", Array, np.ndarray)


class AbstractLoss(eqx.Module):
    """A twice differentiable per-sample cost ℓ(x, y) of outputs ``x`` (Q,) and a target ``y`` (Q,).

    The derivatives default to automatic ones; subclasses override them with closed forms. All methods are
    pure, jit-able and keep the dtype of ``x``.
    """

    @abstractmethod
    def value(self, x: Vector, y: Vector) -> Scalar:
        """ℓ(x, y)."""

    def gradient(self, x: Vector, y: Vector) -> Vector:
        """∇ₓℓ(x, y)."""
        return jax.grad(self.value)(x, y)

    def hessian(self, x: Vector, y: Vector) -> Matrix:
        """∇ₓ²ℓ(x, y), symmetric."""
        return jax.hessian(self.value)(x, y)

    def hessian_mv(self, x: Vector, y: Vector, v: Vector) -> Vector:
        """H v without the matrix; two gradient evaluations."""
        return jax.jvp(lambda x: self.gradient(x, y), (x,), (v,))[1]

    def hessian_factor(self, x: Vector, y: Vector) -> Matrix:
        """A factor B with B Bᵀ = H, for losses convex in ``x``.

        Eigenvalues that are negative by more than rounding (Q · machine epsilon · |H|) have no real factor:
        their columns of B are then NaN, and with them B Bᵀ: never a silently clipped matrix.
        """
        values, vectors = jnp.linalg.eigh(self.hessian(x, y))
        rounding = x.size * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(values), initial=0.0)
        values = jnp.where(jnp.abs(values) <= rounding, 0.0, values)
        return vectors * jnp.sqrt(values)[None, :]

    def minimum(self, y: Vector) -> Scalar | None:
        """Return inf over x of ℓ(x, y) in closed form, or None where none is known."""
        del y
        return None

    def equilibrium(self, x0: Vector, y: Vector) -> Vector | None:
        """Limit of x' = −∇ₓℓ started at ``x0`` in closed form, or None where none is known."""
        del x0, y
        return None

    def invalid_target(self, y: Vector) -> Array:
        """Boolean (): whether the target is outside the loss's domain (never, by default)."""
        del y
        return jnp.asarray(False)

    target_domain: str = eqx.field(default="any finite numbers", static=True, init=False)


class SquaredError(AbstractLoss):
    """ℓ(x, y) = ½ |x − y|²; with the mean over samples it is the paper's 1/(2N)|x − y|² (2.47).

    The ½ is part of the loss; scikit-learn's ``mean_squared_error`` has none and also divides by Q.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> float(SquaredError().value(jnp.array([3.0, 0.0]), jnp.array([0.0, 4.0])))
    12.5
    """

    def value(self, x: Vector, y: Vector) -> Scalar:
        """½ |x − y|²."""
        return 0.5 * jnp.sum((x - y) ** 2)

    def gradient(self, x: Vector, y: Vector) -> Vector:
        """x − y."""
        return x - y

    def hessian(self, x: Vector, y: Vector) -> Matrix:
        """The identity."""
        del y
        return jnp.eye(x.size, dtype=x.dtype)

    def hessian_mv(self, x: Vector, y: Vector, v: Vector) -> Vector:
        """v."""
        del x, y
        return v

    def hessian_factor(self, x: Vector, y: Vector) -> Matrix:
        """The identity."""
        return self.hessian(x, y)

    def minimum(self, y: Vector) -> Scalar:
        """0, reached at x = y."""
        return jnp.zeros((), y.dtype)

    def equilibrium(self, x0: Vector, y: Vector) -> Vector:
        """y, whatever the start."""
        del x0
        return y


class CrossEntropy(AbstractLoss):
    """ℓ(x, y) = −yᵀ log softmax(x), logits ``x`` and labels ``y`` on the probability simplex (2.66–2.67).

    With p = softmax(x): gradient p − y (2.69), Hessian diag(p) − ppᵀ (2.75), whose null vector is 1 and which is
    positive on 1^⊥ (Lemma 2.6). Adding a constant to all logits changes nothing, so 1ᵀx is conserved by the
    flow (2.73). Positive labels have one equilibrium on that hyperplane, log y + c 1 with
    c = (1/Q) 1ᵀ(x₀ − log y) (2.89–2.104), of cost −yᵀ log y: the label entropy, not 0. One-hot labels have none: logits
    grow without bound, and :meth:`equilibrium` is not finite there; see :func:`chordflow.losses.smooth_labels`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> loss, y = CrossEntropy(), jnp.array([0.25, 0.75])
    >>> x = loss.equilibrium(jnp.array([3.0, -1.0]), y)
    >>> bool(jnp.allclose(loss.value(x, y), loss.minimum(y)) & jnp.allclose(x.sum(), 2.0))
    True
    """

    target_domain: str = eqx.field(
        default="labels on the probability simplex (non-negative, summing to 1)", static=True, init=False
    )

    def value(self, x: Vector, y: Vector) -> Scalar:
        """−yᵀ log softmax(x)."""
        return -jnp.sum(y * jax.nn.log_softmax(x))

    def gradient(self, x: Vector, y: Vector) -> Vector:
        """softmax(x) 1ᵀy − y, which is p − y on the simplex (2.69)."""
        return jax.nn.softmax(x) * jnp.sum(y) - y

    def hessian(self, x: Vector, y: Vector) -> Matrix:
        """1ᵀy (diag(p) − ppᵀ) (2.75)."""
        p = jax.nn.softmax(x)
        return jnp.sum(y) * (jnp.diag(p) - jnp.outer(p, p))

    def hessian_mv(self, x: Vector, y: Vector, v: Vector) -> Vector:
        """1ᵀy (p ∘ v − p pᵀv)."""
        p = jax.nn.softmax(x)
        return jnp.sum(y) * (p * v - p * jnp.dot(p, v))

    def hessian_factor(self, x: Vector, y: Vector) -> Matrix:
        """√(1ᵀy) (diag(√p) − p √pᵀ); B Bᵀ = H because √pᵀ√p = 1."""
        p = jax.nn.softmax(x)
        root = jnp.sqrt(p)
        return jnp.sqrt(jnp.sum(y)) * (jnp.diag(root) - jnp.outer(p, root))

    def minimum(self, y: Vector) -> Scalar:
        """The label entropy −yᵀ log y (0 log 0 = 0), an infimum that one-hot labels do not reach."""
        return -jnp.sum(xlogy(y, y))

    def equilibrium(self, x0: Vector, y: Vector) -> Vector:
        """log y + c 1 with 1ᵀx conserved (2.95–2.104); NaN where a label component is 0, and +∞ beside it."""
        log_y = jnp.log(y)
        return log_y + jnp.mean(x0 - log_y)

    def invalid_target(self, y: Vector) -> Array:
        """Whether y has a negative or NaN component or does not sum to 1 within 100 machine epsilons · Q."""
        slack = 100 * y.size * jnp.finfo(y.dtype).eps
        return ~(jnp.all(y >= 0) & (jnp.abs(jnp.sum(y) - 1) <= slack))


class Loss(AbstractLoss):
    """Any per-sample loss from a function ``fn(x, y) -> scalar``, twice differentiable in ``x``.

    Parameters
    ----------
    fn
        ``fn(x, y)`` with x, y of shape (Q,), returning a scalar. Must be pure; ½ and the like are its own.
    minimum
        Optional ``minimum(y) -> scalar``: inf over x of ℓ(x, y). Targets of a run are measured on C − C_min, which
        needs it.
    equilibrium
        Optional ``equilibrium(x0, y) -> (Q,)``: where x' = −∇ₓℓ ends. ``straight()`` needs it.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> huber = Loss(lambda x, y: jnp.sum(jnp.sqrt(1 + (x - y) ** 2) - 1), equilibrium=lambda x0, y: y)
    >>> huber.hessian(jnp.zeros(2), jnp.zeros(2)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    fn: Callable[[Vector, Vector], Scalar] = eqx.field(static=True)
    minimum_fn: Callable[[Vector], Scalar] | None = eqx.field(static=True)
    equilibrium_fn: Callable[[Vector, Vector], Vector] | None = eqx.field(static=True)

    def __init__(
        self,
        fn: Callable[[Vector, Vector], Scalar],
        *,
        minimum: Callable[[Vector], Scalar] | None = None,
        equilibrium: Callable[[Vector, Vector], Vector] | None = None,
    ):
        if not callable(fn):
            raise ValueError(f"Loss: fn must be a function fn(x, y) -> scalar, got {type(fn).__name__}")
        self.fn, self.minimum_fn, self.equilibrium_fn = fn, minimum, equilibrium

    def value(self, x: Vector, y: Vector) -> Scalar:
        """``fn(x, y)``; a ValueError if that is no scalar."""
        value = self.fn(x, y)
        if jnp.shape(value) != ():
            raise ValueError(f"Loss: fn must return a scalar, got shape {jnp.shape(value)}; sum over the outputs in fn")
        return value

    def minimum(self, y: Vector) -> Scalar | None:
        """The given ``minimum(y)``, or None."""
        return None if self.minimum_fn is None else self.minimum_fn(y)

    def equilibrium(self, x0: Vector, y: Vector) -> Vector | None:
        """The given ``equilibrium(x0, y)``, or None."""
        return None if self.equilibrium_fn is None else self.equilibrium_fn(x0, y)


def smooth_labels(y: Float[Labels, "*n q"], amount: float) -> Float[Labels, "*n q"]:
    """(1 − a) y + a/Q: label smoothing, which gives cross-entropy a finite equilibrium for a in (0, 1].

    Parameters
    ----------
    y
        Labels on the simplex, shape (..., Q), of JAX or NumPy; what comes back is of the same kind.
    amount
        a in [0, 1]; the smallest component of a smoothed one-hot label is a/Q, and the flow reaches its end at
        a rate between the two smallest components: slow for small a.

    Raises
    ------
    ValueError
        If ``amount`` is outside [0, 1].
    """
    if not 0 <= amount <= 1:
        raise ValueError(f"smooth_labels: amount must be in [0, 1], got {amount}")
    amount = float(amount)  # a NumPy scalar would bring its own dtype
    smoothed: Any = (1 - amount) * y + amount / y.shape[-1]
    return smoothed
