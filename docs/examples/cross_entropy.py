# %% [markdown]
# # Cross-entropy has a line, too
#
# *With squared error the outputs go straight to the labels. Where do the logits of a classifier go, and where do they
# end?*
#
# We take thirty wines of three kinds and a small network, and look at probabilities on the triangle of three classes.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["retina"]
import jax
import jax.numpy as jnp
import numpy as np

import chordflow as cf
from chordflow import figures

jax.config.update("jax_enable_x64", True)

data = cf.data.load("wine", samples=30, smoothing=0.2, seed=0)
inputs, labels = jnp.asarray(data.inputs), jnp.asarray(data.targets)
model, params = cf.models.mlp((13, 16, 3), activation="tanh", seed=0)
problem = cf.Problem(model, inputs, labels, loss=cf.CrossEntropy())
print(
    "a label:",
    np.round(labels[0], 3),
    " logits at the start:",
    np.round(problem.outputs(params)[0], 3),
)

# %% [markdown]
# ## One-hot labels have no end
#
# The logits x move, if nothing hinders them, with $x' = -\frac{1}{N}(\mathrm{softmax}(x) - y)$ (2.69–2.71). For a
# label with a zero in it that never stops: the logits grow like log s. So labels are *smoothed* here (each class gets
# a share of 0.2/3), and a straight flow to one-hot labels is refused:

# %%
one_hot = jnp.round(labels)
try:
    cf.evolve(
        cf.Problem(model, inputs, one_hot, loss=cf.CrossEntropy()),
        params,
        cf.straight(),
    )
except ValueError as error:
    print(error)

# %% [markdown]
# ## With positive labels there is one end, in closed form
#
# The sum of the logits of a sample never changes, $1^\top x_n(s) = 1^\top x_n(0)$ (2.73), so motion stays on a plane.
# On it there is exactly one equilibrium (2.89–2.104),
#
# $$x_n(\infty) = \log y_n + c_n 1, \qquad c_n = \tfrac{1}{Q}\, 1^\top (x_n(0) - \log y_n),$$
#
# where softmax gives the label. The cost there is not 0 but the mean entropy of the labels (2.91).

# %%
equilibrium = cf.theory.cross_entropy_equilibrium(problem.outputs(params), labels)
print(
    "probabilities there are the labels:",
    bool(jnp.allclose(jax.nn.softmax(equilibrium), labels)),
)
print(f"cost there: {cf.theory.label_entropy(labels):.6f}, the entropy of the labels")

# %% [markdown]
# ## Two ways to the same end
#
# `cf.adapted()` moves the logits along the Euclidean gradient, which is not straight; `cf.straight()` takes the chord
# to the equilibrium. (Gradient flow has its own time s and arrives at infinity; the straight flow has t from 0 to 1.)

# %%
num = len(inputs)
adapted = cf.evolve(
    problem,
    params,
    cf.adapted(),
    clock=cf.clocks.Log(num),
    ts=jnp.linspace(0, jnp.log1p(60.0), 40),
)
straight = cf.evolve(problem, params, cf.straight(), ts=jnp.linspace(0, 1, 40))
runs = {"adapted": adapted, "straight": straight}
for name, run in runs.items():
    above = float(run.costs[-1] - cf.theory.label_entropy(labels))
    print(
        f"{name}: cost above its minimum {above:.1e}, after {int(run.stats['num_steps'])} steps"
    )

# %%
probabilities = {
    name: np.asarray(jax.nn.softmax(run.outputs)) for name, run in runs.items()
}
figures.simplex(probabilities, np.asarray(jax.nn.softmax(equilibrium)))

# %% [markdown]
# **What to look for.** A dot in its ring for each sample: there the closed form says that it ends. All wines of one
# kind have the same label and so the same ring. Ways are curved in both pictures, because straight in logits is not
# straight in probabilities.
#
# ## What the theory says of the way
#
# Two predictions that share no code with the flow: the sum of logits is conserved (2.72–2.74), and the adapted flow
# is the Euclidean flow of free logits, sample by sample, wherever D has full rank.

# %%
drift = float(jnp.max(cf.theory.hyperplane_drift(adapted.outputs, adapted.outputs[0])))
s = num * jnp.expm1(adapted.ts)
euclidean = cf.theory.euclidean_flow(adapted.outputs[0], labels, cf.CrossEntropy(), s)
gap = float(jnp.max(jnp.abs(adapted.outputs - euclidean)))
print(
    f"sums of logits drift by {drift:.0e}; logits and the Euclidean flow of free logits differ by {gap:.0e}"
)
print(
    f"the straight flow misses the equilibrium by {float(jnp.max(jnp.abs(straight.outputs[-1] - equilibrium))):.0e}"
)
assert drift < 1e-5
assert gap < 1e-4

# %% [markdown]
# ## Why the last digits take long
#
# The equilibrium is approached like $e^{-s\mu/N}$, where μ lies between the two smallest components of the label:
# here both are 0.2/3. Weak smoothing makes for a long end.

# %%
late = np.asarray(adapted.costs - cf.theory.label_entropy(labels))
rate = -np.polyfit(np.asarray(s[-6:]) / num, np.log(late[-6:]), 1)[0] / 2
print(
    f"measured rate {rate:.4f}, smallest component of a label {float(labels.min()):.4f}"
)

# %% [markdown]
# ## What it means
#
# Cross-entropy, the loss of every classifier, has a straight line and a finite goal as soon as labels are smoothed;
# the goal is known before the first step. For held-out samples nothing is promised: this is about the training set.

# %%
test_inputs, test_targets = jnp.asarray(data.test_inputs), np.asarray(data.test_targets)
logits = jax.vmap(lambda z: model(straight.params, z))(test_inputs)
accuracy = float(np.mean(np.argmax(logits, axis=1) == np.argmax(test_targets, axis=1)))
print(f"{len(test_inputs)} wines that were not trained on: {accuracy:.0%} right")
