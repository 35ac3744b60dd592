"""Matrix-free realisation: conjugate gradients on AᵀA + λ, preconditioned by a randomised Nyström approximation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float

from chordflow.solve.dense import AbstractDecomposition, AbstractFactor, AbstractMethod, Scalar
from chordflow.solve.weighted import WeightedJacobian


class Iterative(AbstractMethod):
    """(AᵀA + λ)⁻¹ by conjugate gradients on products with A and Aᵀ: no matrix of the size n or K is formed.

    AᵀA is sketched once per point with ``rank`` products, B Bᵀ ≈ AᵀA (Nyström), and its leading eigenpairs are the
    preconditioner for every λ (Frangella, Tropp, Udell: Randomized Nyström preconditioning, 2023, algorithms 2.1, 5.1).
    Memory K · rank.

    Parameters
    ----------
    rank
        Columns of the sketch; at least the number of σ² above λ is worth having.
    rtol
        Residual at which conjugate gradients stop, relative to the right-hand side. Chord corrections of a fit repair
        what is left; a flow wants less than its own tolerance.
    max_products
        Bound on their iterations, of one product with A and one with Aᵀ each. What is reached by then is used:
        in the history of a fit of squared error the rest of the residual counts as unreachable.
    """

    rank: int = 64
    rtol: float = 1e-3
    max_products: int = 200

    def __check_init__(self) -> None:
        for name, value in (("rank", self.rank), ("max_products", self.max_products)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Iterative: {name} must be an integer of at least 1, got {value!r}")
        if not 0 < self.rtol < 1:
            raise ValueError(f"Iterative: rtol must be in (0, 1), got {self.rtol!r}")

    def floor(self, dtype: jnp.dtype) -> float:
        """√(machine epsilon): AᵀA squares the condition number."""
        return float(jnp.finfo(dtype).eps) ** 0.5

    def decompose(self, A: WeightedJacobian) -> "Sketch":
        """Sketch AᵀA: ``rank`` products with A and Aᵀ."""
        n, K = A.shape
        basis, values = _nystrom(A, K, min(self.rank, n, K))
        return Sketch(A, basis, values, self.rtol, self.max_products)


def _nystrom(A: WeightedJacobian, K: int, rank: int) -> tuple[Float[Array, "K r"], Float[Array, " r"]]:
    """Leading eigenvectors and eigenvalues, descending, of the Nyström approximation of AᵀA."""
    # A fixed seed: a step must be a function of the state of the fit.
    random = jax.random.normal(jax.random.key(0), (K, rank), A.jacobian.dtype)
    test, _ = jnp.linalg.qr(random)
    # Eight columns at once: the activations of all of them would not fit beside each other for large data.
    image = jax.lax.map(lambda column: A.rmv(A.mv(column)), test.T, batch_size=8).T
    # Without a shift rounding makes pivots of the small Cholesky factor negative; the eigenvalues lose it again.
    shift = 10 * rank * jnp.finfo(image.dtype).eps * jnp.linalg.norm(image)
    shift = jnp.where(shift > 0, shift, 1)
    shifted = image + shift * test
    core = test.T @ shifted
    factor = jnp.linalg.cholesky((core + core.T) / 2)
    B = jsl.solve_triangular(factor, shifted.T, lower=True).T
    basis, root, _ = jnp.linalg.svd(B, full_matrices=False)
    return basis, jnp.maximum(root**2 - shift, 0)


class Sketch(AbstractDecomposition):
    """U Λ Uᵀ ≈ AᵀA, U (K, r), and when conjugate gradients stop."""

    A: WeightedJacobian
    basis: Float[Array, "K r"]
    values: Float[Array, " r"]
    rtol: float = eqx.field(static=True)
    max_products: int = eqx.field(static=True)

    def at(self, lam: Scalar) -> "IterativeFactor":
        """The same sketch preconditions every λ."""
        return IterativeFactor(self, jnp.where(lam > 0, lam, 1))

    @property
    def scale(self) -> Scalar:
        """σ_max², to a few per cent."""
        return self.values[0]

    def sum_of_squares(self) -> Scalar:
        """Σσ²: that of the sketch, and of the rest the mean over 16 random signs z of |Az|² − |Bᵀz|² (Hutchinson).

        16 products with A; exact where the sketch has the whole rank.
        """
        signs = jax.random.rademacher(jax.random.key(1), (16, self.A.shape[1]), self.basis.dtype)
        whole = jax.lax.map(lambda z: jnp.sum(self.A.mv(z) ** 2), signs, batch_size=8)
        sketched = (signs @ self.basis) ** 2 @ self.values
        return jnp.sum(self.values) + jnp.mean(whole - sketched)


class IterativeFactor(AbstractFactor):
    """A sketch and a λ."""

    sketch: Sketch
    lam: Scalar

    def shifted(self, b: Float[Array, " K"]) -> Float[Array, " K"]:
        """Preconditioned conjugate gradients."""
        A = self.sketch.A
        # jax's own: lineax 0.1 compares residuals entry by entry, and stops at once where b has an entry 0.
        solution, _ = cg(
            lambda v: A.rmv(A.mv(v)) + self.lam * v,
            b,
            tol=self.sketch.rtol,
            maxiter=self.sketch.max_products,
            M=self._precondition,
        )
        return solution

    def _precondition(self, v: Float[Array, " K"]) -> Float[Array, " K"]:
        """U(Λ+λ)⁻¹Uᵀ + (1 − UUᵀ)/(λᵣ + λ)."""
        inside = self.sketch.basis.T @ v
        rest = self.sketch.values[-1] + self.lam
        return v / rest + self.sketch.basis @ (inside / (self.sketch.values + self.lam) - inside / rest)

    def damped(self, v: Float[Array, " n"], passes: int) -> Float[Array, " K"]:
        """M passes of θ ← θ + (AᵀA+λ)⁻¹Aᵀ(v − Aθ)."""
        A = self.sketch.A
        theta = self.shifted(A.rmv(v))
        for _ in range(passes - 1):
            theta = theta + self.shifted(A.rmv(v - A.mv(theta)))
        return theta

    def push(self, v: Float[Array, " K"]) -> Float[Array, " n"]:
        """A v."""
        return self.sketch.A.mv(v)

    def effective_dimension(self) -> Scalar:
        """Σ σ²/(σ²+λ) over the sketch: a lower bound.

        Each of the min(n, K) − r terms outside it has at most about σ_r²/(σ_r²+λ), σ_r² being the last of the sketch.
        """
        return jnp.sum(self.sketch.values / (self.sketch.values + self.lam))
