"""Which leaves of the parameters are trainable, and what a leaf is called in a file."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def trainable_spec(params: PyTree, trainable: PyTree) -> PyTree:
    """Booleans like ``params``: what ``trainable`` (None, a predicate on leaves, a prefix of booleans) selects.

    Only floating arrays are ever trainable. Raises ValueError for complex ones, for several dtypes, and for none.
    """
    leaves = jax.tree.leaves(params)
    if any(eqx.is_inexact_array(leaf) and jnp.iscomplexobj(leaf) for leaf in leaves):
        raise ValueError("complex parameters are not supported: split them into real and imaginary parts")
    if trainable is None:
        spec = jax.tree.map(eqx.is_inexact_array, params)
    elif callable(trainable):
        spec = jax.tree.map(lambda leaf: eqx.is_inexact_array(leaf) and bool(trainable(leaf)), params)
    else:
        spec = _broadcast_prefix(trainable, params)
    if not any(jax.tree.leaves(spec)):
        kinds = sorted({str(getattr(leaf, "dtype", type(leaf).__name__)) for leaf in leaves})
        raise ValueError(f"no trainable parameters: a floating array is needed, got {', '.join(kinds) or 'no leaves'}")
    kinds = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(eqx.filter(params, spec))})
    if len(kinds) > 1:
        raise ValueError(
            f"trainable parameters must have one dtype, got {' and '.join(kinds)}: cast them or freeze some"
        )
    return spec


def _broadcast_prefix(trainable: PyTree, params: PyTree) -> PyTree:
    def fill(flag, subtree):
        if not isinstance(flag, (bool, np.bool_)):
            raise ValueError(f"trainable must hold booleans, got {flag!r}")
        return jax.tree.map(lambda leaf: bool(flag) and eqx.is_inexact_array(leaf), subtree)

    try:
        return jax.tree.map(fill, trainable, params)
    except ValueError as error:
        if "must hold booleans" in str(error):
            raise
        raise ValueError(
            f"trainable must be None, a predicate or a prefix of the parameters' tree {jax.tree.structure(params)}, "
            f"got {jax.tree.structure(trainable)}"
        ) from None


def tree_path(path: Sequence[Any]) -> list[int | str]:
    """The keys of a leaf as JSON can hold them: integers index sequences, strings are keys and attributes.

    Examples
    --------
    >>> import jax
    >>> [tree_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(({"w": 1.0}, 2.0))]
    [[0, 'w'], [1]]
    """
    return [
        part.idx if hasattr(part, "idx") else str(getattr(part, "key", getattr(part, "name", part))) for part in path
    ]
