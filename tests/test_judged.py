"""The numbers that the default job is judged by, on the default job itself: 200 digits, 4810 parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import chordflow as cf
from chordflow import theory
from chordflow.config import Config
from chordflow.setting import Setting

pytestmark = pytest.mark.slow
TS = jnp.linspace(0.0, 1.0, 21)


@pytest.fixture(scope="module")
def default():
    """Problem, parameters and outputs of `chordflow run`."""
    setting = Setting.build(Config())
    problem = setting.plan("straight").problem
    assert (problem.num_outputs, problem.ravel(setting.params)[0].size) == (2000, 4810)
    return problem, setting.params, problem.outputs(setting.params)


def run(default, flow, **options):
    problem, params, _ = default
    return jax.block_until_ready(cf.evolve(problem, params, flow, **options))


# Measured: 3.4e-8 in 69 steps, and 6e-11 in 180; minutes each on two cores.
@pytest.mark.parametrize(("rtol", "off"), [(None, 1e-6), (1e-10, 1e-8)])
def test_the_straight_flow_stays_on_the_chord_and_reaches_the_labels(default, rtol, off):
    problem, _, x0 = default
    traj = run(default, cf.straight(), ts=TS, rtol=rtol)
    chord = theory.linear_interpolation(x0, problem.targets, TS)
    way = float(jnp.max(jnp.abs(x0 - problem.targets)))
    assert float(jnp.max(jnp.abs(traj.outputs - chord))) <= off * way
    assert float(traj.costs[-1]) <= 1e-12 * float(traj.costs[0])


def test_the_adapted_flow_decays_exponentially_to_within_its_tolerance_or_bias(default):
    problem, _, x0 = default
    N, rtol = 200, 1e-7
    traj = run(default, cf.adapted(), ts=5 * N * TS**2, rtol=rtol)
    decay = theory.exponential_decay(x0, problem.targets, traj.ts, N)
    way = float(jnp.max(jnp.abs(x0 - problem.targets)))
    bias = max(float(traj.stats["relative_residual_start"]), float(traj.stats["relative_residual_end"]))
    assert float(jnp.max(jnp.abs(traj.outputs - decay))) <= max(10 * rtol, 2 * bias) * way
    # 1e-7 of the way is 1.5e-5 of what is left of it at s = 5N, and twice that of the cost.
    np.testing.assert_allclose(traj.costs[-1] / traj.costs[0], np.exp(-10), rtol=1e-4)
