"""Per-sample functions: all their outputs, products with the Jacobian, and the Jacobian itself."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from chordflow.kernel.trace import has_forward_rule


class PerSample(eqx.Module):
    """One block of outputs: a per-sample function mapped over its samples, as a function of trainable parameters."""

    fn: Callable[[Any, Any], Array]
    samples: PyTree
    frozen: PyTree

    def at(self, theta: PyTree, sample: PyTree) -> Any:
        """fn at one sample, frozen leaves filled in."""
        return self.fn(eqx.combine(theta, self.frozen), sample)

    def __call__(self, theta: PyTree) -> Float[Array, "n q"]:
        """All samples: (N, Q)."""
        return jax.vmap(lambda sample: self.at(theta, sample))(self.samples)


Blocks = tuple[PerSample, ...]


def outputs(blocks: Blocks, theta: PyTree) -> tuple[Array, ...]:
    """The outputs (Nᵢ, Qᵢ) of all blocks."""
    return tuple(block(theta) for block in blocks)


@eqx.filter_jit
def push(blocks: Blocks, theta: PyTree, tangent: PyTree) -> tuple[Array, ...]:
    """D v by one forward-mode pass."""

    def fn(theta: PyTree) -> tuple[Array, ...]:
        return outputs(blocks, theta)

    if has_forward_rule(fn, theta):
        return jax.jvp(fn, (theta,), (tangent,))[1]
    # Dᵀw is linear in w, so D v is the transpose of that map.
    x, pull = jax.vjp(fn, theta)
    return jax.vjp(lambda w: pull(w)[0], jax.tree.map(jnp.zeros_like, x))[1](tangent)[0]


@eqx.filter_jit
def pull(blocks: Blocks, theta: PyTree, cotangent: tuple[Array, ...]) -> PyTree:
    """Dᵀ w by one reverse-mode pass."""
    return jax.vjp(lambda theta: outputs(blocks, theta), theta)[1](cotangent)[0]


@eqx.filter_jit
def dense(blocks: Blocks, theta: PyTree) -> Float[Array, "n K"]:
    """D, all blocks below each other."""
    flat, unravel = ravel_pytree(theta)

    def rows(block: PerSample) -> Array:
        def one(sample: PyTree) -> Array:
            def fn(v: Array) -> Array:
                return block.at(unravel(v), sample)

            q = jax.eval_shape(fn, flat).size
            # Reverse mode needs q passes and forward mode K.
            forward = q > flat.size and has_forward_rule(fn, flat)
            return (jax.jacfwd if forward else jax.jacrev)(fn)(flat)

        return jax.vmap(one)(block.samples).reshape(-1, flat.size)

    return jnp.concatenate([rows(block) for block in blocks])
