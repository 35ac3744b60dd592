"""A run in strides is the run that `evolve` makes in one piece, wherever the strides end."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import chordflow as cf
from chordflow import models
from chordflow.integration import arrange
from chordflow.strides import FIRST_STEP, Course, Place

TS = np.linspace(0.0, 1.0, 6)
FLOWS = {"straight": (cf.straight(), 1.0), "adapted": (cf.adapted(), 3.0), "standard": (cf.standard(), 2.0)}


def small():
    key = jax.random.split(jax.random.key(0), 2)
    model = models.mlp((3, 8, 2))
    problem = cf.Problem(model.apply, jax.random.normal(key[0], (4, 3)), jax.random.normal(key[1], (4, 2)))
    return problem, model.params


def twice(t, params):
    return 2 * t


def arranged(name, **options):
    flow, t1 = FLOWS[name]
    problem, params = small()
    save = {"outputs": None, "cost": None, "params": None, "twice": twice}
    return arrange(problem, params, flow, **{"ts": t1 * TS, "rtol": 1e-6, "save": save} | options)


def gone(course, attempts, place=None):
    """The last place, and everything saved, of a course taken in strides of so many attempts."""
    place, pieces = course.start() if place is None else place, []
    while course.goes_on(place):
        stride = course.stride(place, attempts)
        assert int(stride.place.num_steps) - int(place.num_steps) <= attempts
        place, pieces = stride.place, [*pieces, (stride.ts, stride.saved)]
    return place, jax.tree.map(lambda *rows: np.concatenate(rows), *pieces)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.mark.parametrize("name", FLOWS)
def test_strides_of_any_length_are_evolve_bit_for_bit(name):
    course = Course(arranged(name))
    flow, t1 = FLOWS[name]
    problem, params = small()
    whole = cf.evolve(problem, params, flow, ts=t1 * TS, rtol=1e-6, save=("outputs", "cost", "params"))
    # The stride program begins where the compiled run does; another first step is another path.
    steps = cf.evolve(problem, params, flow, t1=t1, rtol=1e-6).ts
    assert float(steps[1]) == FIRST_STEP
    for attempts in (1, 3, 1000):
        place, (ts, saved) = gone(course, attempts)
        trajectory = course.trajectory(place, ts, saved)
        assert trajectory.result_name == "successful"
        assert np.array_equal(ts, t1 * TS)
        np.testing.assert_array_equal(saved["twice"], 2 * ts)
        for quantity, rows in whole.saved.items():
            assert same(trajectory.saved[quantity], rows), (quantity, attempts)
        assert same(trajectory.params, whole.params)
        assert set(trajectory.stats) == set(whole.stats)
        for key in ("t_last", "num_steps", "num_accepted", "num_rejected", "sigma_max"):
            assert float(trajectory.stats[key]) == float(whole.stats[key]), key


@contextlib.contextmanager
def counting_strides_compiled():
    """One entry for each time the program of a stride is traced inside the block."""
    traced = []

    def listen(event, duration_secs, **metadata):
        if event == "/jax/core/compile/jaxpr_trace_duration" and "_stride" in str(metadata.get("fun_name")):
            traced.append(metadata)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield traced
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_one_program_serves_the_first_stride_and_all_after_it():
    course = Course(arranged("straight", max_steps=99))
    with counting_strides_compiled() as traced:
        gone(course, 2)
    assert len(traced) == 1


def test_a_stop_and_a_way_through_a_file_change_no_bit_and_compile_nothing(tmp_path):
    course = Course(arranged("straight"))
    whole = gone(course, 2)
    first = course.stride(course.start(), 3)
    leaves, structure = jax.tree.flatten(first.place)
    np.savez(tmp_path / "place.npz", *map(np.asarray, leaves))
    read = np.load(tmp_path / "place.npz")
    place = jax.tree.unflatten(structure, [jnp.asarray(read[f"arr_{i}"]) for i in range(len(leaves))])
    with counting_strides_compiled() as traced:
        end, (ts, saved) = gone(course, 5, place)
    assert traced == []
    assert same(end, whole[0])
    assert np.array_equal(np.concatenate([first.ts, ts]), whole[1][0])
    assert same(jax.tree.map(lambda *rows: np.concatenate(rows), first.saved, saved), whole[1][1])


def test_max_steps_bounds_all_strides_together():
    problem, params = small()
    whole = cf.evolve(problem, params, cf.straight(), ts=TS, rtol=1e-6, max_steps=5, throw=False)
    course = Course(arranged("straight", max_steps=5))
    place, (ts, saved) = gone(course, 2)
    trajectory = course.trajectory(place, ts, saved)
    assert trajectory.result_name == whole.result_name == "step_limit"
    assert int(place.num_steps) == 5
    assert float(place.t) == float(whole.stats["t_last"])
    assert same(saved["outputs"], whole.outputs)


def test_a_field_that_is_not_finite_ends_in_strides_as_it_does_in_one_piece():
    problem = cf.Problem(lambda p, _: jnp.sqrt(p), jnp.zeros((1, 1)), jnp.asarray([[-1.0]]))
    whole = cf.evolve(problem, jnp.asarray([1.0]), cf.straight(), ts=TS, throw=False)
    course = Course(arrange(problem, jnp.asarray([1.0]), cf.straight(), ts=TS))
    place, (ts, saved) = gone(course, 4)
    trajectory = course.trajectory(place, ts, saved)
    assert trajectory.result_name == whole.result_name != "successful"
    assert float(place.t) == float(whole.stats["t_last"])
    assert same(saved["outputs"], whole.outputs)


def test_the_shapes_of_a_place_are_known_before_anything_is_computed():
    course = Course(arranged("adapted"))
    struct, place = course.struct(), course.start()
    assert isinstance(struct, Place)
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(struct)]
    assert shapes == [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(place)]
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(place))
    assert course.saved_struct()["outputs"].shape == (4, 2)


def test_reach_is_what_evolve_reports_at_the_start():
    problem, params = small()
    whole = cf.evolve(problem, params, cf.adapted(), ts=TS, rtol=1e-6)
    course = Course(arranged("adapted"))
    dimension, residual = course.reach(0.0, problem.ravel(params)[0])
    assert dimension == pytest.approx(float(whole.stats["effective_dimension_start"]), rel=1e-9)
    assert residual == pytest.approx(float(whole.stats["relative_residual_start"]), abs=1e-9)
