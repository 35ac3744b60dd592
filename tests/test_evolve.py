"""Runs as runs: outcomes with their codes, transformations, precision, recompilation, what is saved and shown."""

import contextlib
import io
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from problems import WIDE_N, flat_params, literal_cost, wide, wide_params
from tolerances import tol

import chordflow as cf
from chordflow import theory
from chordflow.arguments import tolerances
from chordflow.system import GuardedController

TS = jnp.asarray([0.0, 0.25, 0.5, 0.75, 1.0])
MEASURED = (
    "outputs",
    "cost",
    "params",
    "spectrum",
    "effective_dimension",
    "unreachable_fraction",
    "speed",
)


def one_number(model, target):
    """One sample, one output, one parameter: small enough for the outcome to be known."""
    return cf.Problem(model, jnp.ones((1, 1)), jnp.asarray([[target]]))


def root(p, z):
    return jnp.sqrt(p) * z


def parabola(p, z):
    return p**2 * z


# --- outcomes -------------------------------------------------------------------------------------------------------


def test_a_model_that_leaves_its_domain_is_not_finite_with_the_last_good_state():
    # x = √p from 1 towards −1 along x = 1 − 2t: p = x² touches 0 at t = ½, and behind it there is nothing.
    with pytest.raises(cf.FlowError, match=r"ended at t = 0.5: .* became NaN or infinite .*traj.params") as caught:
        cf.evolve(one_number(root, -1.0), jnp.asarray([1.0]), cf.straight())
    traj = caught.value.trajectory
    assert isinstance(traj, cf.Trajectory)
    assert traj.result_name == "not_finite"
    assert float(traj.stats["t_last"]) == pytest.approx(0.5, abs=1e-6)
    assert np.isfinite(np.asarray(traj.params)).all()
    assert np.isfinite(np.asarray(traj.outputs)).all()
    assert float(traj.ts[-1]) == float(traj.stats["t_last"])
    # Up to there the run is right. Its last steps resolve a square root at 0.
    early = np.asarray(traj.ts) < 0.49
    np.testing.assert_allclose(traj.outputs[early, 0, 0], 1 - 2 * traj.ts[early], atol=1e-6)


def test_a_jacobian_that_is_not_finite_ends_at_the_start():
    traj = cf.evolve(one_number(root, -1.0), jnp.asarray([0.0]), cf.straight(), throw=False)
    assert traj.result_name == "not_finite"
    assert float(traj.stats["t_last"]) == 0.0
    np.testing.assert_array_equal(traj.params, [0.0])


PLAIN = diffrax.PIDController
CONTROLS: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-8, "dtmin": 1e-13, "force_dtmin": False}


@pytest.mark.parametrize("candidate", [1.0, np.inf, np.nan])
@pytest.mark.parametrize("error", [np.inf, np.nan, 1.0])
def test_a_stage_that_is_not_finite_is_a_rejected_step(candidate, error):
    state = (jnp.asarray(1.0), jnp.asarray(1.0), jnp.asarray(False))
    t0, t1, y0 = jnp.asarray(0.0), jnp.asarray(0.1), jnp.ones(2)
    step = (t0, t1, y0, jnp.full(2, candidate), None, jnp.full(2, error), 5, state)
    keep, next_t0, next_t1, *_ = GuardedController(**CONTROLS).adapt_step_size(*step)
    assert not keep
    assert float(next_t0) == 0.0
    assert 0 < float(next_t1) < 0.1
    if candidate == np.inf:
        # Why it is needed: the controller beneath makes a NaN step of ∞/∞, and takes ∞ itself for a good step.
        keep, _, next_t1, *_ = PLAIN(**CONTROLS).adapt_step_size(*step)
        assert bool(keep) or np.isnan(next_t1)


def test_an_overflow_ends_a_run_where_it_is_and_with_its_name():
    def field(t, y, args):
        return jnp.where(t < 0.3, 1.0, jnp.inf) * y

    def run(controller):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(),
            0.0,
            1.0,
            None,
            jnp.ones(1),
            stepsize_controller=controller(**CONTROLS),
            saveat=diffrax.SaveAt(t1=True),
            max_steps=500,
            throw=False,
        )

    guarded, plain = run(GuardedController), run(PLAIN)
    assert bool(guarded.result == diffrax.RESULTS.nonfinite)
    ts, ys = np.asarray(guarded.ts), np.asarray(guarded.ys)
    assert ts[0] == pytest.approx(0.3, abs=1e-9)
    np.testing.assert_allclose(ys, np.exp([[0.3]]), rtol=1e-6)
    assert bool(plain.result == diffrax.RESULTS.max_steps_reached), "diffrax has learnt it: the guard may go"


def test_a_direction_that_is_lost_makes_the_parameters_run_away():
    # x = p² from 1 towards −1: at t = ½ the parameter would have to leave the real line, and p' = −1/p diverges.
    with pytest.raises(cf.FlowError, match="parameters can no longer make the outputs move as told") as caught:
        cf.evolve(one_number(parabola, -1.0), jnp.asarray([1.0]), cf.straight(eps=1e-15), linear_solver=cf.solve.SVD())
    traj = caught.value.trajectory
    assert isinstance(traj, cf.Trajectory)
    assert traj.result_name == "velocity_unreachable"
    assert float(traj.stats["t_last"]) == pytest.approx(0.5, abs=1e-6)
    assert np.isfinite(np.asarray(traj.params)).all()


def test_stiffness_is_foretold_and_the_step_limit_keeps_what_was_reached():
    problem, params = wide(), wide_params()
    expected = cf.expected_steps(problem, params, cf.standard(), 500.0)
    sigma = float(cf.geometry.sigma_max(problem, params))
    assert expected == pytest.approx(500.0 * sigma**2 / (3.3 * WIDE_N), rel=0.05)
    assert expected > 100
    with (
        pytest.warns(UserWarning, match=r"this flow is stiff: about \d+ explicit steps .* above max_steps=100"),
        pytest.raises(cf.FlowError, match="max_steps was reached before t1") as caught,
    ):
        cf.evolve(problem, params, cf.standard(), t1=500.0, max_steps=100)
    traj = caught.value.trajectory
    assert isinstance(traj, cf.Trajectory)
    assert traj.result_name == "step_limit"
    assert int(traj.stats["num_steps"]) == 100
    assert 0 < float(traj.stats["t_last"]) < 500
    # The state that is kept is the state at that time.
    np.testing.assert_allclose(traj.outputs[-1], problem.outputs(traj.params), atol=tol("float64", "sums"))


@pytest.mark.parametrize(
    ("flow", "share"), [(cf.adapted(), 0.0), (cf.straight(), 0.0), (cf.interpolated(0.25), 0.75), (cf.standard(), 1.0)]
)
def test_expected_steps_are_those_of_the_transposes_share(flow, share):
    problem, params = wide(), wide_params()
    whole = cf.expected_steps(problem, params, cf.standard(), 1.0)
    assert cf.expected_steps(problem, params, flow, 1.0) == pytest.approx(share * whole)
    if flow.velocity.is_autonomous:
        clock = cf.clocks.Interpolation(4)
        s = float(clock.s(jnp.asarray(0.9)))
        assert cf.expected_steps(problem, params, flow, 0.9, clock=clock) == pytest.approx(s * share * whole)


def test_no_warning_for_an_implicit_solver_and_it_gets_there():
    # One parameter and inputs of 1 and 100: explicit solvers would take about 2800 steps.
    problem = cf.Problem(lambda p, z: jnp.tanh(p * z), jnp.asarray([[100.0], [1.0]]), jnp.asarray([[0.1], [0.3]]))
    params, t1 = jnp.asarray([0.002]), 2.0
    assert cf.expected_steps(problem, params, cf.standard(), t1) > 2500

    @jax.jit
    def field(p):
        return -jax.grad(lambda p: sum((jnp.tanh(p[0] * z) - y) ** 2 for z, y in ((100.0, 0.1), (1.0, 0.3))) / 4)(p)

    solution = scipy.integrate.solve_ivp(
        lambda s, p: np.asarray(field(jnp.asarray(p))), (0, t1), params, method="Radau", rtol=1e-9, atol=1e-12
    )
    traj = cf.evolve(
        problem, params, cf.standard(), ts=[t1], solver=diffrax.Kvaerno5(), rtol=1e-8, atol=1e-10, max_steps=300
    )
    np.testing.assert_allclose(traj.params, solution.y[:, -1], rtol=tol("float64", "default_run"))


# --- saves ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured():
    """A straight run with everything saved, dense output, and a function of ones own."""
    table = dict.fromkeys(MEASURED) | {"norm": lambda t, params: {"first": jnp.sum(params["in"] ** 2) * (1 + t)}}
    return cf.evolve(wide(), wide_params(), cf.straight(), ts=TS, save=table, dense=True)


def test_what_is_saved_is_what_it_is_called(measured):
    problem = wide()
    start = problem.outputs(wide_params())
    for i, t in enumerate(TS):
        params = jax.tree.map(lambda leaf, i=i: leaf[i], measured.saved["params"])
        outputs = measured.outputs[i]
        np.testing.assert_allclose(problem.outputs(params), outputs, atol=tol("float64", "sums"))
        assert float(measured.costs[i]) == pytest.approx(literal_cost(problem, outputs), rel=1e-9, abs=1e-16)
        sigma = np.linalg.svd(np.asarray(problem.jacobian(params).as_matrix()), compute_uv=False)
        np.testing.assert_allclose(measured.saved["spectrum"][i], sigma, atol=tol("float64", "sums"))
        lam = float(measured.stats["lam"])
        assert float(measured.saved["effective_dimension"][i]) == pytest.approx(np.sum(sigma**2 / (sigma**2 + lam)))
        assert float(measured.saved["speed"][i]) == pytest.approx(float(jnp.max(jnp.abs(problem.targets - start))))
        assert 0 <= float(measured.saved["unreachable_fraction"][i]) < 1e-9
        norm = float(jnp.sum(params["in"] ** 2) * (1 + t))
        assert float(measured.saved["norm"]["first"][i]) == pytest.approx(norm)


def test_the_report_of_a_run(measured):
    sigma = np.asarray(measured.saved["spectrum"][0])
    stats = {name: float(value) for name, value in measured.stats.items()}
    assert stats["sigma_max"] == pytest.approx(sigma[0])
    assert stats["lam"] == pytest.approx((1e-6 * sigma[0]) ** 2)
    assert stats["t_last"] == 1.0
    assert stats["num_steps"] == stats["num_accepted"] + stats["num_rejected"]
    assert stats["effective_dimension_start"] == pytest.approx(8.0)
    assert 0 <= stats["relative_residual_start"] < 1e-9
    assert stats["event"] == -1


def test_dense_output_is_the_path(measured):
    problem = wide()
    for i, t in enumerate(TS):
        saved = jax.tree.map(lambda leaf, i=i: leaf[i], measured.saved["params"])
        np.testing.assert_allclose(flat_params(measured.params_at(t)), flat_params(saved), atol=1e-12)
    between = theory.linear_interpolation(measured.outputs[0], problem.targets, 0.4321)
    np.testing.assert_allclose(problem.outputs(measured.params_at(0.4321)), between, atol=tol("float64", "default_run"))
    many = jax.jit(jax.vmap(measured.params_at))(TS)
    np.testing.assert_allclose(many["out"], measured.saved["params"]["out"], atol=1e-12)


def test_to_xarray_labels_what_was_saved(measured):
    dataset = measured.to_xarray()
    assert dataset["outputs"].dims == ("time", "sample", "output")
    assert dataset["cost"].dims == ("time",)
    np.testing.assert_array_equal(dataset["time"], TS)
    np.testing.assert_array_equal(dataset["outputs"], measured.outputs)
    np.testing.assert_array_equal(dataset["norm_first"], measured.saved["norm"]["first"])
    np.testing.assert_array_equal(dataset["params_out"], measured.saved["params"]["out"])
    assert dataset.attrs["result"] == "successful"
    assert dataset.attrs["num_steps"] == int(measured.stats["num_steps"])


def test_to_xarray_of_several_terms():
    problem = cf.Problem.from_terms([wide().terms[0], wide(1).terms[0]])
    traj = cf.evolve(problem, wide_params(), cf.standard(), ts=TS)
    dataset = traj.to_xarray()
    assert dataset["outputs_0"].dims == ("time", "sample_0", "output_0")
    np.testing.assert_array_equal(dataset["outputs_1"], traj.outputs[1])


# --- every step, progress -------------------------------------------------------------------------------------------


def test_without_save_times_every_step_is_saved_and_progress_is_shown():
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream):
        traj = cf.evolve(wide(), wide_params(), cf.straight(), progress=True)
    assert len(traj.ts) == int(traj.stats["num_accepted"]) + 1
    assert float(traj.ts[0]) == 0.0
    assert float(traj.ts[-1]) == 1.0
    assert bool(jnp.all(jnp.diff(traj.ts) > 0))
    assert traj.result_name == "successful"
    assert int(traj.stats["event"]) == -1
    shown = stream.getvalue()
    assert "straight" in shown
    assert "cost=" in shown
    assert "t=" in shown


# --- transformations ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain():
    """The run that transformed ones are compared with."""
    return cf.evolve(wide(), wide_params(), cf.straight(), ts=TS)


def test_under_jit(plain):
    @eqx.filter_jit
    def run(params, eps):
        return cf.evolve(wide(), params, cf.straight(eps=eps), ts=TS)

    traj = run(wide_params(), jnp.asarray(1e-6))
    np.testing.assert_allclose(traj.outputs, plain.outputs, atol=tol("float64", "paths"))
    assert traj.result_name == "successful"


def test_a_trajectory_comes_out_of_plain_jit_and_goes_in_again(plain):
    problem = wide(trainable={"in": True, "bias": True, "out": True, "shift": True})

    @jax.jit
    def run(params):
        return cf.evolve(problem, params, cf.straight(), ts=TS, dense=True, max_steps=64)

    traj = run(wide_params())
    assert isinstance(traj, cf.Trajectory)
    assert traj.result_name == "successful"
    np.testing.assert_allclose(traj.outputs, plain.outputs, atol=tol("float64", "paths"))
    # The problem is whole: model, loss and which leaves are trainable, which no array can hold.
    np.testing.assert_allclose(traj.problem.outputs(traj.params), traj.outputs[-1], atol=tol("float64", "sums"))
    assert traj.problem.trainable == problem.trainable
    hash(jax.tree.structure(traj))
    between = jax.jit(lambda traj, t: traj.problem.outputs(traj.params_at(t)))(traj, jnp.asarray(0.5))
    np.testing.assert_allclose(between, traj.outputs[2], atol=tol("float64", "sums"))


def test_under_vmap_over_seeds():
    problem = wide()
    seeds = [wide_params(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)

    @jax.jit
    @jax.vmap
    def ensemble(params):
        traj = cf.evolve(problem, params, cf.adapted(), ts=8.0 * TS, throw=False)
        return traj.outputs, traj.costs, traj.stats["num_steps"]

    outputs, costs, steps = ensemble(stacked)
    for seed, params in enumerate(seeds):
        one = cf.evolve(problem, params, cf.adapted(), ts=8.0 * TS)
        np.testing.assert_allclose(outputs[seed], one.outputs, atol=tol("float64", "paths"))
        np.testing.assert_allclose(costs[seed], one.costs, atol=tol("float64", "paths"))
        assert int(steps[seed]) == int(one.stats["num_steps"])
    assert len(set(np.asarray(steps).tolist())) > 1  # each seed took its own steps


def test_another_eps_target_clock_rate_or_seed_is_no_other_program():
    runs = [
        lambda: cf.evolve(wide(), wide_params(), cf.straight(), ts=TS),
        lambda: cf.evolve(wide(), wide_params(), cf.straight(eps=1e-4), ts=TS),
        lambda: cf.evolve(wide(1), wide_params(2), cf.straight(), ts=TS, rtol=1e-6),
        lambda: cf.evolve(wide(), wide_params(), cf.straight(wide(3).targets), ts=0.5 * TS),
        lambda: cf.evolve(wide(weights=jnp.asarray([1.0, 2.0, 0.5, 1.0])), wide_params(), cf.straight(), ts=TS),
        # Descent and the chord are one kind of velocity: the adapted flow is the same program, too.
        lambda: cf.evolve(wide(), wide_params(), cf.adapted(), ts=TS),
    ]
    runs[0]()
    for run in runs[1:]:
        with counting_compilations() as compiled:
            run()
        assert compiled == [], compiled
    with counting_compilations() as compiled:
        cf.evolve(wide(), wide_params(), cf.straight(passes=1), ts=TS)
    assert any("_integrate" in name for name in compiled)  # the count sees what is compiled


@contextlib.contextmanager
def counting_compilations():
    """Names of the programs of a run that are traced for compilation inside the block."""
    names = []

    def listen(event: str, duration_secs: float, **metadata: str | int) -> None:
        del duration_secs
        if event == "/jax/core/compile/jaxpr_trace_duration":
            names.append(str(metadata.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
        names[:] = [name for name in names if "_integrate" in name or "_start" in name]


def test_float32_with_tolerances_keeps_its_precision():
    problem, params = wide(dtype=jnp.float32), wide_params(dtype=jnp.float32)
    traj = cf.evolve(problem, params, cf.straight(eps=1e-3), ts=TS, rtol=1e-4, atol=1e-6)
    assert traj.result_name == "successful"
    floats = [traj.ts, traj.outputs, traj.costs, *jax.tree.leaves(traj.params)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
    line = theory.linear_interpolation(traj.outputs[0], problem.targets, TS.astype(jnp.float32))
    chord = float(jnp.max(jnp.abs(problem.targets - traj.outputs[0])))
    assert float(jnp.max(jnp.abs(traj.outputs - line))) <= tol("float32", "default_run") * chord


@pytest.mark.parametrize(
    ("dtype", "rtol", "atol", "expected"),
    [
        ("float64", None, None, (1e-7, 1e-9)),
        ("float64", 1e-4, 3.0, (1e-4, 3.0)),  # atol has the units of the parameters: no number is too large
        ("float32", 1e-3, None, (1e-3, 1e-5)),
        ("float32", 1e-6, None, (1e-6, 10 * 2**-23)),  # 1e-8 would ask for less than the rounding of a step
    ],
)
def test_tolerances_that_are_not_given(dtype, rtol, atol, expected):
    given = tolerances(jnp.dtype(dtype), rtol, atol)
    assert [value.dtype for value in given] == [dtype, dtype]
    np.testing.assert_allclose(given, expected, rtol=1e-6)


@pytest.mark.slow
def test_a_run_is_differentiable_in_its_start():
    # The end of the adapted flow is y + e^(−s/N)(x(0) − y): its slope in a start shift is that of x(0) times e^(−s/N).
    problem, s = wide(), 2.0

    def end(shift):
        params = wide_params() | {"shift": shift}
        flow, solver = cf.adapted(), cf.solve.Cholesky()
        return jnp.sum(cf.evolve(problem, params, flow, ts=[s], rtol=1e-9, linear_solver=solver, max_steps=64).outputs)

    slope = jax.grad(end)(jnp.zeros(2))
    np.testing.assert_allclose(slope, WIDE_N * np.exp(-s / WIDE_N) * np.ones(2), rtol=tol("float64", "default_run"))


def test_the_model_may_be_an_equinox_module():
    net = eqx.nn.MLP(2, 2, 6, 1, activation=jnp.tanh, key=jax.random.key(1), dtype=jnp.float64)
    base = wide().terms[0]
    problem = cf.Problem(lambda module, z: module(z), base.samples, base.targets)
    traj = cf.evolve(problem, net, cf.standard(), ts=TS, save=("outputs", "cost", "params"))
    assert isinstance(traj.params, eqx.nn.MLP)
    assert traj.params.activation is net.activation
    assert float(traj.costs[-1]) < float(traj.costs[0])
    np.testing.assert_allclose(problem.outputs(traj.params), traj.outputs[-1], atol=tol("float64", "sums"))
    for k in (0, 2, -1):
        np.testing.assert_allclose(problem.outputs(traj.params_saved(k)), traj.outputs[k], atol=tol("float64", "sums"))
    dataset = traj.to_xarray()
    weight = dataset["params_layers_0_weight"]
    np.testing.assert_array_equal(weight[2], traj.params_saved(2).layers[0].weight)
    assert (weight.attrs["quantity"], weight.attrs["tree_path"]) == ("params", '["layers", 0, "weight"]')


def test_leaves_whose_names_run_together_stay_apart():
    problem = cf.Problem(lambda p, z: p["a_b"] * p["a"]["b"] * z, jnp.ones((1, 1)), jnp.ones((1, 1)))
    params = {"a_b": jnp.asarray([1.0]), "a": {"b": jnp.asarray([2.0])}}
    dataset = cf.evolve(problem, params, cf.straight(), ts=[0.0], t1=1e-3, save=("params",)).to_xarray()
    values = {dataset[name].attrs["tree_path"]: float(dataset[name][0, 0]) for name in dataset}
    assert values == {'["a", "b"]': 2.0, '["a_b"]': 1.0}


def test_float32_steps_below_the_resolution_of_time_are_not_tried():
    # The run-away of x = p² again; in float32 a step of 1e-13 of the run is no step, and 4000 of them were rejected.
    problem = cf.Problem(parabola, jnp.ones((1, 1), jnp.float32), -jnp.ones((1, 1), jnp.float32))
    start, options = jnp.ones(1, jnp.float32), {"rtol": 1e-4, "atol": 1e-6, "throw": False}
    traj = cf.evolve(problem, start, cf.straight(), linear_solver=cf.solve.SVD(), **options)
    assert traj.result_name == "velocity_unreachable"
    assert int(traj.stats["num_steps"]) < 200
    assert float(traj.stats["t_last"]) == pytest.approx(0.5, abs=1e-4)


def test_the_end_may_be_traced(plain):
    traj = eqx.filter_jit(lambda t1: cf.evolve(wide(), wide_params(), cf.straight(), t1=t1, ts=TS))(jnp.asarray(1.0))
    np.testing.assert_allclose(traj.outputs, plain.outputs, atol=tol("float64", "paths"))


def test_stiffness_is_seen_from_any_data_and_filter():
    inputs = jnp.asarray([[10.0], [-10.0]])  # W^½1 is orthogonal to the range of this Jacobian
    problem = cf.Problem(lambda w, z: w * z, inputs, jnp.zeros((2, 1)))
    expected = 100.0 * 200.0 / (3.3 * 2)
    for flow in (cf.standard(), cf.Flow(cf.velocities.Descent(), cf.filters.Power(0.0))):
        assert cf.expected_steps(problem, jnp.ones(1), flow, 100.0) == pytest.approx(expected, rel=1e-6)


def test_a_target_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="target must be like the outputs"):
        cf.evolve(wide(), wide_params(), cf.straight(target=jnp.transpose(wide().targets)))
