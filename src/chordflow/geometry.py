"""Geometry of a flow at a point and along a path: spectra, reachability, metrics, kernel drift, straightness.

All of it in the inner product W of the problem: singular values, S and metrics belong to W^½D and W^½x, which are
D and x for one unweighted term.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from chordflow.filters import AbstractFilter
from chordflow.jacobian import OutputsLike
from chordflow.problem import Problem, is_concrete
from chordflow.solve import SVD, AbstractFactor, AbstractMethod, RankPolicy, WeightedJacobian, default_method

Scalar = Float[Array, ""]
Flat = Float[Array, " n"]


@eqx.filter_jit
def spectrum(problem: Problem, params: PyTree) -> Float[Array, " k"]:
    """Singular values of W^½D, descending, k = min(n, K); one dense SVD without vectors."""
    return WeightedJacobian.at(problem, params).sigma()


@eqx.filter_jit
def spectrum_from_gram(problem: Problem, params: PyTree) -> Float[Array, " k"]:
    """As :func:`spectrum` without forming D, at a third of the work or less; NaN where a singular value is not seen.

    A Gram matrix squares the condition number: σ below √(m · machine epsilon) σ_max, m = min(n, K), drown in rounding.
    """
    return WeightedJacobian.at(problem, params).sigma_from_gram()


@eqx.filter_jit
def sigma_max(problem: Problem, params: PyTree) -> Scalar:
    """The largest singular value of W^½D, whose ε-th part is the damping; one eigendecomposition of min(n, K)."""
    return WeightedJacobian.at(problem, params).sigma_max()


def rank_policy(problem: Problem, params: PyTree, filter: AbstractFilter) -> RankPolicy:  # noqa: A002
    """The rank policy of a run that starts at ``params`` with ``filter``."""
    scale = sigma_max(problem, params)
    return RankPolicy.of(filter, scale, float(jnp.finfo(scale.dtype).eps))


def effective_dimension(problem: Problem, params: PyTree, policy: RankPolicy) -> Scalar:
    """Σ σ²/(σ²+λ) at ``params``, with the λ of ``policy``."""
    return policy.effective_dimension(spectrum(problem, params))


def above_rounding(
    sigma: Float[Array | np.ndarray, "*t k"], shape: tuple[int, int], *, factor: float = 1.0
) -> Bool[Array | np.ndarray, "*t k"]:
    """Which singular values of an (n, K) matrix a decomposition of it sees: σ > max(n, K) · machine epsilon · σ_max.

    The rule of ``numpy.linalg.matrix_rank``: what is below may be 0. Rank in the sense of a tolerance of one's own is
    the rank policy's. ``factor`` multiplies the floor.
    """
    return sigma > sigma[..., :1] * (factor * max(shape) * float(jnp.finfo(sigma.dtype).eps))


def unreachable_fraction(problem: Problem, params: PyTree, velocity: OutputsLike, policy: RankPolicy) -> Scalar:
    """|u − S_λu|_W / |u|_W with the damped S_λ of the rank policy: how much of a velocity the parameters cannot make.

    0 for u = 0. Measured with the damped filter whatever the flow's own, because S of the standard flow has
    eigenvalues far above 1. One factorisation: that of a run, or a singular value decomposition where ε is below what a
    Gram matrix sees, or traced.
    """
    return _unreachable_fraction(problem, params, velocity, policy, _method(problem, params, policy))


def unreachable_velocity(problem: Problem, params: PyTree, velocity: OutputsLike, policy: RankPolicy) -> Flat:
    """W^½(u − S_λu) (n,), the part of a velocity that the parameters cannot make; S and cost as for the fraction.

    Along a flow with the constant velocity u, its integral over time is how far the run has left the chord (2.58).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, chordflow as cf
    >>> jax.config.update("jax_enable_x64", True)
    >>> problem = cf.Problem(lambda w, z: w * z, jnp.ones((2, 1)), jnp.zeros((2, 1)))
    >>> policy = cf.geometry.rank_policy(problem, jnp.ones(1), cf.filters.Damped())
    >>> missing = cf.geometry.unreachable_velocity(problem, jnp.ones(1), jnp.array([[1.0], [0.0]]), policy)
    >>> [round(float(part), 9) for part in missing]  # two samples with one output between them move together
    [0.5, -0.5]
    """
    return _unreachable_velocity(problem, params, velocity, policy, _method(problem, params, policy))


def _method(problem: Problem, params: PyTree, policy: RankPolicy) -> AbstractMethod:
    """The factorisation of a run, or the one that sees any ε where that does not."""
    method = default_method(policy.damped, problem.jacobian(params).shape)
    sees = is_concrete(policy.eps) and float(policy.eps) >= method.floor(policy.eps.dtype)
    return method if sees else SVD()


@eqx.filter_jit
def _unreachable_velocity(
    problem: Problem, params: PyTree, velocity: OutputsLike, policy: RankPolicy, method: AbstractMethod
) -> Flat:
    A = WeightedJacobian.at(problem, params)
    return _residual(A, A.root * problem.flatten(velocity), method.factorise(A, policy.lam), policy.passes)


@eqx.filter_jit
def _unreachable_fraction(
    problem: Problem, params: PyTree, velocity: OutputsLike, policy: RankPolicy, method: AbstractMethod
) -> Scalar:
    A = WeightedJacobian.at(problem, params)
    return relative_residual(A, A.root * problem.flatten(velocity), method.factorise(A, policy.lam), policy.passes)


def _residual(A: WeightedJacobian, v: Flat, factor: AbstractFactor, passes: int) -> Flat:
    """V − S_λv for v = W^½u, by a given factor of A."""
    return v - A.mv(factor.damped(v, passes))


def relative_residual(A: WeightedJacobian, v: Flat, factor: AbstractFactor, passes: int) -> Scalar:
    """|v − S_λv|/|v| for v = W^½u, by a given factor of A; 0 for v = 0."""
    size = jnp.linalg.norm(v)
    return jnp.where(size > 0, jnp.linalg.norm(_residual(A, v, factor, passes)) / jnp.where(size > 0, size, 1), 0)


@eqx.filter_jit
def transfer(
    problem: Problem,
    params: PyTree,
    filter: AbstractFilter,  # noqa: A002
    policy: RankPolicy,
) -> Float[Array, "n n"]:
    """S = Σᵢ σᵢφ(σᵢ) uᵢuᵢᵀ (n, n), symmetric, on W^½x: W^½x' = S W^½u. One dense SVD.

    ``lambda t: transfer(problem, params_at(t), ...)`` is the S of :func:`chordflow.theory.deviation`.
    """
    U, sigma, _ = jnp.linalg.svd(WeightedJacobian.at(problem, params).as_matrix(), full_matrices=False)
    return (U * filter.transfer(sigma, policy.lam)[None, :]) @ U.T


class OutputMetric(eqx.Module):
    """The metric of output space for which the flow is gradient flow: ⟨v, S⁺w⟩ on range D (2.44–2.45).

    Rank D = n: ((1−τ) DDᵀ + τ)⁻¹ for the interpolated flow (2.44). Rank D < n: a bundle metric on range D,
    ((1−τ) DDᵀ + τP)⁺, a sub-Riemannian structure (2.45). For any filter it is S⁺; damped with m = 1: 1 + λ(DDᵀ)⁺.
    """

    U: Float[Array, "n k"]
    eigenvalues: Float[Array, " k"]

    @classmethod
    def at(
        cls,
        problem: Problem,
        params: PyTree,
        filter: AbstractFilter,  # noqa: A002
        policy: RankPolicy,
    ) -> "OutputMetric":
        """Build the metric of a filter at ``params``; the range of D ends at the rounding of its SVD (numpy's rule)."""
        A = WeightedJacobian.at(problem, params)
        U, sigma, _ = jnp.linalg.svd(A.as_matrix(), full_matrices=False)
        s = filter.transfer(sigma, policy.lam)
        inside = above_rounding(sigma, A.shape) & (
            s > 0
        )  # directions that a hard cutoff drops do not move: S⁺ is 0 there
        return cls(U, jnp.where(inside, 1 / jnp.where(inside, s, 1), 0))

    def mv(self, v: Flat) -> Flat:
        """S⁺ v."""
        return self.U @ (self.eigenvalues * (self.U.T @ v))

    def inner(self, v: Flat, w: Flat) -> Scalar:
        """⟨v, S⁺ w⟩, for v and w in range D."""
        return jnp.dot(v, self.mv(w))

    def project(self, v: Flat) -> Flat:
        """P v, the orthogonal projection onto range D."""
        return self.U @ (jnp.where(self.eigenvalues > 0, 1.0, 0.0).astype(v.dtype) * (self.U.T @ v))

    def as_matrix(self) -> Float[Array, "n n"]:
        """S⁺, dense."""
        return (self.U * self.eigenvalues[None, :]) @ self.U.T


def kernel_drift(gram: Float[Array, "n n"], gram_0: Float[Array, "n n"]) -> Scalar:
    """|G − G₀|_F / |G₀|_F: 0 for a linear model, small in the lazy regime; 0 for G = G₀ = 0, ∞ for G₀ = 0 alone."""
    return _ratio(jnp.linalg.norm(gram - gram_0), jnp.linalg.norm(gram_0), 0.0)


def straightness(outputs: Float[Array, "T *shape"]) -> Scalar:
    """Length of the path through outputs (T, ...) over the length of its chord: 1 for a straight line, ∞ for a loop.

    1 also for outputs that stand still, as for those that hardly move.
    """
    flat = outputs.reshape(outputs.shape[0], -1)
    length = jnp.sum(jnp.linalg.norm(jnp.diff(flat, axis=0), axis=1))
    return _ratio(length, jnp.linalg.norm(flat[-1] - flat[0]), 1.0)


def _ratio(a: Scalar, b: Scalar, where_both_are_zero: float) -> Scalar:
    return jnp.where((a == 0) & (b == 0), where_both_are_zero, a / b)
