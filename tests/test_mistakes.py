"""What users read when they get something wrong: one line with what was got, what was expected, and the fix.

The tests run under a type checker that users do not have, and it would answer many of these mistakes first. So the
file runs itself once in a fresh interpreter, as a user's script would, and the tests look at what came out there.
"""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer
from problems import perceptron, wide, wide_params

import chordflow
from chordflow.losses import smooth_labels

if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)

cf: Any = chordflow  # the mistakes are meant: no type checker should look at them

# (exception, pattern of its text, the mistake)
CASES: dict[str, tuple[str, str, Callable[[], Any]]] = {}


def case(name: str, pattern: str, error: str = "ValueError") -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Add a mistake to the table."""

    def add(mistake: Callable[[], Any]) -> Callable[[], Any]:
        assert name not in CASES
        CASES[name] = (error, pattern, mistake)
        return mistake

    return add


rng = np.random.default_rng(61)
inputs, targets = rng.normal(size=(4, 2)), rng.normal(size=(4, 2))
params, problem = wide_params(), wide()
labels = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0], [0.1, 0.9]])
quartic = cf.Loss(lambda x, y: jnp.sum((x - y) ** 4))


def spoilt(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array[2, 1] = value
    return array


def build(model: Any = perceptron, x: Any = inputs, y: Any = targets, **options: Any) -> Any:
    return cf.Problem(model, x, y, **options)


def evolve(flow: Any = None, *, of: Any = problem, at: Any = params, **options: Any) -> Any:
    return cf.evolve(of, at, cf.straight() if flow is None else flow, **options)


def add(table: dict[str, tuple[str, Callable[[], Any]]]) -> None:
    for name, (pattern, mistake) in table.items():
        case(name, pattern)(mistake)


# --- data -------------------------------------------------------------------------------------------------------------
add(
    {
        "NaN input": (
            r"inputs: 1 NaN or infinite values, the first at \[2, 1\]",
            lambda: build(x=spoilt(inputs, np.nan)),
        ),
        "infinite input in a pytree": (r"inputs: 1 NaN or inf", lambda: build(x={"a": spoilt(inputs, np.inf)})),
        "NaN target": (r"targets: 1 NaN or infinite values", lambda: build(y=spoilt(targets, np.nan))),
        "integer targets": (
            r"targets must be floating, got int64: use jax.nn.one_hot",
            lambda: build(y=np.ones((4, 2), int)),
        ),
        "boolean targets": (r"targets must be floating, got bool", lambda: build(y=np.ones((4, 2), bool))),
        "complex targets": (r"targets must be floating, got complex128", lambda: build(y=targets + 1j)),
        "complex inputs": (
            r"complex inputs are not supported: split them",
            lambda: build(x={"real": inputs, "wave": inputs + 1j}),
        ),
        "one-dimensional targets": (
            r"shape \(N, Q\), got \(4,\): use targets\[:, None\]",
            lambda: build(y=targets[:, 0]),
        ),
        "three-dimensional targets": (r"shape \(N, Q\), got \(4, 2, 1\)", lambda: build(y=targets[:, :, None])),
        "another number of inputs": (r"inputs \(3, 2\) and targets \(4, 2\)", lambda: build(x=inputs[:3])),
        "inputs of a pytree that disagree": (r"\(4, 2\), \(3, 2\)", lambda: build(x=(inputs, inputs[:3]))),
        "nested lists as inputs": (
            r"nested lists are pytrees of numbers: use jnp.asarray",
            lambda: build(x=inputs.tolist()),
        ),
        "no inputs": (r"got inputs none", lambda: build(x=None)),
        "no samples": (
            r"the data are empty: targets have shape \(0, 2\)",
            lambda: build(x=inputs[:0], y=targets[:0]),
        ),
        "no outputs": (r"the data are empty: targets have shape \(4, 0\)", lambda: build(y=targets[:, :0])),
        "words as inputs": (
            r"must be numeric arrays, got ndarray of <U1: ",
            lambda: build(x=np.array([["a", "b"]] * 4)),
        ),
        "words as targets": (r"must be numeric arrays", lambda: build(y="labels.csv")),
        "ragged targets": (r"must be numeric arrays, got list", lambda: build(y=[[1.0], [1.0, 2.0], [1.0], [1.0]])),
        "labels that sum to 2": (
            r"CrossEntropy needs labels on the .*simplex.* target 0 is",
            lambda: build(y=2 * labels, loss=cf.CrossEntropy()),
        ),
        "a negative label": (
            r"CrossEntropy needs .* target 2 is \[1.5, -0.5\]",
            lambda: build(y=spoilt(labels + np.array([[0], [0], [0.5], [0]]), -0.5), loss=cf.CrossEntropy()),
        ),
        "class numbers as labels": (
            r"targets must be floating, got int64: use jax.nn.one_hot",
            lambda: build(y=np.arange(4)[:, None], loss=cf.CrossEntropy()),
        ),
        "smoothing beyond 1": (
            r"amount must be in \[0, 1\], got 1.5",
            lambda: smooth_labels(jnp.asarray(labels), 1.5),
        ),
    }
)
# --- weights, terms, losses -------------------------------------------------------------------------------------------
add(
    {
        "a negative sample weight": (
            r"weights must be non-negative, got -1.0 at sample 3",
            lambda: build(weights=[1, 1, 1, -1]),
        ),
        "weights all zero": (r"weights are all zero", lambda: build(weights=np.zeros(4))),
        "NaN weight": (r"weights: 1 NaN", lambda: build(weights=[1, 1, 1, np.nan])),
        "weights of another length": (
            r"weights \(4,\), got shapes \(\) and \(3,\)",
            lambda: build(weights=np.ones(3)),
        ),
        "weights in words": (
            r"weight and weights must be real numbers, got 'balanced'",
            lambda: build(weights="balanced"),
        ),
        "complex weights": (r"weight and weights must be real numbers", lambda: build(weights=np.ones(4) * 1j)),
        "a negative term weight": (
            r"weight must be non-negative, got -2",
            lambda: cf.Term(perceptron, inputs, targets, weight=-2.0),
        ),
        "a term weight per sample": (
            r"weight must be a number",
            lambda: cf.Term(perceptron, inputs, targets, weight=np.ones(4)),
        ),
        "an infinite term weight": (
            r"weight: 1 NaN or infinite",
            lambda: cf.Term(perceptron, inputs, targets, weight=np.inf),
        ),
        "all term weights zero": (
            r"all term weights are zero",
            lambda: cf.Problem.from_terms([cf.Term(perceptron, inputs, targets, weight=0.0)]),
        ),
        "no terms": (r"from_terms: expected a non-empty sequence of cf.Term", lambda: cf.Problem.from_terms([])),
        "tuples instead of terms": (
            r"from_terms: expected .* cf.Term",
            lambda: cf.Problem.from_terms([(perceptron, inputs, targets)]),
        ),
        "one term instead of a list": (r"from_terms: expected", lambda: cf.Problem.from_terms(problem.terms[0])),
        "a model that is no function": (r"fn must be a function .* got dict", lambda: build(model=params)),
        "a loss by name": (r"loss must be cf.SquaredError\(\), .* got 'mse'", lambda: build(loss="mse")),
        "a loss class": (r"loss must be cf.SquaredError\(\)", lambda: build(loss=cf.SquaredError)),
        "a loss of a number": (r"Loss: fn must be a function .* got float", lambda: cf.Loss(0.5)),
        "a loss that is no scalar": (
            r"Loss: fn must return a scalar, got shape \(2,\)",
            lambda: build(loss=cf.Loss(lambda x, y: (x - y) ** 2)).cost(params),
        ),
    }
)


# --- models and parameters --------------------------------------------------------------------------------------------
@contextmanager
def memory(limit: str) -> Iterator[None]:
    os.environ["CHORDFLOW_MEMORY_LIMIT"] = limit
    try:
        yield
    finally:
        del os.environ["CHORDFLOW_MEMORY_LIMIT"]


def python_random(p: Any, z: Any) -> Any:
    return perceptron(p, z) * np.random.default_rng().uniform()


calls: list[int] = []


def counter(p: Any, z: Any) -> Any:
    calls.append(0)
    return perceptron(p, z) * len(calls)


running = {"mean": 0.0}


def batch_statistics(p: Any, z: Any) -> Any:
    if not isinstance(z, Tracer):
        running["mean"] = 0.9 * running["mean"] + 0.1 * float(z[0])
    return perceptron(p, z) - running["mean"]


def dropout(p: Any, z: Any) -> Any:
    return perceptron(p, z) * (np.random.default_rng().uniform(size=2) < 0.5) / 0.5


cast = {name: leaf.astype(jnp.float32) for name, leaf in params.items()}
add(
    {
        "a model with random numbers": (
            r"answers differently when called twice: dropout",
            lambda: evolve(of=build(python_random)),
        ),
        "a model that counts": (r"answers differently when called twice", lambda: evolve(of=build(counter))),
        "a model with running statistics": (
            r"answers differently .* batch statistics",
            lambda: evolve(of=build(batch_statistics)),
        ),
        "dropout in training mode": (
            r"answers differently .* switch it to inference mode",
            lambda: evolve(of=build(dropout)),
        ),
        "a model that returns its state": (
            r"must return one array \(2,\), got a tuple",
            lambda: evolve(of=build(lambda p, z: (perceptron(p, z), z))),
        ),
        "a model of three outputs": (
            r"returns shape \(3,\) for one input but targets have \(2,\)",
            lambda: evolve(of=build(lambda p, z: jnp.ones(3) * p["bias"][0])),
        ),
        "a model of a scalar": (
            r"returns shape \(\) for one input",
            lambda: build(lambda p, z: perceptron(p, z)[0]).cost(params),
        ),
        "a model for batches": (
            r"returns shape \(1, 2\) for one input",
            lambda: build(lambda p, z: perceptron(p, z)[None]).outputs(params),
        ),
        "a model that is not finite": (
            r"outputs at the initial parameters are not finite",
            lambda: evolve(of=build(lambda p, z: jnp.log(-jnp.exp(perceptron(p, z))))),
        ),
        "float32 parameters and float64 data": (
            r"returns float32 but targets are float64: cast one",
            lambda: build(lambda p, z: perceptron(p, z.astype(jnp.float32))).cost(cast),
        ),
        "complex parameters": (
            r"complex parameters are not supported: split",
            lambda: problem.cost(params | {"out": params["out"] * 1j}),
        ),
        "complex NumPy parameters": (
            r"complex parameters are not supported",
            lambda: problem.cost(params | {"out": np.asarray(params["out"]) * 1j}),
        ),
        "integer parameters": (
            r"no trainable parameters: a floating array is needed, got int64",
            lambda: evolve(of=build(lambda p, z: z * p), at=jnp.arange(2)),
        ),
        "no parameters": (
            r"no trainable parameters: .* got no leaves",
            lambda: evolve(of=build(lambda p, z: z), at={}),
        ),
        "Python numbers as parameters": (
            r"no trainable parameters: .* got float",
            lambda: evolve(of=build(lambda p, z: p * z), at=1.0),
        ),
        "everything frozen": (r"no trainable parameters", lambda: evolve(of=build(trainable=False))),
        "a frozen tree of another shape": (
            r"trainable must be None, a predicate or a prefix",
            lambda: evolve(of=build(trainable={"w": True})),
        ),
        "names of trainable leaves": (
            r"trainable must hold booleans, got 'out'",
            lambda: evolve(of=build(trainable="out")),
        ),
        "float32 and float64 parameters together": (
            r"trainable parameters must have one dtype, got float32 and float64: cast",
            lambda: evolve(at=params | {"out": params["out"].astype(jnp.float32)}),
        ),
        "NaN parameters": (
            r"outputs at the initial parameters are not finite",
            lambda: evolve(at=params | {"out": params["out"] * jnp.nan}),
        ),
        "a tangent of another tree": (
            r"J.mv: expected a tangent like the parameters",
            lambda: problem.jacobian(params).mv((params["in"],)),
        ),
    }
)

# --- filters, flows, clocks, events -----------------------------------------------------------------------------------
filters, velocities, clocks, events = cf.filters, cf.velocities, cf.clocks, cf.events
text = "small"
add(
    {
        "eps of zero": (r"Damped: eps must be in \(0, 1\), got 0", lambda: cf.adapted(eps=0)),
        "a negative eps": (r"Damped: eps must be in \(0, 1\), got -1", lambda: cf.straight(eps=-1.0)),
        "NaN eps": (r"Cutoff: eps must be in \(0, 1\), got nan", lambda: filters.Cutoff(float("nan"))),
        "eps in words": (r"Damped: eps must be a number in \(0, 1\), got 'small'", lambda: cf.adapted(eps=text)),
        "no passes": (r"passes must be an integer of at least 1, got 0", lambda: cf.adapted(passes=0)),
        "half a pass": (r"passes must be an integer of at least 1, got 1.5", lambda: filters.Damped(passes=1.5)),
        "passes of True": (
            r"passes must be an integer .* got True",
            lambda: filters.Interpolated(0.5, passes=True),
        ),
        "tau beyond 1": (r"Interpolated: tau must be in \[0, 1\], got 1.2", lambda: cf.interpolated(1.2)),
        "NaN tau": (r"Interpolated: tau must be in \[0, 1\], got nan", lambda: cf.interpolated(float("nan"))),
        "a negative power": (r"Power: p must be in \[0, 1\], got -0.1", lambda: filters.Power(-0.1)),
        "a flow the wrong way round": (
            r"Flow: expected a velocity .* got Damped and Descent",
            lambda: cf.Flow(filters.Damped(), velocities.Descent()),
        ),
        "a flow of classes": (r"Flow: expected a velocity", lambda: cf.Flow(velocities.Descent, filters.Damped)),
        "a path of numbers": (
            r"path must be a function path\(t\) -> outputs, got ndarray",
            lambda: cf.along(targets),
        ),
        "a route of numbers": (
            r"path must be a function fn\(t, x0, y\) -> outputs, got ndarray",
            lambda: velocities.Route(targets),
        ),
        "a path that starts elsewhere": (
            r"path\(0\) is .* away from the outputs at the start, .* start the path at .* or give a gain",
            lambda: evolve(cf.along(lambda t: t * targets)),
        ),
        "a negative gain": (
            r"along\(\): gain must be in \[0, inf\), got -1",
            lambda: cf.along(lambda t: t, gain=-1.0),
        ),
        "NaN gain": (r"gain must be in \[0, inf\), got nan", lambda: cf.along(lambda t: t, gain=float("nan"))),
        "a gain in words": (
            r"gain must be a number in \[0, inf\), got 'small'",
            lambda: cf.along(lambda t: t, gain=text),
        ),
        "a path of another shape": (
            r"path\(t\) must be like the outputs \(4, 2\), got \(2,\)",
            lambda: evolve(cf.along(lambda t: t * jnp.ones(2))),
        ),
        "a target of another shape": (
            r"target must be like the outputs, got \(3, 2\), expected \(4, 2\)",
            lambda: evolve(cf.straight(np.ones((3, 2)))),
        ),
        "a target that is not finite": (
            r"straight\(\): the target is not finite",
            lambda: evolve(cf.straight(spoilt(targets, np.inf))),
        ),
        "straight to one-hot labels": (
            r"one-hot labels have no finite equilibrium .* smooth",
            lambda: evolve(of=build(y=labels, loss=cf.CrossEntropy())),
        ),
        "straight without an equilibrium": (
            r"straight\(\): Loss has no target in closed form; give target=",
            lambda: evolve(of=build(loss=quartic)),
        ),
        "a clock of no samples": (
            r"Interpolation: n, the number of samples, must be in \(0, inf\), got 0",
            lambda: clocks.Interpolation(0),
        ),
        "a clock of NaN samples": (
            r"Interpolation: n, .* must be in \(0, inf\), got nan",
            lambda: clocks.Interpolation(float("nan")),
        ),
        "a clock in words": (
            r"Interpolation: n, .* must be a number in \(0, inf\), got 'small'",
            lambda: clocks.Interpolation(text),
        ),
        "log time of a negative unit": (r"Log: unit must be in \(0, inf\), got -1", lambda: clocks.Log(unit=-1.0)),
        "an event at zero": (r"CostBelow: target must be in \(0, inf\), got 0", lambda: events.CostBelow(0.0)),
        "an event in words": (
            r"CostBelow: target must be a number in \(0, inf\), got 'small'",
            lambda: events.CostBelow(text),
        ),
        "an event at a negative speed": (
            r"VelocityBelow: tolerance must be in \(0, inf\), got -1",
            lambda: events.VelocityBelow(-1.0),
        ),
        "an event at no dimension": (
            r"EffectiveDimensionBelow: level must be in \(0, inf\), got 0",
            lambda: events.EffectiveDimensionBelow(0.0),
        ),
        "an event at the whole velocity": (
            r"VelocityUnreachable: fraction must be in \(0, 1\), got 1",
            lambda: events.VelocityUnreachable(1.0),
        ),
    }
)

# --- evolve -----------------------------------------------------------------------------------------------------------
descent = cf.adapted()
interpolation = clocks.Interpolation(4)


def cutoff(**options: Any) -> Any:
    return cf.Flow(velocities.Descent(), filters.Cutoff(**options))


def short(**options: Any) -> Any:
    return cf.evolve(wide(dtype=jnp.float32), wide_params(dtype=jnp.float32), cf.straight(), **options)


add(
    {
        "a flow by name": (r"flow must be a cf.Flow such as cf.adapted\(\), got 'adapted'", lambda: evolve("adapted")),
        "a flow that was not called": (
            r"flow must be a cf.Flow such as cf.adapted\(\), got straight",
            lambda: evolve(cf.straight),
        ),
        "a problem that is none": (
            r"problem must be a cf.Problem, got tuple",
            lambda: evolve(of=(inputs, targets)),
        ),
        "a negative tolerance": (r"rtol must be a number in \(0, 1\), got -1e-06", lambda: evolve(rtol=-1e-6)),
        "a tolerance of zero": (r"rtol must be a number in \(0, 1\), got 0", lambda: evolve(rtol=0)),
        "a NaN tolerance": (r"rtol must be a number in \(0, 1\), got nan", lambda: evolve(rtol=float("nan"))),
        "a tolerance in words": (r"rtol must be a number in \(0, 1\), got 'small'", lambda: evolve(rtol=text)),
        "a negative absolute tolerance": (r"atol must be a number in \(0, inf\), got -1", lambda: evolve(atol=-1)),
        "an infinite absolute tolerance": (
            r"atol must be a number in \(0, inf\), got inf",
            lambda: evolve(atol=np.inf),
        ),
        "a tolerance of True": (r"atol must be a number in \(0, inf\), got True", lambda: evolve(atol=True)),
        "a tolerance beyond 1": (r"rtol must be a number in \(0, 1\), got 2", lambda: evolve(rtol=2)),
        "float32 without tolerances": (
            r"float32 parameters need float64, .*jax_enable_x64.* or float32 tolerances",
            short,
        ),
        "float32 with tolerances of float64": (
            r"float32 parameters need float64",
            lambda: short(rtol=1e-8, atol=1e-9),
        ),
        "no end": (r"this flow needs t1, its end in gradient-flow time s", lambda: evolve(descent)),
        "an end of zero": (r"t1 must be in \(0, inf\), got 0", lambda: evolve(descent, t1=0)),
        "a negative end": (r"t1 must be in \(0, inf\), got -1", lambda: evolve(descent, t1=-1.0)),
        "an infinite end": (r"t1 must be in \(0, inf\), got inf", lambda: evolve(descent, t1=float("inf"))),
        "a NaN end": (r"t1 must be in \(0, inf\), got nan", lambda: evolve(descent, t1=float("nan"))),
        "an end in words": (r"t1 must be a number, got 'small'", lambda: evolve(descent, t1=text)),
        "several ends": (r"t1 must be a number, got shape \(2,\)", lambda: evolve(descent, t1=[1.0, 2.0])),
        "straight beyond 1": (r"t1 must be in \(0, 1\], got 2", lambda: evolve(t1=2.0)),
        "the interpolation clock at its end": (
            r"t1 must be in \(0, 1\), got 1",
            lambda: evolve(descent, t1=1.0, clock=interpolation),
        ),
        "a clock on straight": (
            r"straight\(\) and along\(\) run in their own t in \[0, 1\]: leave out clock",
            lambda: evolve(clock=interpolation),
        ),
        "a clock on along": (
            r"run in their own t .* leave out clock",
            lambda: evolve(cf.along(lambda t: t * targets), clock=clocks.Log()),
        ),
        "a clock by name": (r"clock must be of cf.clocks, got 'log'", lambda: evolve(descent, t1=1.0, clock="log")),
        "save times that decrease": (r"ts must be finite and strictly increasing", lambda: evolve(ts=[0.5, 0.2])),
        "save times twice": (r"ts must be finite and strictly increasing", lambda: evolve(ts=[0.2, 0.2])),
        "a NaN save time": (r"ts must be finite and strictly increasing", lambda: evolve(ts=[0.1, float("nan")])),
        "save times beyond the end": (
            r"ts must lie in \[0, t1=0.5\], got \[0.1, 0.7\]",
            lambda: evolve(t1=0.5, ts=[0.1, 0.7]),
        ),
        "save times before the start": (r"ts must lie in \[0, t1=1\], got \[-0.1", lambda: evolve(ts=[-0.1, 0.7])),
        "a table of save times": (
            r"ts must be a one-dimensional array of times, got shape \(1, 2\)",
            lambda: evolve(ts=[[0.1, 0.7]]),
        ),
        "one save time instead of a list": (
            r"ts must be a one-dimensional array of times, got shape \(\)",
            lambda: evolve(ts=0.5),
        ),
        "one save time instead of a list and no end": (
            r"ts must be a one-dimensional array of times, got shape \(\)",
            lambda: evolve(descent, ts=0.5),
        ),
        "no save times": (r"ts must be a one-dimensional array of times, got shape \(0,\)", lambda: evolve(ts=[])),
        "save times in words": (
            r"ts must be a one-dimensional array of times, got 'all'",
            lambda: evolve(ts="all"),
        ),
        "an unknown name to save": (r"save knows outputs, cost, .* got 'loss'", lambda: evolve(save=("loss",))),
        "a number to save": (
            r"save\['accuracy'\] must be a function fn\(t, params\), got int",
            lambda: evolve(save={"accuracy": 3}),
        ),
        "a list of names within a list": (
            r"save must be names or a mapping from names, got \['outputs'\] among them",
            lambda: evolve(save=[["outputs"]]),
        ),
        "a save whose name is a number": (
            r"save must be names or a mapping from names, got 1 among them",
            lambda: evolve(save={1: lambda t, p: t}),
        ),
        "nothing to save": (r"save must be names or a mapping, got None", lambda: evolve(save=None)),
        "no steps": (r"max_steps must be a positive integer, got 0", lambda: evolve(max_steps=0)),
        "half a step": (r"max_steps must be a positive integer, got 10.5", lambda: evolve(max_steps=10.5)),
        "an event by name": (r"events must be members of cf.events, got 'cost'", lambda: evolve(events=["cost"])),
        "one event instead of a list": (
            r"events must be a sequence",
            lambda: evolve(events=events.CostBelow(1e-3)),
        ),
        "a solver by name": (
            r"solver must be a diffrax solver such as diffrax.Tsit5\(\), got 'Tsit5'",
            lambda: evolve(solver="Tsit5"),
        ),
        "a solver class": (r"solver must be a diffrax solver such as", lambda: evolve(solver=diffrax.Tsit5)),
        "a linear solver by name": (
            r"linear_solver must be cf.solve.Cholesky\(\) or cf.solve.SVD\(\), got 'svd'",
            lambda: evolve(linear_solver="svd"),
        ),
        "eps below the floor of Cholesky": (
            r"eps = 1e-12 is below what the factorisation can see in float64 .*SVD",
            lambda: evolve(cf.straight(eps=1e-12), linear_solver=cf.solve.Cholesky()),
        ),
        "eps below the floor of the SVD": (
            r"eps = 1e-17 is below what the factorisation can see",
            lambda: evolve(cf.straight(eps=1e-17), linear_solver=cf.solve.SVD()),
        ),
        "the default eps in float32": (
            r"eps = 1e-06 is below .* float32 .* larger eps",
            lambda: short(rtol=1e-4, atol=1e-6, linear_solver=cf.solve.Cholesky()),
        ),
        "a cutoff by Cholesky": (
            r"Cutoff needs a spectrum: use linear_solver=cf.solve.SVD\(\)",
            lambda: evolve(cutoff(), t1=1.0, linear_solver=cf.solve.Cholesky()),
        ),
        "a power by Cholesky": (
            r"Power needs a spectrum",
            lambda: evolve(
                cf.Flow(velocities.Descent(), filters.Power(0.5)), t1=1.0, linear_solver=cf.solve.Cholesky()
            ),
        ),
        "expected steps of a flow by name": (
            r"flow must be a cf.Flow such as cf.adapted\(\), got 'standard'",
            lambda: cf.expected_steps(problem, params, "standard", 1.0),
        ),
        "expected steps of no problem": (
            r"problem must be a cf.Problem, got tuple",
            lambda: cf.expected_steps((inputs, targets), params, cf.standard(), 1.0),
        ),
        "expected steps of a flow without an end": (
            r"needs t1|t1 must",
            lambda: cf.expected_steps(problem, params, cf.standard(), None),
        ),
    }
)


# What the tests of fit cannot ask under a type checker.
add(
    {
        f"fit with {name}": (text, lambda options=options: cf.fit(problem, params, **options))
        for name, options, text in (
            ("corrections as a float", {"corrections": 0.0}, "corrections must be an integer of at least 0, got 0.0"),
            (
                "corrections as a bool",
                {"corrections": False},
                "corrections must be an integer of at least 0, got False",
            ),
            ("reuses in words", {"reuses": ""}, "reuses must be an integer of at least 0, got ''"),
            ("steps as a float", {"max_steps": 1e3}, "max_steps must be an integer of at least 1, got 1000.0"),
            ("a state in words", {"state": "half"}, "state must be the state of an earlier fit, got str"),
            ("a number to call", {"callback": 5}, "callback must be a function of the state of the fit, got 5"),
            ("a number as key", {"key": 0}, "key must be a jax.random.key, got 0"),
            ("a goal as target", {"target": "equilibrium"}, "target is a cost to stop at, .* are given as goal"),
            ("a solver by name", {"linear_solver": "svd"}, "linear_solver must be of cf.solve, .* got 'svd'"),
        )
    }
)


@case("buffers that do not fit", r"saving for max_steps=4096 steps needs .* GiB .* give ts", "MemoryError")
def _() -> Any:
    with memory("20000"):
        return evolve()


@case("more outputs than fit", r"Gram matrix of n = 8 outputs with its factor needs .* GiB but", "MemoryError")
def _() -> Any:
    with memory("1000"):  # the matrix itself would: 512 bytes
        return evolve(ts=[1.0], linear_solver=cf.solve.Cholesky())


@case("a decomposition that does not fit", r"Jacobian \(8 x 32\) with its .* decomposition needs .*", "MemoryError")
def _() -> Any:
    with memory("4000"):  # the Jacobian itself would: 2048 bytes
        return evolve(ts=[1.0], linear_solver=cf.solve.SVD())


@case("a dense Jacobian that does not fit", r"the Jacobian \(8 x 32\) needs", "MemoryError")
def _() -> Any:
    with memory("500"):
        return problem.jacobian(params).as_matrix()


@case("a memory limit in words", r"CHORDFLOW_MEMORY_LIMIT must be a number of bytes, got '2 GB'")
def _() -> Any:
    with memory("2 GB"):
        return evolve()


@functools.cache
def dense() -> Any:
    return evolve(t1=0.5, ts=[0.5], save=("cost",), dense=True)


add(
    {
        "outputs that were not saved": (
            r"'outputs' was not saved, only \['cost'\]: ask with",
            lambda: dense().outputs,
        ),
        "parameters between save times": (
            r"params_at needs the solver's dense output: evolve\(..., dense=True\)",
            lambda: evolve(t1=0.5, ts=[0.5], save=("cost",)).params_at(0.5),
        ),
        "parameters that were not saved": (
            r"'params' was not saved, only \['cost'\]: ask with",
            lambda: dense().params_saved(0),
        ),
        "parameters after the end": (
            r"params_at: t must be in \[0, 0.5\], .* got 0.7",
            lambda: dense().params_at(0.7),
        ),
        "parameters before the start": (r"params_at: t must be in \[0, 0.5\]", lambda: dense().params_at(-0.1)),
    }
)


def outcomes() -> dict[str, dict[str, Any]]:
    """What happened for each mistake."""
    results = {}
    for name, (_, _, mistake) in CASES.items():
        try:
            mistake()
        except Exception as exception:
            kinds, text = [kind.__name__ for kind in type(exception).__mro__], str(exception)
        else:
            kinds, text = [], "no error"
        results[name] = {"kinds": kinds, "text": text}
    return results


if __name__ == "__main__":
    print(json.dumps(outcomes()))
    sys.exit()


def run() -> dict[str, dict[str, Any]]:
    """The table as a user's interpreter answers it."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", name="answers")
def _answers() -> dict[str, dict[str, Any]]:
    return run()


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_gets_one_clear_line(answers, name):
    error, pattern, _ = CASES[name]
    kinds, text = answers[name]["kinds"], answers[name]["text"]
    assert error in kinds, f"{kinds[:1]}: {text}"
    assert re.search(pattern, text), text
    assert "\n" not in text
    assert len(text) < 400


def test_the_table_is_long():
    assert len(CASES) >= 40
