# %% [markdown]
# # A differential equation as a flow of residuals
#
# *A physics-informed network is trained until the residual of its equation vanishes. How far down does one get, and
# how fast?*

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["retina"]
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import chordflow as cf
from chordflow import figures

plt.rcParams.update(figures.RC)
jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The problem
#
# A boundary layer: $-\nu\, u'' + u' = 1$ on [0, 1] with $u(0) = u(1) = 0$. For small ν the solution climbs along a
# straight line and drops within a distance of about ν at the right end,
#
# $$u(z) = z - \frac{e^{(z-1)/\nu} - e^{-1/\nu}}{1 - e^{-1/\nu}}.$$

# %%
nu = 0.1
model, params = cf.models.mlp((1, 24, 1), activation="tanh", seed=0)


def exact(z):
    return z - (jnp.exp((z - 1) / nu) - jnp.exp(-1 / nu)) / (1 - jnp.exp(-1 / nu))


def residual(params, z):
    _, first, second = cf.physics.derivatives(lambda z: model(params, z)[0], z)
    return jnp.reshape(-nu * second[0] + first[0] - 1, (1,))


# %% [markdown]
# The residual at interior points and the values at both ends are two *terms*: per-sample functions with their own
# samples, targets and weight. Each term moves on its own straight line, on one clock. Points are denser where the
# layer is.

# %%
interior = (1 - (1 - jnp.linspace(0, 1, 80)) ** 2)[:, None]
ends = jnp.array([[0.0], [1.0]])
problem = cf.Problem.from_terms(
    [
        cf.Term(residual, interior, jnp.zeros((80, 1))),
        cf.Term(model, ends, jnp.zeros((2, 1)), weight=10.0),
    ]
)
grid = jnp.linspace(0, 1, 400)[:, None]


@jax.jit
def error(params):
    return jnp.max(jnp.abs(jax.vmap(lambda z: model(params, z))(grid) - exact(grid)))


print(
    f"{problem.ravel(params)[0].size} parameters, cost {problem.cost(params):.2f}, largest error {error(params):.2f}"
)

# %% [markdown]
# ## Fit
#
# `cf.fit` follows the straight line in large damped steps of higher order, several with one decomposition.

# %%
fit = cf.fit(problem, params, max_steps=60)
print(
    f"{fit.result_name} after {len(fit.history.cost)} steps by {fit.method}: largest error {error(fit.params):.1e}"
)

# %% [markdown]
# ## The same with Adam
#
# Everything equal but the steps: the same start, points and weights. The rate is the better one of 1e-2 and 3e-3, and
# falls to zero along a cosine.

# %%
tx = optax.adam(optax.cosine_decay_schedule(1e-2, 5000))


@jax.jit
def adam(params):
    def step(carry, _):
        params, state = carry
        cost, gradient = jax.value_and_grad(problem.cost)(params)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), cost

    (params, _), costs = jax.lax.scan(
        step, (params, tx.init(params)), None, length=5000
    )
    return params, costs


adam_params, adam_costs = adam(params)
print(f"Adam, 5000 steps: largest error {error(adam_params):.1e}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
left.loglog(np.arange(1, 5001), adam_costs, color="#E69F00", label="Adam")
left.loglog(
    np.arange(1, len(fit.history.cost) + 1),
    fit.history.cost,
    "o-",
    color="#0072B2",
    markersize=3,
    label="cf.fit",
)
left.set(xlabel="step", title="Cost of the residuals")
left.legend(frameon=False)
for name, p, colour in (
    ("Adam", adam_params, "#E69F00"),
    ("cf.fit", fit.params, "#0072B2"),
):
    gap = jnp.abs(jax.vmap(lambda z, p=p: model(p, z))(grid) - exact(grid))
    right.semilogy(grid[:, 0], gap[:, 0] + 1e-17, color=colour, label=name)
_ = right.set(xlabel="z", title="|u − exact|")

# %% [markdown]
# **What to look for.** Left, a cliff against a slope: a step of `cf.fit` costs a singular value decomposition and
# sees all directions at once; a step of Adam costs one gradient. Right, where the error is left.
#
# ## Why it is hard for first-order methods
#
# The Jacobian of the residuals has singular values over many powers of ten. A gradient step closes the gap along each
# of them in proportion to σ², so that all but the first few wait.

# %%
sigma = cf.geometry.spectrum(problem, params)
for i in (0, 9, 19, 29):
    print(
        f"σ number {i + 1}: {sigma[i]:.1e}; relative rate (σ/σ_max)² = {(sigma[i] / sigma[0]) ** 2:.0e}"
    )

# %% [markdown]
# ## What it means
#
# Where residuals can be driven to zero and parameters are few, solving beats descending. With noise, or with too many
# points for a decomposition, it does not: [how it compares](../compare.md) and [limits](../limits.md) say when to
# take something else. `cf.physics` has Poisson's, the heat and Burgers' equation ready-made, and [differential
# equations](../physics.md) says how to write your own.
