"""Tiny problems that the tests share; equal shapes and functions, so that they share compiled programs as well."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import chordflow as cf

WIDE_N, WIDE_Q = 4, 2  # n = 8 outputs, K = 32 parameters
DEFICIENT_N = 20  # n = 20 outputs, K = 10 parameters


def perceptron(params: dict[str, jax.Array], z: jax.Array) -> jax.Array:
    """One hidden layer of tanh units; the only network of these tests, so it is compiled once per shape."""
    return params["out"] @ jnp.tanh(params["in"] @ z + params["bias"]) + params["shift"]


def perceptron_params(
    seed: int, inputs: int, hidden: int, outputs: int, dtype: Any = jnp.float64
) -> dict[str, jax.Array]:
    """Standard normal input weights and biases, output weights of variance 1/hidden, no output bias."""
    rng = np.random.default_rng(seed)
    params = {
        "in": rng.normal(size=(hidden, inputs)),
        "bias": rng.normal(size=hidden),
        "out": rng.normal(size=(outputs, hidden)) / np.sqrt(hidden),
        "shift": np.zeros(outputs),
    }
    return {name: jnp.asarray(value, dtype) for name, value in params.items()}


def wide(
    seed: int = 0, *, targets: Any = None, loss: Any = None, dtype: Any = jnp.float64, **options: Any
) -> cf.Problem:
    """More parameters than outputs: 2-6-2 on 4 samples, D of full rank n = 8 < K = 32."""
    rng = np.random.default_rng([1, seed])
    inputs, y = rng.normal(size=(WIDE_N, 2)), rng.normal(size=(WIDE_N, WIDE_Q))
    y = y if targets is None else targets
    return cf.Problem(perceptron, jnp.asarray(inputs, dtype), jnp.asarray(y, dtype), loss=loss, **options)


def wide_params(seed: int = 0, dtype: Any = jnp.float64) -> dict[str, jax.Array]:
    """Parameters for :func:`wide`."""
    return perceptron_params(seed, 2, 6, WIDE_Q, dtype)


def deficient(labels: str = "sine") -> cf.Problem:
    """Fewer parameters than outputs: 1-3-1 tanh on 20 samples, the rank-deficient case of theory and tests."""
    z = np.linspace(-1, 1, DEFICIENT_N)[:, None]
    y = {"sine": np.sin(2 * z), "noise": np.random.default_rng(7).normal(size=z.shape)}[labels]
    return cf.Problem(perceptron, jnp.asarray(z), jnp.asarray(y))


def deficient_params(seed: int = 31) -> dict[str, jax.Array]:
    """Parameters for :func:`deficient`; with seed 31 the singular values span 6.9 to 5e-10 without a gap."""
    return perceptron_params(seed, 1, 3, 1)


def curved(params: jax.Array, sample: dict[str, jax.Array]) -> jax.Array:
    """b + A sin δ + (Cδ)², δ = θ − θ₀: at θ₀ the derivative is A to the last bit, elsewhere it is not."""
    delta = params - sample["point"]
    return sample["offset"] + sample["A"] @ jnp.sin(delta) + (sample["C"] @ delta) ** 2


def prescribed(matrix: Any, outputs: int = 1, *, weights: Any = None, seed: int = 0) -> tuple[cf.Problem, jax.Array]:
    """A nonlinear problem and a point where its Jacobian is ``matrix`` (n, K), with ``outputs`` rows to a sample."""
    A = jnp.asarray(matrix)
    n, K = A.shape
    rng = np.random.default_rng([2, seed])

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), A.dtype)

    num = n // outputs
    point = draw(K)
    samples = {
        "A": A.reshape(num, outputs, K),
        "C": draw(num, outputs, K),
        "offset": draw(num, outputs),
        "point": jnp.broadcast_to(point, (num, K)),
    }
    return cf.Problem(curved, samples, draw(num, outputs), weights=weights), point


def with_spectrum(n: int, K: int, sigma: Any, seed: int = 0) -> np.ndarray:
    """U diag(σ) Vᵀ (n, K) with random orthonormal U and V and len(σ) ≤ min(n, K)."""
    rng = np.random.default_rng([3, seed])
    rank = len(sigma)
    U, V = (np.linalg.qr(rng.normal(size=(m, rank)))[0] for m in (n, K))
    return (U * np.asarray(sigma)) @ V.T


def exactly_deficient(n: int, K: int, rank: int, seed: int = 0) -> np.ndarray:
    """A matrix of small integers, hence without rounding, whose rank is exactly ``rank``."""
    rng = np.random.default_rng([4, seed])
    return (rng.integers(-3, 4, size=(n, rank)) @ rng.integers(-3, 4, size=(rank, K))).astype(float)


def literal_cost(problem: cf.Problem, outputs: Any) -> float:
    """C of theory by loops over terms and samples, in NumPy, for squared error and cross-entropy."""
    blocks = (outputs,) if problem.single else outputs
    total = 0.0
    for term, x in zip(problem.terms, blocks, strict=True):
        omega = np.asarray(term.weights)
        for n in range(len(omega)):
            xn, yn = np.asarray(x[n]), np.asarray(term.targets[n])
            if isinstance(problem.loss, cf.CrossEntropy):
                value = np.log(np.sum(np.exp(xn))) * np.sum(yn) - yn @ xn
            else:
                value = 0.5 * np.sum((xn - yn) ** 2)
            total += float(term.weight) * omega[n] * value / omega.sum()
    return total


def flat_params(params: Any) -> np.ndarray:
    """All leaves as one vector."""
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(params)])
