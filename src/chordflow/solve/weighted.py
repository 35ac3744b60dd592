"""A = W^½D at a point, on flat vectors: what flows, singular values, S, P and λ refer to."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from chordflow.jacobian import Jacobian
from chordflow.problem import Problem


class WeightedJacobian(eqx.Module):
    """A = W^½D (n, K) as a linear map; W^½ = √(problem.inner_product), the identity for one unweighted term."""

    problem: Problem
    jacobian: Jacobian

    @classmethod
    def at(cls, problem: Problem, params: PyTree) -> "WeightedJacobian":
        """A at ``params``."""
        return cls(problem, problem.jacobian(params))

    @property
    def root(self) -> Float[Array, " n"]:
        """The diagonal of W^½."""
        return jnp.sqrt(self.problem.inner_product)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, K)."""
        return self.jacobian.shape

    def mv(self, tangent: Float[Array, " K"]) -> Float[Array, " n"]:
        """A v."""
        unravel = ravel_pytree(self.jacobian.theta)[1]
        return self.root * self.problem.flatten(self.jacobian.mv(unravel(tangent)))

    def rmv(self, cotangent: Float[Array, " n"]) -> Float[Array, " K"]:
        """Aᵀ w."""
        return ravel_pytree(self.jacobian.T.mv(self.problem.unflatten(self.root * cotangent)))[0]

    def as_matrix(self) -> Float[Array, "n K"]:
        """A, dense."""
        return self.root[:, None] * self.jacobian.as_matrix()

    def gram(self) -> Float[Array, "n n"]:
        """A Aᵀ."""
        return self.root[:, None] * self.jacobian.gram() * self.root[None, :]

    def small_gram(self) -> Float[Array, "m m"]:
        """The smaller of A Aᵀ and AᵀA: same non-zero eigenvalues σ²."""
        n, K = self.shape
        if n <= K:
            return self.gram()
        A = self.as_matrix()
        return A.T @ A

    def sigma(self) -> Float[Array, " k"]:
        """Singular values, descending, k = min(n, K); from A itself, so that those below 1e-8 σ_max are seen too."""
        return jnp.linalg.svd(self.as_matrix(), compute_uv=False)

    def sigma_from_gram(self) -> Float[Array, " k"]:
        """As :meth:`sigma` at a third of the work, from the smaller Gram matrix, whose rounding hides small ones.

        Relative error about machine epsilon · (σ_max/σ)²; values below √(m · machine epsilon) σ_max are not seen: NaN.
        """
        squares = jnp.linalg.eigvalsh(self.small_gram())[::-1]
        seen = squares > squares[0] * squares.size * jnp.finfo(squares.dtype).eps
        return jnp.where(seen, jnp.sqrt(jnp.where(seen, squares, 1)), jnp.nan)

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
