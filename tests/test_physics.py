"""Equations as problems: exact solutions cost nothing, derivatives and quadrature agree with other definitions."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import chordflow as cf
from chordflow import physics


def cube(z):
    return z[0] ** 3 * jnp.sin(z[1])


def test_derivatives_are_those_of_the_hessian():
    z = jnp.array([0.7, -0.3])
    value, first, second = physics.derivatives(cube, z)
    assert float(value) == float(cube(z))
    np.testing.assert_allclose(first, jax.grad(cube)(z), rtol=1e-14)
    np.testing.assert_allclose(second, jnp.diag(jax.hessian(cube)(z)), rtol=1e-14)
    assert float(physics.laplacian(cube, z)) == pytest.approx(float(jnp.trace(jax.hessian(cube)(z))))


def solution_of(exact):
    """The exact solution in place of a network; its one parameter is an amplitude."""
    return lambda amplitude, z: amplitude * exact(z[None])


EQUATIONS = {
    "poisson_2d": (physics.poisson_2d, {"num": 5, "num_test": 7}),
    "poisson": (physics.poisson, {"dim": 3, "num_interior": 9, "num_boundary": 12, "num_test": 20}),
    "heat_1d": (physics.heat_1d, {"num": 5, "num_test": 7}),
    # Quadrature of the Cole-Hopf integral is differentiated: smoother with more viscosity.
    "burgers": (physics.burgers, {"num_interior": 20, "num_boundary": 5, "viscosity": 0.05, "num_test": 7}),
}


def test_every_equation_is_in_the_battery():
    makers = {
        name
        for name, fn in vars(physics).items()
        if callable(fn) and getattr(fn, "__annotations__", {}).get("return") is physics.Equation
    }
    assert makers == set(EQUATIONS)


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_exact_solution_costs_nothing(name):
    make, options = EQUATIONS[name]
    exact = make(**options).exact
    equation = make(**options, model=solution_of(exact))
    one, more = jnp.asarray(1.0), jnp.asarray(1.1)
    assert float(equation.problem.cost(one)) < 1e-20
    assert float(equation.error(one)) < 1e-12
    # Negative control: another amplitude solves none of the equations.
    assert float(equation.problem.cost(more)) > 1e-4
    expected = 0.1 * float(jnp.sqrt(jnp.mean(exact(equation.test_points) ** 2)))
    assert float(equation.error(more)) == pytest.approx(expected, rel=1e-9)


def test_points_of_burgers_equation_are_drawn_inside_where_that_is_asked_for():
    make, options = EQUATIONS["burgers"]
    fixed, drawn = make(**options).problem, make(**options, drawn=True).problem
    assert not fixed.is_drawn
    one, other = (drawn.redrawn(jax.random.key(i)) for i in (1, 2))
    t, x = one.terms[0].samples.T
    assert 0 < t.min() < 0.3 < 0.7 < t.max() < 1
    assert -1 < x.min() < -0.3 < 0.3 < x.max() < 1
    assert not np.array_equal(one.terms[0].samples, other.terms[0].samples)
    for mine, theirs in zip(one.terms[1:], fixed.terms[1:], strict=True):
        assert np.array_equal(mine.samples, theirs.samples)


def test_drawn_points_lie_where_they_should_and_differ():
    equation = physics.poisson(**EQUATIONS["poisson"][1])
    first, again, other = (equation.problem.redrawn(jax.random.key(i)) for i in (1, 1, 2))
    inside, boundary = first.terms[0].samples, first.terms[1].samples
    assert np.all((inside > 0) & (inside < 1))
    assert np.all(np.any((boundary == 0) | (boundary == 1), axis=1))
    assert np.array_equal(boundary, again.terms[1].samples)
    assert not np.array_equal(boundary, other.terms[1].samples)
    np.testing.assert_allclose(first.terms[1].targets[:, 0], equation.exact(boundary))


def test_cole_hopf_agrees_with_adaptive_quadrature():
    nu = 0.05

    def literal(t, x):
        def weight(eta):
            return np.exp(-np.cos(np.pi * (x - eta)) / (2 * np.pi * nu) - eta**2 / (4 * nu * t))

        top = scipy.integrate.quad(lambda eta: np.sin(np.pi * (x - eta)) * weight(eta), -6, 6, points=[0], limit=200)[0]
        return -top / scipy.integrate.quad(weight, -6, 6, points=[0], limit=200)[0]

    points = np.array([[0.3, 0.2], [0.9, -0.4], [0.05, 0.8]])
    np.testing.assert_allclose(
        physics.cole_hopf(jnp.asarray(points), nu), [literal(t, x) for t, x in points], rtol=1e-8, atol=1e-10
    )
    start = physics.cole_hopf(jnp.array([[0.0, 0.25]]), nu)
    assert float(start[0]) == pytest.approx(-np.sin(np.pi / 4), abs=1e-12)


def test_initial_laws():
    small = physics.small_normal(jax.random.key(0), (2, 400, 1))
    assert float(jnp.std(small[0]["w"])) == pytest.approx(0.1, rel=0.1)
    assert float(jnp.std(small[0]["b"])) == pytest.approx(0.1, rel=0.1)
    flat = physics.uniform(jax.random.key(0), (4, 400, 1))
    assert 0.45 < float(jnp.max(jnp.abs(flat[0]["w"]))) <= 0.5
    assert float(jnp.max(jnp.abs(flat[1]["w"]))) <= 0.05


def test_a_fit_solves_the_equation():
    equation = physics.heat_1d(num=6, num_test=15)
    params = physics.small_normal(jax.random.key(1), (2, 6, 1))
    fit = cf.fit(equation.problem, params, max_steps=12)
    assert float(equation.error(fit.params)) < 0.05 * float(equation.error(params))


def test_the_page_on_equations_runs():
    page = (Path(__file__).parents[1] / "docs" / "physics.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 2
    # The first block is the benchmark; here with a coarser grid and fewer steps.
    small = blocks[0].replace("poisson_2d()", "poisson_2d(num=6, num_test=9)").replace("max_steps=100", "max_steps=3")
    for code in (small, blocks[1]):
        scope: dict = {}
        exec(compile(code, "docs/physics.md", "exec"), scope)
    u = scope["fit"].params
    points = jnp.linspace(0, 2, 7)[:, None]
    np.testing.assert_allclose(jax.vmap(lambda z: scope["model"](u, z))(points), jnp.sin(points), atol=1e-4)
