"""A = W^½D at a point, on flat vectors: what flows, singular values, S, P and λ refer to.

For the steps of a fit A = R D with R = BᵀW^½, where B Bᵀ is the Hessian of the loss per sample.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from chordflow.jacobian import Jacobian
from chordflow.memory import available_memory
from chordflow.problem import Problem


class WeightedJacobian(eqx.Module):
    """A = R D (n, K) as a linear map; R = W^½ = √(problem.inner_product), the identity for one unweighted term.

    With ``hessian_factors``, the B (Nᵢ, Q, Q) of each term, R = BᵀW^½: the generalised Gauss–Newton metric.
    """

    problem: Problem
    jacobian: Jacobian
    hessian_factors: tuple[Float[Array, "_n _q _q"], ...] | None = None

    @classmethod
    def at(cls, problem: Problem, params: PyTree) -> "WeightedJacobian":
        """W^½D at ``params``."""
        return cls(problem, problem.jacobian(params))

    @classmethod
    def with_outputs(
        cls, problem: Problem, params: PyTree, *, in_loss_metric: bool
    ) -> tuple[Float[Array, " n"], "WeightedJacobian"]:
        """x(θ), flat, and W^½D or BᵀW^½D there, B Bᵀ = ∇²ℓ, from one pass that later products with Aᵀ share."""
        outputs, jacobian = problem.jacobian(params).with_outputs()
        x = problem.flatten(outputs)
        if not in_loss_metric:
            return x, cls(problem, jacobian)
        blocks = (outputs,) if problem.single else tuple(outputs)
        factor = jax.vmap(problem.loss.hessian_factor)
        factors = tuple(factor(block, term.targets) for block, term in zip(blocks, problem.terms, strict=True))
        return x, cls(problem, jacobian, factors)

    @property
    def root(self) -> Float[Array, " n"]:
        """The diagonal of W^½."""
        return jnp.sqrt(self.problem.inner_product)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, K)."""
        return self.jacobian.shape

    def to_metric(self, dx: Float[Array, "n *k"]) -> Float[Array, "n *k"]:
        """R dx for a vector (n,) or the columns of a matrix (n, k)."""
        scaled = self.root.reshape(-1, *(1,) * (dx.ndim - 1)) * dx
        return self._blockwise("nqr,nq...->nr...", scaled)

    def from_metric(self, w: Float[Array, "n *k"]) -> Float[Array, "n *k"]:
        """Rᵀ w."""
        return self.root.reshape(-1, *(1,) * (w.ndim - 1)) * self._blockwise("nqr,nr...->nq...", w)

    def _blockwise(self, contraction: str, flat: Float[Array, "n *k"]) -> Float[Array, "n *k"]:
        if self.hessian_factors is None:
            return flat
        blocks, start = [], 0
        for B in self.hessian_factors:
            N, Q, _ = B.shape
            part = flat[start : start + N * Q]
            blocks.append(jnp.einsum(contraction, B, part.reshape(N, Q, *part.shape[1:])).reshape(part.shape))
            start += N * Q
        return jnp.concatenate(blocks)

    def mv(self, tangent: Float[Array, " K"]) -> Float[Array, " n"]:
        """A v."""
        unravel = ravel_pytree(self.jacobian.theta)[1]
        return self.to_metric(self.problem.flatten(self.jacobian.mv(unravel(tangent))))

    def rmv(self, cotangent: Float[Array, " n"]) -> Float[Array, " K"]:
        """Aᵀ w."""
        return ravel_pytree(self.jacobian.T.mv(self.problem.unflatten(self.from_metric(cotangent))))[0]

    def as_matrix(self) -> Float[Array, "n K"]:
        """A, dense."""
        return self.to_metric(self.jacobian.as_matrix())

    def gram(self) -> Float[Array, "n n"]:
        """A Aᵀ = R G Rᵀ."""
        return self.to_metric(self.to_metric(self.jacobian.gram()).T)

    def small_gram(self) -> Float[Array, "m m"]:
        """The smaller of A Aᵀ and AᵀA: same non-zero eigenvalues σ²."""
        n, K = self.shape
        return self.gram() if n <= K else self.formed().small_gram()

    def formed(self) -> "FormedJacobian":
        """A with its matrix."""
        return FormedJacobian(self.as_matrix())

    @property
    def is_worth_forming(self) -> bool:
        """Whether a Gram matrix takes the matrix of A anyway, or most of it, and there is room to keep it.

        Its products then cost a pass over n K numbers. Poisson 5-D, n = 3500, K = 10 065: Gram matrix 2.1 s instead of
        2.8 s, a product with Aᵀ 0.03 s instead of 0.16 s.
        """
        n, K = self.shape
        available = available_memory()
        has_room = available is None or 4 * n * K * self.jacobian.dtype.itemsize <= available
        return has_room and (n > K or self.jacobian.gram_takes_columns)

    def sigma(self) -> Float[Array, " k"]:
        """Singular values, descending, k = min(n, K); from A itself, so that those below 1e-8 σ_max are seen too."""
        return jnp.linalg.svd(self.as_matrix(), compute_uv=False)

    def sigma_from_gram(self) -> Float[Array, " k"]:
        """As :meth:`sigma` at a third of the work, from the smaller Gram matrix, whose rounding hides small ones.

        Relative error about machine epsilon · (σ_max/σ)²; values below √(m · machine epsilon) σ_max are not seen: NaN.
        """
        return sigma_from_squares(jnp.linalg.eigvalsh(self.small_gram()))

    def sigma_max(self) -> Float[Array, ""]:
        """The largest singular value, from the smaller Gram matrix (accurate to machine precision for this one)."""
        return jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(self.small_gram())[-1], 0))

    def sigma_max_estimate(self, num_products: int = 20) -> Float[Array, ""]:
        """σ_max from below by power iteration, to a few per cent: for step counts only, never for damping."""

        def body(_, w):
            w = self.mv(self.rmv(w))
            return w / jnp.maximum(jnp.linalg.norm(w), jnp.finfo(w.dtype).tiny)

        # A fixed random start: one made of the data can be orthogonal to the range of A (inputs ±z, linear model).
        start = jax.random.normal(jax.random.key(0), self.root.shape, self.root.dtype)
        w = jax.lax.fori_loop(0, num_products, body, start)
        return jnp.linalg.norm(self.rmv(w)) / jnp.maximum(jnp.linalg.norm(w), jnp.finfo(w.dtype).tiny)


class FormedJacobian(eqx.Module):
    """A (n, K) as a matrix, where it has to be formed anyway: products with it are cheaper than passes."""

    matrix: Float[Array, "n K"]

    @property
    def shape(self) -> tuple[int, int]:
        """(n, K)."""
        n, K = self.matrix.shape
        return n, K

    def mv(self, tangent: Float[Array, " K"]) -> Float[Array, " n"]:
        """A v."""
        return self.matrix @ tangent

    def rmv(self, cotangent: Float[Array, " n"]) -> Float[Array, " K"]:
        """Aᵀ w."""
        return cotangent @ self.matrix

    def small_gram(self) -> Float[Array, "m m"]:
        """The smaller of A Aᵀ and AᵀA."""
        n, K = self.shape
        return times_transpose(self.matrix if n <= K else self.matrix.T)


def times_transpose(A: Float[Array, "m k"]) -> Float[Array, "m m"]:
    """A Aᵀ; of a large one the blocks on and above the diagonal, the others being their transposes.

    XLA has no symmetric product. With eight rows of blocks 36 of 64 are computed: m = 3500, k = 10 065 in 0.51 of the
    time of the whole product; below a thousand rows the blocks are too small to gain.
    """
    m, parts = len(A), 8 if len(A) >= 1024 else 1
    bands = [A[i * m // parts : (i + 1) * m // parts] for i in range(parts)]
    upper = {(i, j): bands[i] @ bands[j].T for i in range(parts) for j in range(i, parts)}
    return jnp.block([[upper[i, j] if i <= j else upper[j, i].T for j in range(parts)] for i in range(parts)])


def sigma_from_squares(squares: Float[Array, " m"]) -> Float[Array, " m"]:
    """Singular values, descending, from the eigenvalues σ² of a Gram matrix, ascending; NaN where rounding hides them.

    >>> sigma_from_squares(jnp.array([1e-20, 4.0, 9.0])).tolist()
    [3.0, 2.0, nan]
    """
    squares = squares[::-1]
    seen = squares > squares[0] * squares.size * jnp.finfo(squares.dtype).eps
    return jnp.where(seen, jnp.sqrt(jnp.where(seen, squares, 1)), jnp.nan)
