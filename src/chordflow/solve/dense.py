"""Dense realisations: a Cholesky factor of the smaller Gram matrix, or the singular value decomposition of W^½D."""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Float

from chordflow.filters import AbstractFilter, Damped
from chordflow.solve.weighted import WeightedJacobian

Scalar = Float[Array, ""]


class AbstractFactor(eqx.Module):
    """A factorisation at one point, reusable for many right-hand sides."""

    @abstractmethod
    def damped(self, v: Float[Array, " n"], passes: int) -> Float[Array, " K"]:
        """Σ (1 − (λ/(σ²+λ))^m)/σ vᵢuᵢᵀv: m passes of iterated Tikhonov."""

    @abstractmethod
    def effective_dimension(self) -> Scalar:
        """Σ σ²/(σ²+λ)."""


class AbstractMethod(eqx.Module):
    """How a filter is realised; stateless, so that it is a static part of a compiled right-hand side."""

    @abstractmethod
    def floor(self, dtype: jnp.dtype) -> float:
        """The smallest ratio σ/σ_max that the factorisation sees above its own rounding."""

    @abstractmethod
    def factorise(self, A: WeightedJacobian, lam: Scalar) -> AbstractFactor:
        """Factor A at its point."""


class Cholesky(AbstractMethod):
    """(AAᵀ + λ) = LLᵀ or (AᵀA + λ) = LLᵀ, whichever is smaller; work n²K + n³/3 for n ≤ K.

    Each pass z ← z + (AAᵀ+λ)⁻¹(v − A(Aᵀz)) forms its residual with products of A, not with the Gram matrix, so that
    passes are iterated Tikhonov and iterative refinement in one.
    """

    def floor(self, dtype: jnp.dtype) -> float:
        """4 √(machine epsilon): a Gram matrix squares the condition number.

        Without the 4, some rank-deficient matrices of n = 300 have negative pivots at the floor, all tried of n = 1000.
        """
        return 4 * float(jnp.finfo(dtype).eps) ** 0.5

    def factorise(self, A: WeightedJacobian, lam: Scalar) -> "SampleFactor | ParameterFactor":
        """One Cholesky factorisation."""
        n, K = A.shape
        G = A.small_gram()
        # λ = 0 only where D = 0 at the start; any damping then gives θ' = 0.
        damping = jnp.where(lam > 0, lam, 1)
        factor = jnp.linalg.cholesky(G + damping * jnp.eye(G.shape[0], dtype=G.dtype))
        return (SampleFactor if n <= K else ParameterFactor)(A, factor, damping)


class CholeskyFactor(AbstractFactor):
    """L Lᵀ = the smaller Gram matrix + λ, (m, m)."""

    A: WeightedJacobian
    factor: Float[Array, "m m"]
    lam: Scalar

    def effective_dimension(self) -> Scalar:
        """Σ σ²/(σ²+λ) = m − λ |L⁻¹|²_F, to the Gram matrix's rounding relative to λ; m³/3 work."""
        eye = jnp.eye(self.factor.shape[0], dtype=self.factor.dtype)
        inverse = jsl.solve_triangular(self.factor, eye, lower=True)
        return self.factor.shape[0] - self.lam * jnp.sum(inverse**2)


class SampleFactor(CholeskyFactor):
    """L Lᵀ = AAᵀ + λ (n, n)."""

    def damped(self, v: Float[Array, " n"], passes: int) -> Float[Array, " K"]:
        """Aᵀz with m passes on z."""
        z = jsl.cho_solve((self.factor, True), v)
        for _ in range(passes - 1):
            z = z + jsl.cho_solve((self.factor, True), v - self.A.mv(self.A.rmv(z)))
        return self.A.rmv(z)


class ParameterFactor(CholeskyFactor):
    """L Lᵀ = AᵀA + λ (K, K)."""

    def damped(self, v: Float[Array, " n"], passes: int) -> Float[Array, " K"]:
        """M passes of θ ← θ + (AᵀA+λ)⁻¹Aᵀ(v − Aθ)."""
        theta = jsl.cho_solve((self.factor, True), self.A.rmv(v))
        for _ in range(passes - 1):
            theta = theta + jsl.cho_solve((self.factor, True), self.A.rmv(v - self.A.mv(theta)))
        return theta


class SVD(AbstractMethod):
    """A = UΣVᵀ: sees σ down to machine epsilon, realises any filter; about 20 times the work of Cholesky."""

    def floor(self, dtype: jnp.dtype) -> float:
        """Machine epsilon."""
        return float(jnp.finfo(dtype).eps)

    def factorise(self, A: WeightedJacobian, lam: Scalar) -> "SpectralFactor":
        """One thin singular value decomposition."""
        U, sigma, Vt = jnp.linalg.svd(A.as_matrix(), full_matrices=False)
        return SpectralFactor(U, sigma, Vt, lam)


class SpectralFactor(AbstractFactor):
    """U Σ Vᵀ = A, with U (n, k), σ (k,), Vᵀ (k, K)."""

    U: Float[Array, "n k"]
    sigma: Float[Array, " k"]
    Vt: Float[Array, "k K"]
    lam: Scalar

    def effective_dimension(self) -> Scalar:
        """Σ σ²/(σ²+λ), 0 for D = 0."""
        total = self.sigma**2 + self.lam
        return jnp.sum(jnp.where(total > 0, self.sigma**2 / jnp.where(total > 0, total, 1), 0))

    def damped(self, v: Float[Array, " n"], passes: int) -> Float[Array, " K"]:
        """The damped filter on the spectrum."""
        return self.filtered(v, Damped(passes=passes))

    def filtered(self, v: Float[Array, " n"], filter: AbstractFilter) -> Float[Array, " K"]:  # noqa: A002
        """Σ φ(σᵢ) vᵢuᵢᵀv for any filter."""
        return self.Vt.T @ (filter.phi(self.sigma, self.lam) * (self.U.T @ v))
