"""Dense realisations: a Cholesky factor of the smaller Gram matrix, or the singular value decomposition of W^½D."""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jaxtyping import Array, Float

from chordflow.filters import AbstractFilter, Damped
from chordflow.solve.weighted import FormedJacobian, WeightedJacobian

Scalar = Float[Array, ""]


class AbstractFactor(eqx.Module):
    """The damped inverse of A at one point and one λ, reusable for many right-hand sides."""

    @abstractmethod
    def damped(self, v: Float[Array, " n"], passes: int) -> Float[Array, " K"]:
        """Σ (1 − (λ/(σ²+λ))^m)/σ vᵢuᵢᵀv: m passes of iterated Tikhonov."""

    @abstractmethod
    def shifted(self, b: Float[Array, " K"]) -> Float[Array, " K"]:
        """(AᵀA + λ)⁻¹ b."""

    @abstractmethod
    def push(self, v: Float[Array, " K"]) -> Float[Array, " n"]:
        """A v."""

    @abstractmethod
    def effective_dimension(self) -> Scalar:
        """Σ σ²/(σ²+λ)."""

    def dimension_estimate(self) -> Scalar:
        """The effective dimension to a few per cent, at the price of a few solves."""
        return self.effective_dimension()


class AbstractDecomposition(eqx.Module):
    """What is known of A at one point before λ is chosen: triplets, a Gram matrix, or a sketch."""

    @abstractmethod
    def at(self, lam: Scalar) -> AbstractFactor:
        """The factor for one λ."""

    @property
    @abstractmethod
    def scale(self) -> Scalar:
        """σ_max², exact or to a few per cent, or an upper bound of it that costs nothing: the trace."""

    @abstractmethod
    def sum_of_squares(self) -> Scalar:
        """Σσ², the same unit whatever the method."""


class AbstractMethod(eqx.Module):
    """How a filter is realised; stateless, so that it is a static part of a compiled right-hand side."""

    @abstractmethod
    def floor(self, dtype: jnp.dtype) -> float:
        """The smallest ratio σ/σ_max that the factorisation sees above its own rounding."""

    @abstractmethod
    def decompose(self, A: WeightedJacobian) -> AbstractDecomposition:
        """The part of the work that all λ share."""

    def factorise(self, A: WeightedJacobian, lam: Scalar) -> AbstractFactor:
        """Factor A at its point for one λ."""
        return self.decompose(A).at(lam)


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

    def decompose(self, A: WeightedJacobian) -> "Gram":
        """The smaller Gram matrix; with A itself where most of it is formed anyway."""
        linear_map = A.formed() if A.is_worth_forming else A
        return Gram(linear_map, linear_map.small_gram())


class Gram(AbstractDecomposition):
    """The smaller of AAᵀ and AᵀA, (m, m)."""

    A: WeightedJacobian | FormedJacobian
    matrix: Float[Array, "m m"]

    def at(self, lam: Scalar) -> "SampleFactor | ParameterFactor":
        """One Cholesky factorisation, m³/3."""
        # λ = 0 only where D = 0 at the start; any damping then gives θ' = 0.
        damping = jnp.where(lam > 0, lam, 1)
        damped = self.matrix + damping * jnp.eye(self.matrix.shape[0], dtype=self.matrix.dtype)
        factor = jnp.linalg.cholesky(damped, symmetrize_input=False)
        n, K = self.A.shape
        return (SampleFactor if n <= K else ParameterFactor)(self.A, factor, damping)

    @property
    def scale(self) -> Scalar:
        """Σσ²: the trace, which needs no power iteration."""
        return self.sum_of_squares()

    def sum_of_squares(self) -> Scalar:
        """The trace."""
        return jnp.trace(self.matrix)


class CholeskyFactor(AbstractFactor):
    """L Lᵀ = the smaller Gram matrix + λ, (m, m)."""

    A: WeightedJacobian | FormedJacobian
    factor: Float[Array, "m m"]
    lam: Scalar

    def push(self, v: Float[Array, " K"]) -> Float[Array, " n"]:
        """A v, by a product with the Jacobian."""
        return self.A.mv(v)

    def effective_dimension(self) -> Scalar:
        """Σ σ²/(σ²+λ) = m − λ |L⁻¹|²_F, to the Gram matrix's rounding relative to λ; m³/3 work."""
        eye = jnp.eye(self.factor.shape[0], dtype=self.factor.dtype)
        inverse = jsl.solve_triangular(self.factor, eye, lower=True)
        return self.factor.shape[0] - self.lam * jnp.sum(inverse**2)

    def dimension_estimate(self) -> Scalar:
        """The same with the trace estimated from 16 random signs (Hutchinson), always the same ones."""
        # Drawn while tracing: made by jax in each step they took as long as the solve with them.
        signs = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (self.factor.shape[0], 16))
        half = jsl.solve_triangular(self.factor, jnp.asarray(signs, self.factor.dtype), lower=True)
        return self.factor.shape[0] - self.lam * jnp.mean(jnp.sum(half**2, axis=0))


class SampleFactor(CholeskyFactor):
    """L Lᵀ = AAᵀ + λ (n, n)."""

    def damped(self, v: Float[Array, " n"], passes: int) -> Float[Array, " K"]:
        """Aᵀz with m passes on z."""
        z = jsl.cho_solve((self.factor, True), v)
        for _ in range(passes - 1):
            z = z + jsl.cho_solve((self.factor, True), v - self.A.mv(self.A.rmv(z)))
        return self.A.rmv(z)

    def shifted(self, b: Float[Array, " K"]) -> Float[Array, " K"]:
        """(b − Aᵀ(AAᵀ+λ)⁻¹Ab)/λ, with one pass of refinement for the digits that the difference cancels."""

        def once(b: Float[Array, " K"]) -> Float[Array, " K"]:
            return (b - self.A.rmv(jsl.cho_solve((self.factor, True), self.A.mv(b)))) / self.lam

        v = once(b)
        return v + once(b - self.lam * v - self.A.rmv(self.A.mv(v)))


class ParameterFactor(CholeskyFactor):
    """L Lᵀ = AᵀA + λ (K, K)."""

    def damped(self, v: Float[Array, " n"], passes: int) -> Float[Array, " K"]:
        """M passes of θ ← θ + (AᵀA+λ)⁻¹Aᵀ(v − Aθ)."""
        theta = self.shifted(self.A.rmv(v))
        for _ in range(passes - 1):
            theta = theta + self.shifted(self.A.rmv(v - self.A.mv(theta)))
        return theta

    def shifted(self, b: Float[Array, " K"]) -> Float[Array, " K"]:
        """One solve."""
        return jsl.cho_solve((self.factor, True), b)


class SVD(AbstractMethod):
    """A = UΣVᵀ: sees σ down to machine epsilon, realises any filter; about 20 times the work of Cholesky."""

    def floor(self, dtype: jnp.dtype) -> float:
        """Machine epsilon."""
        return float(jnp.finfo(dtype).eps)

    def decompose(self, A: WeightedJacobian) -> "Triplets":
        """One thin singular value decomposition."""
        return Triplets(*jnp.linalg.svd(A.as_matrix(), full_matrices=False))


class Triplets(AbstractDecomposition):
    """U Σ Vᵀ = A, with U (n, k), σ (k,) descending, Vᵀ (k, K)."""

    U: Float[Array, "n k"]
    sigma: Float[Array, " k"]
    Vt: Float[Array, "k K"]

    def at(self, lam: Scalar) -> "SpectralFactor":
        """The same triplets: every λ is free."""
        return SpectralFactor(self, lam)

    @property
    def scale(self) -> Scalar:
        """σ_max²."""
        return self.sigma[0] ** 2

    def sum_of_squares(self) -> Scalar:
        """Σσ² of all triplets."""
        return jnp.sum(self.sigma**2)


class SpectralFactor(AbstractFactor):
    """The triplets of A and a λ."""

    triplets: Triplets
    lam: Scalar

    def effective_dimension(self) -> Scalar:
        """Σ σ²/(σ²+λ), 0 for D = 0."""
        squares = self.triplets.sigma**2
        total = squares + self.lam
        return jnp.sum(jnp.where(total > 0, squares / jnp.where(total > 0, total, 1), 0))

    def damped(self, v: Float[Array, " n"], passes: int) -> Float[Array, " K"]:
        """The damped filter on the spectrum."""
        return self.filtered(v, Damped(passes=passes))

    def filtered(self, v: Float[Array, " n"], filter: AbstractFilter) -> Float[Array, " K"]:  # noqa: A002
        """Σ φ(σᵢ) vᵢuᵢᵀv for any filter."""
        U, sigma, Vt = self.triplets.U, self.triplets.sigma, self.triplets.Vt
        return Vt.T @ (filter.phi(sigma, self.lam) * (U.T @ v))

    def push(self, v: Float[Array, " K"]) -> Float[Array, " n"]:
        """U Σ Vᵀ v."""
        return self.triplets.U @ (self.triplets.sigma * (self.triplets.Vt @ v))

    def shifted(self, b: Float[Array, " K"]) -> Float[Array, " K"]:
        """V (Σ²+λ)⁻¹Vᵀb, and b/λ outside the range of Aᵀ.

        What is outside only by the rounding of b is dropped: divided by a small λ it would be a step at random.
        """
        sigma, Vt = self.triplets.sigma, self.triplets.Vt
        inside = Vt @ b
        outside = b - Vt.T @ inside
        rounding = 10 * b.size * jnp.finfo(b.dtype).eps * jnp.linalg.norm(b)
        outside = jnp.where(jnp.linalg.norm(outside) > rounding, outside, 0)
        return Vt.T @ (inside / (sigma**2 + self.lam)) + outside / self.lam
