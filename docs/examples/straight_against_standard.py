# %% [markdown]
# # Straight against standard
#
# *Gradient descent goes downhill along the steepest way. Where do the outputs go meanwhile, and what does the
# straight line do that it does not?*

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["retina"]
import jax
import jax.numpy as jnp
import numpy as np

import chordflow as cf
from chordflow import figures

jax.config.update("jax_enable_x64", True)

model, params = cf.models.mlp((2, 24, 1), activation="tanh", seed=1)
inputs = jax.random.uniform(jax.random.key(0), (16, 2), minval=-1, maxval=1)
targets = jnp.sin(3 * inputs[:, :1]) * inputs[:, 1:]
problem = cf.Problem(model, inputs, targets)
num = inputs.shape[0]

# %% [markdown]
# ## One family
#
# With the Jacobian D of all outputs by all parameters, gradient flow is $\theta' = -\nabla_\theta C = -D^\top g$
# (2.3), where $g$ is the gradient of the cost by the outputs. The adapted flow replaces $D^\top$ by the
# pseudoinverse, $\theta' = -D^{+} g$ (2.26). Between them lies a family with the same equilibria (Theorem 2.3),
#
# $$\theta' = -((1-\tau)\, 1 + \tau\, (D^\top D)^{+}) \nabla_\theta C, \qquad 0 \le \tau \le 1.$$
#
# Outputs move with $x' = -((1-\tau) D D^\top + \tau P)\, g$: with the tangent kernel $D D^\top$ at one end, and with
# the projection P, which is 1 at full rank, at the other.
#
# Gradient flow has its own time s; all three run to s = 6 N.

# %%
flows = {
    "standard": cf.standard(),
    "interpolated(0.5)": cf.interpolated(0.5),
    "adapted": cf.adapted(),
}
# Saves are close together at the start, where the standard flow hurries.
ts = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-3 * num, 6 * num, 60)])
runs = {
    name: cf.evolve(problem, params, flow, ts=ts, max_steps=20_000)
    for name, flow in flows.items()
}
for name, run in runs.items():
    print(
        f"{name:18s} cost {run.costs[0]:.2g} -> {run.costs[-1]:.1e} in {int(run.stats['num_steps'])} steps"
    )

# %% [markdown]
# ## Where the outputs go
#
# Sixteen outputs are a point in sixteen dimensions. The picture shows the plane that holds the chord from x(0) to the
# labels y and the direction in which the flows leave it most.

# %%
paths = {name: np.asarray(run.outputs) for name, run in runs.items()}
figures.output_plane(paths, chord=(paths["adapted"][0], np.asarray(targets)))

# %% [markdown]
# **What to look for.** *adapted* stays on the chord. *standard* makes a detour: the kernel has large eigenvalues and
# small ones, and what lies along the large ones is learnt first. That is how the outputs travel far along some
# directions while others hardly move.
#
# ## The cost has a law, or not
#
# At full rank the adapted flow knows nothing of the network any more: $x(s) - y = e^{-s/N} (x(0) - y)$ (2.48), so the
# cost falls by $e^{-2s/N}$ for *any* network and *any* data (2.49). The wide pale line is this prediction; it was not
# fitted.

# %%
decay = cf.theory.exponential_decay(
    runs["adapted"].outputs[0], targets, runs["adapted"].ts, num
)
predicted = np.asarray(jnp.mean((decay - targets) ** 2, axis=(1, 2)) / 2)
figures.cost_curves(
    {name: (np.asarray(run.ts), np.asarray(run.costs)) for name, run in runs.items()},
    num,
    predictions={"adapted": (np.asarray(runs["adapted"].ts), predicted)},
)

# %%
error = float(np.max(np.abs(np.asarray(runs["adapted"].costs) / predicted - 1)))
print(f"adapted: cost and its law differ by {error:.0e} of the cost at most")
assert error < 1e-3

# %% [markdown]
# ## Why standard bends: the spectrum
#
# Along an eigenvector of $D D^\top$ with eigenvalue $\sigma^2$ the standard flow closes the gap like $e^{-\sigma^2
# s/N}$. Between the fastest and the slowest lie many powers of ten; an explicit solver has to follow the fastest
# while it waits for the slowest.

# %%
sigma = cf.geometry.spectrum(problem, params)
fast, slow = float(sigma[0]) ** 2, float(sigma[-1]) ** 2
print(
    f"σ² from {fast:.3g} to {slow:.1e}: the slowest direction needs s/N of about {1 / slow:.0e}"
)
steps = cf.expected_steps(problem, params, cf.standard(), num / slow)
print(f"steps that stability asks of the standard flow until then: {steps:.0e}")

# %% [markdown]
# ## The end of the line
#
# On the clock $t = 1 - e^{-s/N}$ (2.51) the adapted flow is the straight line at constant speed, and the end, which
# gradient flow reaches never, is at t = 1. `cf.straight()` integrates that directly.

# %%
straight = cf.evolve(problem, params, cf.straight())
print(
    f"straight: cost {straight.costs[0]:.2g} -> {straight.costs[-1]:.0e} in {int(straight.stats['num_steps'])} steps"
)
standard = runs["standard"]
print(
    f"standard: cost {standard.costs[-1]:.1e} in {int(standard.stats['num_steps'])} steps, and not there"
)

# %% [markdown]
# ## What it means
#
# The straight flow pays for a linear solve in every step and gets the end in return; the standard flow pays for
# products only, and its steps are bounded by the largest eigenvalue while its progress is bounded by the smallest.
# Which is better for *learning* is another question: stopping gradient descent early leaves the small directions
# alone, which is what one wants of noise. [Which flow, which filter](../choose.md) has the decision in a table.
