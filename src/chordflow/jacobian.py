"""The Jacobian D = ∂x/∂θ (2.11) at a point: products with D and Dᵀ, and the dense forms where they are asked for."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from chordflow.kernel import PerSample, dense, gram_matrix, outputs, pull, push, takes_columns
from chordflow.memory import require_memory

OutputsLike = PyTree[Float[Array, "_n _q"]]


class Jacobian(eqx.Module):
    """D = ∂x/∂θ at ``theta``, a linear map from parameter tangents to output tangents; unweighted.

    Shapes: K trainable entries in ravel order; n output entries, rows term-, sample-, output-major. Tangents and
    cotangents of parameters are pytrees like the trainable part of the parameters (frozen leaves are None; a full
    parameter tree is accepted, its frozen leaves ignored). Outputs-like means (N, Q), or a tuple of (Nᵢ, Qᵢ).

    A product costs one forward- or reverse-mode pass over the batch and no memory beyond it; ``as_matrix`` takes
    n·K numbers and ``gram`` n².

    Examples
    --------
    >>> import jax.numpy as jnp, chordflow as cf
    >>> problem = cf.Problem(lambda w, z: w * z, jnp.array([[1.0], [2.0]]), jnp.array([[0.0], [0.0]]))
    >>> J = problem.jacobian(jnp.array([3.0]))
    >>> J.mv(jnp.array([1.0])).tolist(), J.T.mv(jnp.array([[1.0], [1.0]])).tolist(), J.gram().tolist()
    ([[1.0], [2.0]], [3.0], [[1.0, 2.0], [2.0, 4.0]])
    """

    blocks: tuple[PerSample, ...]
    theta: PyTree
    single: bool = eqx.field(static=True)
    pullback: Callable[..., Any] | None = None
    """Of :meth:`with_outputs`: the backward pass whose forward pass is done."""

    def with_outputs(self) -> tuple[OutputsLike, "Jacobian"]:
        """x(θ), and D with the activations of that pass kept: a product with Dᵀ is then a backward pass alone."""
        x, pullback = jax.vjp(lambda theta: outputs(self.blocks, theta), self.theta)
        return x[0] if self.single else x, Jacobian(self.blocks, self.theta, self.single, pullback)

    def mv(self, tangent: PyTree) -> OutputsLike:
        """D v: where a parameter tangent moves the outputs."""
        out = push(self.blocks, self.theta, self._trainable(tangent))
        return out[0] if self.single else out

    @property
    def T(self) -> "TransposedJacobian":  # noqa: N802
        """The transpose Dᵀ."""
        return TransposedJacobian(self)

    def as_matrix(self) -> Float[Array, "n K"]:
        """D itself; raises MemoryError with the numbers when n·K does not fit."""
        n, K = self.shape
        require_memory(
            n * K * self.dtype.itemsize, f"the Jacobian ({n} x {K})", "use J.mv and J.T.mv, or fewer samples"
        )
        return dense(self.blocks, self.theta)

    def gram(self) -> Float[Array, "n n"]:
        """G = DDᵀ, the empirical neural tangent kernel of the training inputs, from layer inputs and cotangents."""
        n, _ = self.shape
        require_memory(n * n * self.dtype.itemsize, f"the Gram matrix of n = {n} outputs", "use fewer samples")
        return gram_matrix(self.blocks, self.theta)

    @property
    def gram_takes_columns(self) -> bool:
        """Whether most of :meth:`gram` goes by way of columns of D, as it does for derivatives inside a residual."""
        return takes_columns(self.blocks, self.theta)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, K)."""
        structs = eqx.filter_eval_shape(outputs, self.blocks, self.theta)
        return sum(s.size for s in structs), sum(leaf.size for leaf in jax.tree.leaves(self.theta))

    @property
    def dtype(self) -> jnp.dtype:
        """dtype of the outputs."""
        return jnp.result_type(*eqx.filter_eval_shape(outputs, self.blocks, self.theta))

    def _trainable(self, tangent: PyTree) -> PyTree:
        if jax.tree.structure(tangent) == jax.tree.structure(self.theta):
            return tangent
        mask = jax.tree.map(lambda leaf: leaf is not None, self.theta, is_leaf=lambda leaf: leaf is None)
        try:
            return eqx.filter(tangent, mask)
        except ValueError:
            raise ValueError(
                f"J.mv: expected a tangent like the parameters, {jax.tree.structure(self.theta)}, "
                f"got {jax.tree.structure(tangent)}"
            ) from None


class TransposedJacobian(eqx.Module):
    """Dᵀ: output cotangents to parameter cotangents, ``∇_θC = Dᵀ∇ₓC`` (2.15)."""

    transpose_of: Jacobian

    def mv(self, cotangent: OutputsLike) -> PyTree:
        """Dᵀ w; one reverse-mode pass."""
        J = self.transpose_of
        blocks = (cotangent,) if J.single else tuple(cotangent)
        return pull(J.blocks, J.theta, blocks) if J.pullback is None else J.pullback(blocks)[0]

    @property
    def T(self) -> Jacobian:  # noqa: N802
        """D again."""
        return self.transpose_of
