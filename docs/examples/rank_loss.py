# %% [markdown]
# # When the parameters cannot follow
#
# *The straight line is promised where the Jacobian has full rank. What happens where it has not, and can one know
# before?*

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["retina"]
import jax
import jax.numpy as jnp
import numpy as np

import chordflow as cf
from chordflow import figures
from chordflow.projection import principal_plane

jax.config.update("jax_enable_x64", True)

inputs = jax.random.uniform(jax.random.key(0), (20, 2), minval=-1, maxval=1)
targets = jnp.sin(3 * inputs[:, :1]) * inputs[:, 1:]
# 13 parameters for 20 outputs, and 121
small, small_params = cf.models.mlp((2, 3, 1), activation="tanh", seed=1)
large, large_params = cf.models.mlp((2, 30, 1), activation="tanh", seed=0)

# %% [markdown]
# ## Rank is a question of tolerance
#
# Thirteen parameters cannot move twenty outputs in all directions: D has at most rank 13. With 121 it may have rank
# 20. In floating-point numbers the singular values of a network decay without a gap, so "rank" depends on where one
# draws the line. Chordflow draws it by damping: $\sigma$ counts as $\sigma^2/(\sigma^2+\lambda)$, with $\sqrt\lambda
# = \varepsilon\, \sigma_{max}$, and the sum of these is the *effective dimension*.

# %%
problem = cf.Problem(small, inputs, targets)
roomy = cf.Problem(large, inputs, targets)
for name, p, start in (
    ("small", problem, small_params),
    ("large", roomy, large_params),
):
    sigma = cf.geometry.spectrum(p, start)
    policy = cf.geometry.rank_policy(p, start, cf.filters.Damped(eps=1e-3))
    dimension = float(policy.effective_dimension(sigma))
    print(f"{name}: {sigma.size} singular values, {sigma[0]:.2g} to {sigma[-1]:.0e}")
    print(f"    effective dimension {dimension:.1f} of 20")

# %% [markdown]
# ## What the flow does
#
# The adapted flow moves the outputs with the projection P on what D reaches: $x' = -P g$ (2.27), *constrained*
# gradient flow. On the clock of the interpolation (2.51) the deviation from the chord, $r(t) = \tilde x(t) - ((1-t)
# x(0) + t y)$, obeys
#
# $$r' = -\frac{1}{1-t} P_t\, r + (1 - P_t)(x(0) - y), \qquad r(0) = 0, \qquad (2.57)$$
#
# and (2.58–2.59) solve it: $r(t) = \int_0^t U_{t,t'} (1 - P_{t'}) (x(0) - y)\, dt'$. The source is exactly the part
# of the chord that the parameters cannot make. We run both networks and keep that part, too.

# %%
ts = jnp.linspace(0, 0.99, 100)
quantities = (
    "outputs",
    "cost",
    "params",
    "unreachable_fraction",
    "effective_dimension",
)


def run(p, start):
    return cf.evolve(
        p,
        start,
        cf.adapted(eps=1e-3),
        clock=cf.clocks.Interpolation(20),
        ts=ts,
        save=quantities,
    )


runs = {"small": run(problem, small_params), "large": run(roomy, large_params)}
for name, traj in runs.items():
    fraction = traj.saved["unreachable_fraction"]
    print(
        f"{name}: {fraction[0]:.1e} of the velocity cannot be made at the start, {fraction[-1]:.1e} at t = 0.99"
    )
    print(f"    cost {traj.costs[0]:.2g} -> {traj.costs[-1]:.1e}")

# %%
planes = [
    principal_plane(
        {name: np.asarray(traj.outputs)},
        (np.asarray(traj.outputs[0]), np.asarray(targets)),
    )
    for name, traj in runs.items()
]
figures.draw_planes(planes)

# %% [markdown]
# Each network starts elsewhere and so has a chord of its own; they are drawn on top of each other.
#
# **What to look for.** *large* stays on its chord, up to what damping leaves. *small* leaves it at once, because from
# the start a part of the velocity is out of reach. It does come close to the labels all the same: the adapted flow
# aims at them from wherever it is, and D turns on the way, so that other directions come into reach. At the end
# nearly all of what is left is out of reach, and it stands still beside the labels.
#
# ## The deviation was predictable
#
# `cf.theory.deviation` integrates (2.57) from the matrices $S_t$ alone (S is P with damping), knowing nothing of
# networks. It needs S along the run, which `cf.geometry.transfer` computes from saved parameters.

# %%
filter_ = cf.filters.Damped(eps=1e-3)
traj = runs["small"]
policy = cf.geometry.rank_policy(problem, small_params, filter_)
S = jax.vmap(lambda p: cf.geometry.transfer(problem, p, filter_, policy))(
    traj.saved["params"]
)
predicted = cf.theory.deviation(traj.outputs[0], targets, traj.ts, S)
chord = cf.theory.linear_interpolation(traj.outputs[0], targets, traj.ts)
measured = traj.outputs - chord


def largest(r):
    return np.asarray(jnp.max(jnp.abs(r), axis=(1, 2)))


figures.deviation_curve(
    np.asarray(ts), largest(measured), largest(predicted.reshape(measured.shape))
)

# %%
gap = float(jnp.max(jnp.abs(predicted.reshape(measured.shape) - measured)))
print(
    f"largest deviation {largest(measured).max():.2f}; prediction and measurement differ by {gap:.0e}"
)
assert gap < 0.005 * largest(measured).max()

# %% [markdown]
# What is left between them is interpolation: S is known at 100 times only, and the integral is over all of them.
#
# ## Watch it, or stop it
#
# A run need not end in a surprise. `unreachable_fraction` is among what can be saved; an event ends a run when too
# much of the velocity cannot be made:

# %%
stopped = cf.evolve(
    problem,
    small_params,
    cf.straight(eps=1e-3),
    events=(cf.events.VelocityUnreachable(0.2),),
    save=("cost", "unreachable_fraction"),
)
print(stopped.result_name, f"at t = {float(stopped.stats['t_last']):.3f}")

# %% [markdown]
# ## What it means
#
# * A straight flow that is not straight is a *finding about the network*, not a failure of the solver: the
#   unreachable fraction says how much of the labels it cannot take up from where it is.
# * Remedies are more parameters, fewer samples, smoother activations, or a smaller `eps`. Damping alone makes 1 − S
#   nonzero, so look at whether the fraction falls with `eps`.
# * Full rank along the whole path is a hypothesis, not a theorem: rank can be lost on the way. Runs end with a code
#   and keep the last good state.
