"""What is trained: terms of samples with targets and weights, and the cost they make.

The one place where means, sums, weights and N live. With w_k the weight of term k, ω_kn of its samples,
Ω_k = Σₙ ω_kn and N = Σₖ Ω_k:

    C(x) = Σₖ w_k Σₙ ω_kn ℓ(x_kn, y_kn) / Ω_k,        W = diag(N w_k ω_kn / Ω_k)

W is the inner product of output space; it is 1 for one unweighted term, the paper's case. Flat outputs are
term-, sample-, output-major (2.9–2.10).
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from chordflow.jacobian import Jacobian, OutputsLike, PerSample
from chordflow.losses import AbstractLoss, SquaredError
from chordflow.parameters import trainable_spec

Flat = Float[Array, " n"]


def is_concrete(*trees: PyTree) -> bool:
    """Whether no leaf is being traced, so that values can be looked at."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


class Term(eqx.Module):
    """A per-sample function with its samples, targets and weights.

    Parameters
    ----------
    fn
        ``fn(params, sample) -> (Q,)``, pure; ``sample`` is one row of ``samples``.
    samples
        A pytree of arrays with a common leading axis N; or a function ``samples(key)`` that draws such a tree: then
        these are the points of ``jax.random.key(0)``, and :func:`chordflow.fit` draws anew for each step.
    targets
        (N, Q), floating; or, with drawn samples, a function ``targets(samples) -> (N, Q)``.
    weight
        w ≥ 0, the term's weight in C.
    weights
        ω (N,), non-negative sample weights, not all 0; None means 1. A sample with weight 0 is as if absent (while the
        model's outputs there are finite), with
        weight 2 as if present twice.

    Raises
    ------
    ValueError
        Empty or non-finite data, wrong shapes, weights that are negative or all zero.
    """

    fn: Callable[[Any, Any], Array]
    samples: PyTree[Array]
    targets: Float[Array, "N Q"]
    weight: Float[Array, ""]
    weights: Float[Array, " N"]
    draw: Callable[[Array], PyTree] | None = eqx.field(static=True)
    label: Callable[[PyTree], Array] | None = eqx.field(static=True)

    def __init__(
        self,
        fn: Callable[[Any, Any], Array],
        samples: PyTree,
        targets: Any,
        *,
        weight: Any = 1.0,
        weights: Any = None,
    ):
        if not callable(fn):
            raise ValueError(f"Term: fn must be a function fn(params, sample) -> (Q,), got {type(fn).__name__}")
        self.fn = fn
        self.draw = samples if callable(samples) else None
        self.label = targets if callable(targets) else None  # pyright: ignore[reportAttributeAccessIssue]
        samples, targets = self._drawn(samples, targets)
        self.samples = jax.tree.map(_as_array, samples)
        if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(self.samples)):
            raise ValueError("complex inputs are not supported: split them into real and imaginary parts")
        self.targets = targets = _as_array(targets)
        if not jnp.issubdtype(targets.dtype, jnp.floating):
            raise ValueError(f"targets must be floating, got {targets.dtype}: use jax.nn.one_hot or .astype(float)")
        if targets.ndim != 2:
            raise ValueError(
                f"targets must have shape (N, Q), got {targets.shape}: use targets[:, None] for one output"
            )
        num = targets.shape[0]
        sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(self.samples)}
        if sizes != {(num,)}:
            got = ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(self.samples)) or "none"
            hint = "; nested lists are pytrees of numbers: use jnp.asarray" if () in sizes else ""
            raise ValueError(
                f"inputs and targets must share their first axis, got inputs {got} and targets {targets.shape}{hint}"
            )
        if targets.size == 0:
            raise ValueError(
                f"the data are empty: targets have shape {targets.shape}, at least one sample and output is needed"
            )
        self.weight = _as_weight(weight, targets.dtype)
        self.weights = jnp.ones(num, targets.dtype) if weights is None else _as_weight(weights, targets.dtype)
        if self.weight.shape != () or self.weights.shape != (num,):
            raise ValueError(
                f"weight must be a number and weights ({num},), got shapes {self.weight.shape} and {self.weights.shape}"
            )
        if is_concrete(self.samples, self.targets, self.weight, self.weights):
            self._check_values()

    def _drawn(self, samples: Any, targets: Any) -> tuple[Any, Any]:
        """The samples of key 0 and their targets, where these are functions."""
        if self.draw is not None:
            samples = self.draw(jax.random.key(0))
            self._check_draw(samples)
        elif self.label is not None:
            raise ValueError("Term: targets may be a function of the samples only where samples is a function of a key")
        return samples, targets if self.label is None else self.label(samples)

    def _check_draw(self, samples: Any) -> None:
        """A generator of NumPy's would draw once, while the step is traced, and never again."""
        assert self.draw is not None
        again, other = self.draw(jax.random.key(0)), self.draw(jax.random.key(1))
        if not is_concrete(samples, again, other):
            return
        if not eqx.tree_equal(samples, again):
            raise ValueError("Term: samples(key) answers differently for the same key: draw with jax.random from it")
        if eqx.tree_equal(samples, other):
            raise ValueError(
                "Term: samples(key) answers alike for two keys: use the key, or give the samples themselves"
            )

    def redrawn(self, key: Array) -> "Term":
        """The same term with the samples of another key; itself where the samples are fixed."""
        if self.draw is None:
            return self
        samples = self.draw(key)
        got, expected = jax.tree.map(jnp.shape, samples), jax.tree.map(jnp.shape, self.samples)
        if got != expected:
            raise ValueError(
                f"Term: samples(key) must return the same shapes for every key, got {got} after {expected}"
            )
        targets = self.targets if self.label is None else self.label(samples)
        return eqx.tree_at(lambda term: (term.samples, term.targets), self, (samples, targets))

    def _check_values(self) -> None:
        named = [("inputs", leaf) for leaf in jax.tree.leaves(self.samples)]
        for name, array in [*named, ("targets", self.targets), ("weights", self.weights), ("weight", self.weight)]:
            _require_finite(name, array)
        if self.weight < 0:
            raise ValueError(f"weight must be non-negative, got {float(self.weight)}")
        if jnp.any(self.weights < 0):
            where = int(jnp.argmin(self.weights))
            raise ValueError(f"weights must be non-negative, got {float(self.weights[where])} at sample {where}")
        if not jnp.any(self.weights > 0):
            raise ValueError("weights are all zero: at least one sample needs a positive weight")


def _as_array(value: Any) -> Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        got = f"{type(value).__name__} of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        reason = str(error).splitlines()[0]
        raise ValueError(f"inputs and targets must be numeric arrays, got {got}: {reason}") from None


def _as_weight(value: Any, dtype: Any) -> Array:
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError):
        array = None
    if array is None or jnp.iscomplexobj(array):
        raise ValueError(f"weight and weights must be real numbers, got {value!r:.60}")
    return array.astype(dtype)


def _require_finite(name: str, array: Array) -> None:
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return
    bad = ~np.isfinite(np.asarray(array))
    if bad.any():
        where = ", ".join(str(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}: {int(bad.sum())} NaN or infinite values, the first at [{where}]; remove or impute them"
        )


class Problem(eqx.Module):
    """A model, data and a loss: outputs x(θ), cost C and Jacobian D = ∂x/∂θ.

    Parameters
    ----------
    model
        ``model(params, input) -> (Q,)`` for one input; it is mapped over samples here. Pure: dropout, batch statistics
        and other state are refused by :meth:`check`.
    inputs, targets
        Arrays (N, ...) and (N, Q); ``inputs`` may be a pytree.
    loss
        :class:`SquaredError` by default: C = 1/(2N) Σₙ |xₙ − yₙ|² (2.47).
    weights
        Sample weights ω (N,), see :class:`Term`.
    trainable
        None: every floating array of the parameters. A predicate on leaves, or a pytree prefix of booleans, freezes the
        rest. Integer arrays are always frozen, and so are Python numbers, which are hyperparameters as in Equinox
        modules: write ``jnp.asarray(1.0)`` for one to train. Complex arrays are refused.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> problem = Problem(lambda w, z: w * z, jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [1.0]]))
    >>> float(problem.cost(jnp.array([1.0]))), problem.outputs(jnp.array([2.0])).tolist()
    (0.25, [[2.0], [4.0]])
    """

    terms: tuple[Term, ...]
    loss: AbstractLoss
    trainable: PyTree
    single: bool = eqx.field(static=True)

    def __init__(
        self,
        model: Callable[[Any, Any], Array],
        inputs: PyTree,
        targets: Any,
        loss: AbstractLoss | None = None,
        weights: Any = None,
        trainable: PyTree = None,
    ):
        self._build((Term(model, inputs, targets, weights=weights),), loss, trainable, single=True)

    @classmethod
    def from_terms(
        cls, terms: Sequence[Term], *, loss: AbstractLoss | None = None, trainable: PyTree = None
    ) -> "Problem":
        """Build a problem of several terms, each with its own function, samples and weight; outputs become a tuple."""
        terms = () if isinstance(terms, Term) else tuple(terms)
        if not terms or not all(isinstance(term, Term) for term in terms):
            raise ValueError("from_terms: expected a non-empty sequence of cf.Term(fn, samples, targets)")
        problem = cls.__new__(cls)
        problem._build(terms, loss, trainable, single=False)
        return problem

    def _build(self, terms: tuple[Term, ...], loss: AbstractLoss | None, trainable: PyTree, *, single: bool) -> None:
        loss = SquaredError() if loss is None else loss
        if not isinstance(loss, AbstractLoss):
            raise ValueError(f"loss must be cf.SquaredError(), cf.CrossEntropy() or cf.Loss(fn), got {loss!r}")
        for name, value in (("terms", terms), ("loss", loss), ("trainable", trainable), ("single", single)):
            object.__setattr__(self, name, value)
        if not is_concrete(terms):
            return
        if sum(float(term.weight) for term in terms) == 0:
            raise ValueError("all term weights are zero: at least one term needs a positive weight")
        for term in terms:
            if (bad := jax.vmap(loss.invalid_target)(term.targets)).any():
                where = int(jnp.argmax(bad))
                raise ValueError(
                    f"{type(loss).__name__} needs {loss.target_domain}, "
                    f"target {where} is {term.targets[where].tolist()}"
                )

    # --- parameters -------------------------------------------------------------------------------------------

    def partition(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """(trainable, frozen) parts of the parameters, None where the other part has the leaf."""
        spec = trainable_spec(params, self.trainable)
        return eqx.partition(params, spec)

    def ravel(self, params: PyTree) -> tuple[Float[Array, " K"], Callable[[Float[Array, " K"]], PyTree]]:
        """Return the trainable vector θ (K,) and the map from it back to full parameters."""
        theta, frozen = self.partition(params)
        flat, unravel = ravel_pytree(theta)
        return flat, lambda vector: eqx.combine(unravel(vector), frozen)

    # --- drawn samples ----------------------------------------------------------------------------------------

    @property
    def is_drawn(self) -> bool:
        """Whether any term draws its samples from a key."""
        return any(term.draw is not None for term in self.terms)

    def redrawn(self, key: Array) -> "Problem":
        """The problem on the samples of another key, one split of it per term; itself where all samples are fixed.

        Examples
        --------
        >>> import jax, jax.numpy as jnp
        >>> term = Term(lambda w, z: w * z, lambda key: jax.random.uniform(key, (5, 1)), lambda z: 3 * z)
        >>> problem = Problem.from_terms([term])
        >>> float(problem.cost(jnp.array([3.0]))), float(problem.redrawn(jax.random.key(1)).cost(jnp.array([3.0])))
        (0.0, 0.0)
        """
        if not self.is_drawn:
            return self
        keys = jax.random.split(key, len(self.terms))
        terms = tuple(term.redrawn(k) for term, k in zip(self.terms, keys, strict=True))
        return eqx.tree_at(lambda problem: problem.terms, self, terms)

    # --- output space -----------------------------------------------------------------------------------------

    @property
    def targets(self) -> OutputsLike:
        """y, like the outputs."""
        return self._like(tuple(term.targets for term in self.terms))

    @property
    def num_samples(self) -> Float[Array, ""]:
        """N = Σₖ Ω_k, the number of samples counted with their weights."""
        return sum((jnp.sum(term.weights) for term in self.terms[1:]), jnp.sum(self.terms[0].weights))

    @property
    def num_outputs(self) -> int:
        """n, the number of output entries."""
        return sum(term.targets.size for term in self.terms)

    @property
    def inner_product(self) -> Flat:
        """The diagonal of W, N w_k ω_kn / Ω_k, one entry per output (n,)."""
        N = self.num_samples
        rows = (N * term.weight * term.weights / jnp.sum(term.weights) for term in self.terms)
        return jnp.concatenate([jnp.repeat(w, t.targets.shape[1]) for w, t in zip(rows, self.terms, strict=True)])

    def flatten(self, outputs: OutputsLike) -> Flat:
        """Outputs-like to (n,)."""
        return jnp.concatenate([block.reshape(-1) for block in self._blocks(outputs)])

    def unflatten(self, flat: Flat) -> OutputsLike:
        """(n,) to outputs-like."""
        blocks, start = [], 0
        for term in self.terms:
            blocks.append(flat[start : start + term.targets.size].reshape(term.targets.shape))
            start += term.targets.size
        return self._like(tuple(blocks))

    def _blocks(self, outputs: OutputsLike) -> tuple[Array, ...]:
        return (outputs,) if self.single else tuple(outputs)

    def _like(self, blocks: tuple[Array, ...]) -> OutputsLike:
        return blocks[0] if self.single else blocks

    def _map(self, fn: Callable[..., Any], *outputs: OutputsLike) -> tuple[Array, ...]:
        """Apply a per-sample function of (outputs..., target) to every sample of every term."""
        blocks = zip(*(self._blocks(o) for o in outputs), strict=True) if outputs else [()] * len(self.terms)
        return tuple(jax.vmap(fn)(*rows, term.targets) for rows, term in zip(blocks, self.terms, strict=True))

    def _mean(self, per_sample: tuple[Array, ...]) -> Float[Array, ""]:
        terms = (
            term.weight * jnp.dot(term.weights, values) / jnp.sum(term.weights)
            for term, values in zip(self.terms, per_sample, strict=True)
        )
        return sum(terms, jnp.zeros((), self.terms[0].targets.dtype))

    # --- model ------------------------------------------------------------------------------------------------

    def outputs(self, params: PyTree) -> OutputsLike:
        """x(θ) on all samples: (N, Q), or a tuple of (Nᵢ, Qᵢ) for several terms (2.9)."""
        return self._like(_outputs(self._per_sample(params), self.partition(params)[0]))

    def cost(self, params: PyTree) -> Float[Array, ""]:
        """C(x(θ)), the weighted mean of the loss."""
        return self.cost_at(self.outputs(params))

    def cost_at(self, outputs: OutputsLike) -> Float[Array, ""]:
        """C at given outputs."""
        return self._mean(self._map(self.loss.value, outputs))

    def descent(self, outputs: OutputsLike) -> OutputsLike:
        """−W⁻¹∇ₓC, the direction of steepest descent in output space: −∇ℓ(xₙ, yₙ)/N for every sample.

        Written without W⁻¹, so that samples of weight 0 are no special case.
        """
        N = self.num_samples
        return self._like(tuple(-block / N for block in self._map(self.loss.gradient, outputs)))

    def gradient(self, outputs: OutputsLike) -> OutputsLike:
        """g = ∇ₓC (2.15), outputs-like; ∇_θC = Dᵀg."""
        return self.unflatten(-self.inner_product * self.flatten(self.descent(outputs)))

    def minimum(self) -> Float[Array, ""] | None:
        """C_min = inf over outputs of C in closed form (the label entropy for cross-entropy), or None."""
        if self.loss.minimum(self.terms[0].targets[0]) is None:
            return None
        return self._mean(self._map(self.loss.minimum))

    def equilibrium(self, outputs: OutputsLike) -> OutputsLike | None:
        """Where the Euclidean flow from ``outputs`` ends (y, or log y + c 1 of (2.95–2.104)), or None if not known."""
        first = self._blocks(outputs)[0][0]
        if self.loss.equilibrium(first, self.terms[0].targets[0]) is None:
            return None
        return self._like(self._map(self.loss.equilibrium, outputs))

    def jacobian(self, params: PyTree) -> Jacobian:
        """D = ∂x/∂θ at ``params`` (2.11), unweighted."""
        return Jacobian(self._per_sample(params), self.partition(params)[0], self.single)

    def _per_sample(self, params: PyTree) -> tuple[PerSample, ...]:
        _, frozen = self.partition(params)
        for term in self.terms:
            _check_shape(term, params)
        return tuple(PerSample(term.fn, term.samples, frozen) for term in self.terms)

    def check(self, params: PyTree, *, num: int = 8) -> None:
        """Raise ValueError if the model is not a function of its parameters and one sample, or not finite at the start.

        Calls the model on up to ``num`` samples twice, untransformed, and in reverse order: dropout, batch statistics
        and counters answer differently.
        """
        outputs = _compiled_outputs(self, params)
        for block in self._blocks(outputs):
            if not bool(jnp.all(jnp.isfinite(block))):
                raise ValueError(
                    "the model's outputs at the initial parameters are not finite: rescale inputs or parameters"
                )
        for term in self.terms:
            rows = [
                jax.tree.map(lambda leaf, i=i: leaf[i], term.samples) for i in range(min(num, term.targets.shape[0]))
            ]
            forward = [np.asarray(term.fn(params, row)) for row in rows]
            backward = [np.asarray(term.fn(params, row)) for row in reversed(rows)][::-1]
            if not all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True)):
                raise ValueError(
                    "the model answers differently when called twice: dropout, batch statistics and other state "
                    "are not supported; switch it to inference mode"
                )


@eqx.filter_jit
def _compiled_outputs(problem: Problem, params: PyTree) -> OutputsLike:
    """Operation by operation it takes 10 ms, as much as a step of a small fit."""
    return problem.outputs(params)


def _outputs(blocks: tuple[PerSample, ...], theta: PyTree) -> tuple[Array, ...]:
    return tuple(block(theta) for block in blocks)


def _check_shape(term: Term, params: PyTree) -> None:
    """One clear line instead of a broadcasting surprise when the model's output is not like a row of the targets."""
    sample = jax.tree.map(lambda leaf: leaf[0], term.samples)
    out = eqx.filter_eval_shape(term.fn, params, sample)
    expected = term.targets.shape[1:]
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise ValueError(
            f"the model must return one array {expected}, got a {type(out).__name__}: return the outputs only"
        )
    if out.shape != expected:
        raise ValueError(f"the model returns shape {out.shape} for one input but targets have {expected} per sample")
    if out.dtype != term.targets.dtype:
        raise ValueError(f"the model returns {out.dtype} but targets are {term.targets.dtype}: cast one to the other")
