"""`chordflow bench` at a tiny size: what it measures is what it says, and its mistakes are one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chordflow import bench
from chordflow.cli import main

TINY = ["seeds=1", "samples=12", "width=4", "target=0.1", "points=3", "steps=2", "seconds=5"]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "bench.json"
    assert main(["bench", *TINY, f"out={out}"]) == 0
    return json.loads(out.read_text())


def test_the_record_has_every_method_on_both_problems(record):
    rows = {(row["problem"], row["method"]) for row in record["results"]}
    assert rows == {(p, m) for p in ("diabetes", "poisson") for m in ("cf.fit", "Adam 3e-3", "L-BFGS")}
    assert record["config"]["samples"] == 12
    assert record["environment"]["dtype"] == "float64"
    for row in record["results"]:
        assert row["seconds"] > 0
        assert row["first_call"] > 0
        assert row["reached"] == (row["problem"] == "diabetes" and row["cost"] <= 0.1)
        assert ("error" in row) == (row["problem"] == "poisson")


def test_the_table_has_a_line_per_run_and_one_per_ratio(capsys):
    assert main(["bench", *TINY[:-3], "points=0", "seconds=5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["problem", "method", "seed", "seconds", "cost", "error", "ended"]
    assert [line.split()[1] for line in lines[1:4]] == ["cf.fit", "Adam", "L-BFGS"]
    assert [line for line in lines if "times the seconds of cf.fit" in line] == lines[4:]
    assert len(lines) == 6


@pytest.mark.parametrize("has_line_search", [False, True])
def test_a_peer_takes_the_steps_of_its_optimiser(has_line_search):
    """Against a literal loop without chunks."""

    def cost(theta):
        return 0.5 * jnp.sum(jnp.array([1.0, 30.0]) * (theta - 1) ** 2)

    transform = optax.lbfgs() if has_line_search else optax.adam(1e-2)
    theta = start = jnp.array([3.0, -1.0])
    transform = optax.with_extra_args_support(transform)
    state, costs = transform.init(theta), []
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(6):
            value, grad = jax.value_and_grad(cost)(theta)
            costs.append(float(value))
            updates, state = transform.update(grad, state, theta, value=value, grad=grad, value_fn=cost)
            theta = theta + jnp.asarray(updates)
    found = bench.Descent(transform, cost, has_line_search=has_line_search)(start, target=costs[5], seconds=60.0)
    assert (found.steps, found.reached) == (6, True)
    assert found.cost == pytest.approx(costs[5], rel=1e-12)
    np.testing.assert_allclose(found.theta, theta, rtol=1e-12)


def test_a_peer_ends_at_its_limit_and_where_the_cost_is_not_finite():
    run = bench.Descent(optax.adam(1e-2), lambda theta: jnp.sum(theta**2))
    timed = run(jnp.array([1.0]), target=-1.0, seconds=0.05)
    assert not timed.reached
    assert timed.seconds >= 0.05
    broken = bench.Descent(optax.adam(1e-2), lambda theta: jnp.sum(jnp.log(theta)))
    ended = broken(jnp.array([-1.0]), target=-1.0, seconds=60.0)
    assert (ended.steps, ended.reached) == (1, False)


MISTAKES = [
    (["seed=1"], "did you mean seeds?"),
    (["seeds=0"], "seeds = 0: expected an integer of at least 1"),
    (["samples=1.5"], "samples = 1.5: expected an integer"),
    (["samples=1000"], "442"),
    (["target=0"], "target must be in (0, inf)"),
    (["seconds=soon"], "seconds must be a number in (0, inf), got 'soon'"),
    (["out=none/bench.json"], "expected a JSON file in a folder that exists"),
    (["out=."], "expected a JSON file in a folder that exists"),
    (["some.toml"], "key=value only"),
]


@pytest.mark.parametrize(("words", "text"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_a_users_mistake_is_one_line(words, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words]) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
