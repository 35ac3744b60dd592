# %% [markdown]
# # The kernel of a model
#
# *How does a network generalise from one sample to the next, before it has seen any label?*
#
# The answer to first order is one matrix, $G = D D^\top$ with the Jacobian D of outputs by parameters: the empirical
# neural tangent kernel. Chordflow computes it exactly, for any JAX model, without ever forming D.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["retina"]
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import chordflow as cf
from chordflow import figures

plt.rcParams.update(figures.RC)
jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## A convolutional network and some digits

# %%
data = cf.data.load("digits", samples=60, seed=0)
order = np.argsort(np.argmax(data.targets, axis=1), kind="stable")
inputs = jnp.asarray(data.inputs)[order]
classes = np.argmax(data.targets, axis=1)[order]
model, params = cf.models.cnn((8, 8), 10, widths=(8, 16), activation="tanh", seed=0)

print(cf.gram_plan(model, params, inputs))

# %% [markdown]
# The plan comes from shapes alone: for each leaf of the parameters the rule it gets and why, and what all of it
# costs. Nothing has been computed yet.
#
# ## The matrix
#
# `cf.gram` gives all of it, (N, Q, N, Q); `cf.gram_trace` sums over the outputs, which is what one looks at and is
# ten times cheaper here.

# %%
G = cf.gram(model, params, inputs)
T = cf.gram_trace(model, params, inputs)
print(
    G.shape,
    T.shape,
    "trace of one is the other:",
    bool(jnp.allclose(jnp.einsum("nqmq->nm", G), T)),
)

size = jnp.sqrt(jnp.diagonal(T))
similarity = np.asarray(T / size[:, None] / size[None, :])
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
image = left.imshow(similarity, cmap="viridis")
left.grid(False)
figure.colorbar(image, ax=left, label="cosine")
edges = np.flatnonzero(np.diff(classes)) + 0.5
left.set(
    xticks=edges,
    yticks=edges,
    xticklabels=[],
    yticklabels=[],
    title="Tangent kernel, samples sorted by class",
)
eigenvalues = np.linalg.eigvalsh(np.asarray(G).reshape(600, 600))[::-1]
right.semilogy(np.arange(1, 601), eigenvalues, color="#0072B2")
_ = right.set(xlabel="rank", ylabel="eigenvalue σ²", title="Its spectrum")

# %% [markdown]
# **What to look for.** Squares on the diagonal: digits of one class are alike *for this network* before any training.
# Right, the spectrum has a few large values, then decays without a gap over many powers of ten; that is why "the
# rank" is a question of tolerance.
#
# ## It predicts training
#
# If the kernel did not change, gradient flow with squared error would have a closed form,
#
# $$x(s) = y + e^{-G_0 s/N} (x(0) - y).$$
#
# It does change, and less so the wider the network: compare prediction and run for two widths of a plain network on a
# curve.

# %%
z = jnp.linspace(-1, 1, 12)[:, None]
y = jnp.sin(3 * z)
times = jnp.linspace(0, 3 * len(z), 31)
results = {}
for width in (10, 300):
    net, start = cf.models.mlp((1, width, 1), activation="tanh", seed=0)
    problem = cf.Problem(net, z, y)
    run = cf.evolve(
        problem,
        start,
        cf.standard(),
        ts=times,
        save=("outputs", "cost"),
        max_steps=20_000,
    )
    G_0 = cf.gram(net, start, z).reshape(12, 12)
    G_1 = cf.gram(net, run.params, z).reshape(12, 12)
    frozen = cf.theory.frozen_kernel(run.outputs[0], y, times, G_0)
    results[width] = (
        np.asarray(run.costs),
        np.asarray(jnp.mean((frozen - y) ** 2, axis=(1, 2)) / 2),
    )
    off = jnp.linalg.norm(frozen[-1] - run.outputs[-1]) / jnp.linalg.norm(
        run.outputs[0] - y
    )
    print(
        f"width {width}: kernel drift {cf.geometry.kernel_drift(G_1, G_0):.1e}, prediction off by {off:.2%} of the way"
    )

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained", sharey=True)
for ax, (width, (measured, predicted)) in zip(axes, results.items(), strict=True):
    ax.semilogy(
        times / 12,
        predicted,
        color="#0072B2",
        alpha=0.3,
        linewidth=6,
        label="frozen kernel",
    )
    ax.semilogy(
        times / 12, measured, color="#CC79A7", linestyle="--", label="standard flow"
    )
    ax.set(xlabel="s / N", title=f"width {width}")
axes[0].set_ylabel("cost")
_ = axes[0].legend(frameon=False)

# %% [markdown]
# ## The same matrix in other shapes
#
# `cf.gram_blocks` has each sample with itself, `cf.gram_mv` multiplies by G without forming it, `cf.gram(model,
# params, a, b)` compares two sets, and all of it works in `jit` and `vmap`. It agrees with the definition:

# %%
few = inputs[:4]
D = cf.Problem(model, few, jnp.zeros((4, 10))).jacobian(params).as_matrix()
gap = jnp.max(jnp.abs(cf.gram(model, params, few).reshape(40, 40) - D @ D.T))
print(f"against D Dᵀ: {gap:.0e}, entries up to {jnp.max(D @ D.T):.0f}")

# %% [markdown]
# ## What it means
#
# One matrix says which samples a network thinks alike, which directions it learns first, and whether it can follow
# the labels at all. What it costs for large models, and when to take something else, is in [the tangent kernel of any
# JAX model](../gram.md).
