"""Events: each fires where its quantity crosses, says which it was, and not before."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import WIDE_N, perceptron, wide, wide_params
from tolerances import tol

import chordflow as cf
from chordflow import events
from chordflow.events import (
    CostBelow,
    EffectiveDimensionAbove,
    EffectiveDimensionBelow,
    VelocityBelow,
    VelocityUnreachable,
)
from chordflow.losses import smooth_labels

NEVER_BELOW, NEVER_ABOVE = 1e-300, 1e300
T1 = 40.0
# All events in every run, in this order; the levels decide which can fire, so that the runs share one program.
ORDER = ("cost", "speed", "dimension_below", "dimension_above", "unreachable")


def watching(**levels):
    """One event of each kind, those without a level out of reach."""
    return (
        CostBelow(levels.get("cost", NEVER_BELOW)),
        VelocityBelow(levels.get("speed", NEVER_BELOW)),
        EffectiveDimensionBelow(levels.get("dimension_below", NEVER_BELOW)),
        EffectiveDimensionAbove(levels.get("dimension_above", NEVER_ABOVE)),
        VelocityUnreachable(levels.get("unreachable", 1 - 1e-9)),
    )


QUANTITIES = ("outputs", "cost", "speed", "effective_dimension", "unreachable_fraction")


def run(problem=None, flow=None, *, params=None, t1=T1, throw=False, **levels):
    return cf.evolve(
        wide() if problem is None else problem,
        wide_params() if params is None else params,
        cf.adapted(1e-2) if flow is None else flow,
        t1=t1,
        save=QUANTITIES,
        events=watching(**levels),
        max_steps=400,
        throw=throw,
    )


@pytest.fixture(scope="module")
def quiet():
    """A run in which nothing fires."""
    return run()


def test_every_event_is_in_the_battery():
    public = {c for c in vars(events).values() if inspect.isclass(c) and issubclass(c, events.AbstractEvent)}
    assert {type(event) for event in watching()} == public - {events.AbstractEvent}


def test_nothing_fires_out_of_reach(quiet):
    assert quiet.result_name == "successful"
    assert int(quiet.stats["event"]) == -1
    assert float(quiet.ts[-1]) == T1


@pytest.fixture(scope="module")
def back(quiet):
    """The way back from the end of the quiet run to its start, on which D loses directions again."""
    return run(wide(targets=quiet.outputs[0]), params=quiet.params)


@pytest.mark.parametrize(
    ("event", "name", "level"),
    [
        ("cost", "cost", lambda values: 1e-3 * values[0]),
        ("speed", "speed", lambda values: 1e-2 * values[0]),
        ("dimension_above", "effective_dimension", lambda values: np.mean(values[[0, -1]])),
        ("dimension_below", "effective_dimension", lambda values: np.mean(values[[0, -1]])),
    ],
)
def test_an_event_ends_the_run_at_the_first_step_past_its_level(quiet, back, event, name, level):
    there = event != "dimension_below"
    whole = quiet if there else back
    problem, params = (wide(), wide_params()) if there else (wide(targets=quiet.outputs[0]), quiet.params)
    values = np.asarray(whole.saved[name])
    limit = float(level(values))
    past = values > limit if event == "dimension_above" else values < limit
    first = int(np.argmax(past))
    assert past[first]
    assert first > 0
    levels: dict[str, Any] = {event: limit}
    traj = run(problem, params=params, **levels)
    assert traj.result_name == "event_occurred"
    assert ORDER[int(traj.stats["event"])] == event
    # The same steps as the run without the event, up to the one that is past the level.
    np.testing.assert_allclose(traj.ts, whole.ts[: first + 1], rtol=tol("float64", "paths"))
    np.testing.assert_allclose(traj.outputs, whole.outputs[: first + 1], atol=tol("float64", "paths"))
    assert float(traj.stats["t_last"]) == float(traj.ts[-1])


def test_the_cost_falls_below_its_level_when_theory_says():
    # C e-folds in N/2 units of s: the level is crossed at (N/2) log(C(0)/level), and seen at the step after.
    start = float(wide().cost(wide_params()))
    traj = run(flow=cf.adapted(1e-6), cost=1e-4 * start)
    predicted = WIDE_N / 2 * np.log(1e4)
    assert traj.ts[-2] <= predicted <= traj.ts[-1]


def test_the_cost_is_measured_from_its_minimum():
    labels = smooth_labels(jax.nn.one_hot(jnp.asarray([0, 1, 1, 0]), 2, dtype=jnp.float64), 0.9)
    problem = wide(targets=labels, loss=cf.CrossEntropy())
    minimum = problem.minimum()
    assert minimum is not None
    assert float(minimum) > 0.5  # the label entropy
    traj = cf.evolve(problem, wide_params(), cf.adapted(), t1=400.0, events=[CostBelow(1e-6)], save=("cost",))
    assert traj.result_name == "event_occurred"
    assert float(traj.costs[-1] - minimum) < 1e-6 <= float(traj.costs[-2] - minimum)


def test_an_unreachable_velocity_has_its_own_code():
    # tanh cannot exceed 1: towards 2 its derivative dies at about half of the way.
    problem = cf.Problem(lambda p, z: jnp.tanh(p) * z, jnp.ones((1, 1)), jnp.asarray([[2.0]]))
    options = {"t1": 1.0, "save": ("unreachable_fraction",)}
    ended = cf.evolve(
        problem, jnp.asarray([0.1]), cf.straight(), events=[VelocityUnreachable(0.5)], throw=False, **options
    )
    assert ended.result_name == "velocity_unreachable"
    assert float(ended.saved["unreachable_fraction"][-1]) > 0.5
    assert float(ended.stats["t_last"]) < 0.6
    assert bool(jnp.isfinite(ended.params).all())


def test_an_unreachable_velocity_raises_where_an_event_that_is_wanted_does_not():
    run(cost=1e300, throw=True)
    with pytest.raises(
        cf.FlowError, match=r"at t = 0: The parameters can no longer .* VelocityUnreachable was watching"
    ):
        run(unreachable=1e-9, throw=True)


def test_of_several_that_fire_the_first_is_named(quiet):
    # Both levels lie between the same two steps.
    k = int(np.argmax(np.asarray(quiet.costs) < 1e-3 * quiet.costs[0]))
    cost, speed = (float(quiet.saved[name][k - 1 : k + 1].mean()) for name in ("cost", "speed"))
    traj = run(cost=cost, speed=speed)
    assert int(traj.stats["num_accepted"]) == k
    assert ORDER[int(traj.stats["event"])] == "cost"


def test_what_holds_at_the_start_ends_the_run_there(quiet):
    traj = run(dimension_above=1e-3, speed=1e-3)
    assert traj.result_name == "event_occurred"
    assert ORDER[int(traj.stats["event"])] == "dimension_above"
    assert [int(traj.stats[f"num_{kind}"]) for kind in ("steps", "accepted", "rejected")] == [0, 0, 0]
    assert float(traj.stats["t_last"]) == 0.0
    assert traj.ts.tolist() == [0.0]
    np.testing.assert_array_equal(traj.outputs, quiet.outputs[:1])
    jax.tree.map(np.testing.assert_array_equal, traj.params, wide_params())


def test_what_holds_at_the_start_ends_it_under_vmap_for_those_members_alone(quiet):
    # Of two starts one is at the end of the quiet run, where the cost is below the level already.
    level = 1e-3 * float(quiet.costs[0])
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), wide_params(), quiet.params)

    @jax.jit
    @jax.vmap
    def ensemble(params):
        return run(params=params, cost=level)

    traj = ensemble(starts)
    assert [ORDER[i] for i in traj.stats["event"]] == ["cost", "cost"]
    assert (traj.stats["num_accepted"] > 0).tolist() == [True, False]
    one = run(cost=level)
    # Step sizes follow error estimates, which are differences: rounding shows in their eighth digit.
    np.testing.assert_allclose(traj.stats["t_last"], [one.stats["t_last"], 0.0], rtol=1e-6)
    assert np.isfinite(traj.ts).sum(axis=1).tolist() == [len(one.ts), 1]
    np.testing.assert_array_equal(traj.params["in"][1], quiet.params["in"])


def test_an_absent_sample_does_not_keep_the_velocity_up():
    # A sample with weight 0 is as if absent: its outputs go nowhere, and it must not hold the event open.
    base = wide().terms[0]
    absent = wide(weights=jnp.asarray([1.0, 0.0, 1.0, 1.0]))
    rows = jnp.asarray([0, 2, 3])
    written_out = cf.Problem(perceptron, base.samples[rows], base.targets[rows])
    params = wide_params()
    speeds = []
    for problem in (absent, written_out):
        traj = cf.evolve(problem, params, cf.adapted(), ts=[30.0], save=("speed",))
        speeds.append(float(traj.saved["speed"][0]))
    assert speeds[0] == pytest.approx(speeds[1], rel=1e-6)
