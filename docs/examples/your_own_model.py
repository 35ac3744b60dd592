# %% [markdown]
# # Your own model
#
# *My network is an Equinox module, or a Flax one, or a function I wrote. What must I change?*
#
# Nothing: a model is any function of parameters and one input, and parameters are any pytree.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["retina"]
import equinox as eqx
import jax
import jax.numpy as jnp
from flax import linen

import chordflow as cf

jax.config.update("jax_enable_x64", True)

inputs = jax.random.uniform(jax.random.key(0), (16, 2), minval=-1, maxval=1)
targets = jnp.sin(3 * inputs[:, :1]) * inputs[:, 1:]

# %% [markdown]
# ## A function
#
# It sees one input, not a batch; Chordflow maps it over the samples.

# %%
keys = jax.random.split(jax.random.key(1), 2)
plain = {
    "w": jax.random.normal(keys[0], (2, 30)),
    "b": jnp.zeros(30),
    "v": jax.random.normal(keys[1], (30, 1)) / 30**0.5,
}


def network(params, z):
    return jnp.tanh(z @ params["w"] + params["b"]) @ params["v"]


def travel(model, params, **options):
    """Go straight to the labels and say how it went."""
    problem = cf.Problem(model, inputs, targets, **options)
    traj = cf.evolve(problem, params, cf.straight(), ts=jnp.array([0.0, 0.5, 1.0]))
    off = jnp.max(
        jnp.abs(
            traj.outputs
            - cf.theory.linear_interpolation(traj.outputs[0], targets, traj.ts)
        )
    )
    size = problem.ravel(params)[0].size
    print(
        f"{size} trainable parameters, cost {traj.costs[0]:.2f} -> {traj.costs[-1]:.0e}, off the chord by {off:.0e}"
    )
    return traj


plain_run = travel(network, plain)

# %% [markdown]
# ## Equinox
#
# The module *is* the parameters. Its arrays are trained; functions and numbers in it are structure. What comes back
# is a module.

# %%
module = eqx.nn.MLP(
    2, 1, 30, depth=2, activation=jnp.tanh, key=jax.random.key(2), dtype=jnp.float64
)
equinox_run = travel(lambda net, z: net(z), module)
print(
    "a module again:",
    type(equinox_run.params).__name__,
    equinox_run.params(inputs[0]),
    "for",
    targets[0],
)

# %% [markdown]
# ## Flax
#
# `apply` takes parameters and input, which is what a model is. Flax makes float32 parameters unless told otherwise,
# and flows want float64: `param_dtype` says so.


# %%
class Net(linen.Module):
    @linen.compact
    def __call__(self, z):
        z = jnp.tanh(linen.Dense(30, param_dtype=jnp.float64)(z))
        return linen.Dense(1, param_dtype=jnp.float64)(z)


net = Net()
variables = net.init(jax.random.key(3), inputs[0])
flax_run = travel(net.apply, variables)
print(jax.tree.map(jnp.shape, flax_run.params))

# %% [markdown]
# ## Only a part of it
#
# `trainable` freezes leaves: a pytree of booleans that is a prefix of the parameters, or a predicate on leaves.
# Integer arrays are always frozen. Here the first layer stays as it is, a random-feature model: outputs are linear in
# what is left, D never changes, and one step would do.

# %%
frozen = travel(network, plain, trainable={"w": False, "b": False, "v": True})
print("the first layer did not move:", bool(jnp.all(frozen.params["w"] == plain["w"])))

# %% [markdown]
# ## What is refused, and how
#
# A mistake is one line that says what was got, what was expected and what to do. A model that returns a scalar:

# %%
try:
    cf.Problem(lambda p, z: network(p, z)[0], inputs, targets).outputs(plain)
except ValueError as error:
    print(error)

# %% [markdown]
# And one that is not a function of its inputs alone, because it counts its calls, as dropout or batch statistics do:

# %%
calls = []


def moody(params, z):
    calls.append(None)
    return network(params, z) * len(calls)


try:
    cf.evolve(cf.Problem(moody, inputs, targets), plain, cf.straight())
except ValueError as error:
    print(error)

# %% [markdown]
# ## An ensemble
#
# Everything works under `jax.vmap` over parameters: five starts as one program.

# %%
problem = cf.Problem(network, inputs, targets)


def start(key):
    first, second = jax.random.split(key)
    return {
        "w": jax.random.normal(first, (2, 30)),
        "b": jnp.zeros(30),
        "v": jax.random.normal(second, (30, 1)) / 30**0.5,
    }


@jax.jit
@jax.vmap
def end(params):
    run = cf.evolve(
        problem,
        params,
        cf.straight(),
        ts=jnp.array([0.0, 1.0]),
        save=("cost",),
        throw=False,
    )
    return run.costs


costs = end(jax.vmap(start)(jax.random.split(jax.random.key(4), 5)))
print("\n".join(f"{first:.2f} -> {last:.0e}" for first, last in costs))

# %% [markdown]
# ## What it means
#
# Use the network you have. What the theory wants of it: a *smooth* function of its parameters (tanh, softplus, gelu
# rather than ReLU), pure, in float64, and with enough parameters for the labels. [Limits](../limits.md) has the rest.
