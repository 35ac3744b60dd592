# %% [markdown]
# # A first flow
#
# *What happens if we do not ask the parameters of a network to go downhill, but its outputs to go straight to the
# labels?*
#
# We take twelve points of a curve and a small network, let the outputs travel the chord from where they are to the
# labels, and look at what the network does on the way.

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
jax.config.update("jax_enable_x64", True)  # flows are integrated to many digits

# %% [markdown]
# ## A problem
#
# A problem is a model, inputs and targets. The model is any function of parameters and *one* input; `params` may be
# any pytree.

# %%
model, params = cf.models.mlp((1, 40, 1), activation="tanh", seed=0)
inputs = jnp.linspace(-1, 1, 12)[:, None]
targets = jnp.sin(4 * inputs) + 0.5 * jnp.cos(9 * inputs)

problem = cf.Problem(model, inputs, targets)
print(
    f"{problem.outputs(params).size} outputs, {problem.ravel(params)[0].size} parameters"
)
print(f"cost C = 1/(2N) Σ|x − y|² = {problem.cost(params):.3f}")

# %% [markdown]
# ## A flow
#
# A flow says where the outputs should go, and how the parameters make them. `cf.straight()` asks for the constant
# velocity y − x(0), so that at every time t between 0 and 1
#
# $$x(t) = (1 - t)\, x(0) + t\, y, \qquad (2.53)$$
#
# and solves for the parameters' velocity with the pseudoinverse of the Jacobian $D = \partial x/\partial\theta$:
# $\theta' = D^{+} (y - x(0))$. With 121 parameters for 12 outputs D can have full rank, and then nothing stands in
# the way.
#
# `save` takes anything that can be computed from the parameters; here the network on a fine grid.

# %%
grid = jnp.linspace(-1.15, 1.15, 200)[:, None]


def on_grid(t, p):
    del t
    return jax.vmap(lambda z: model(p, z)[0])(grid)


traj = cf.evolve(
    problem,
    params,
    cf.straight(),
    ts=jnp.linspace(0, 1, 11),
    save={"outputs": None, "cost": None, "grid": on_grid},
)
print(
    traj.result_name,
    f"after {int(traj.stats['num_steps'])} steps: cost {traj.costs[0]:.2f} -> {traj.costs[-1]:.0e}",
)

# %% [markdown]
# ## The outputs
#
# One line for each of the twelve outputs over time. They are straight, and all arrive at t = 1, each with its own
# constant speed.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
left.plot(traj.ts, traj.outputs[:, :, 0], color="#0072B2", linewidth=1)
left.plot(np.ones(12), targets[:, 0], "*", color="#D55E00")
left.set(
    xlabel="t", ylabel="outputs x(t)", title="Twelve outputs, twelve straight lines"
)
colours = plt.get_cmap("viridis")(np.linspace(0.05, 0.9, 11))
for t, curve, colour in zip(traj.ts, traj.saved["grid"], colours, strict=True):
    right.plot(
        grid[:, 0],
        curve,
        color=colour,
        linewidth=1.2,
        label=f"t = {t:.1f}" if t in (0.0, 0.5, 1.0) else None,
    )
right.plot(inputs[:, 0], targets[:, 0], "o", color="#D55E00", markersize=4)
right.set(xlabel="input", title="The network on the way")
_ = right.legend(frameon=False)

# %% [markdown]
# **What to look for.** On the right, the network between the points is under nobody's orders: only the twelve outputs
# are. It changes smoothly because it is one smooth function of few parameters.
#
# ## How straight?
#
# `cf.theory` has what the run should do. It shares no code with the flow, so agreement means something.

# %%
chord = cf.theory.linear_interpolation(traj.outputs[0], targets, traj.ts)
off = float(jnp.max(jnp.abs(traj.outputs - chord)))
print(f"largest distance from the chord: {off:.0e}")

# Squared error along a straight line is a parabola: C(t) = (1 − t)² C(0).
print(f"cost at t = 0.5 over cost at the start: {traj.costs[5] / traj.costs[0]:.9f}")
assert off < 1e-6

# %% [markdown]
# The cost at half time is a quarter of that at the start, as (1 − t)² says.
#
# ## And the parameters?
#
# Nothing is straight there. The outputs move at constant speed; the parameters take whatever turns that needs.

# %%
run = cf.evolve(
    problem,
    params,
    cf.straight(),
    ts=jnp.linspace(0, 1, 11),
    save=("outputs", "params"),
)
theta = jnp.stack([problem.ravel(run.params_saved(i))[0] for i in range(11)])
for name, path in (("outputs", run.outputs), ("parameters", theta)):
    print(
        f"{name}: path {cf.geometry.straightness(path):.4f} times as long as its chord"
    )

# %% [markdown]
# ## What it means
#
# Training has become *solving*: no learning rate, a known path, a known end, and a number that says how far from the
# path a run is. The hypothesis is that D keeps full rank on the way. [Rank loss](rank_loss.ipynb) shows what happens
# where it does not; [straight against standard](straight_against_standard.ipynb) why ordinary gradient descent bends
# away.
