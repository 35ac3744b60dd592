"""The peers of `cf.fit`: each runs from given parameters until a cost or a time limit, compilation apart."""

import contextlib
import math
import time
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import optimistix as optx
import scipy.optimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

from chordflow.bench import Descent, Run, chord, flat_cost


class RunEnd(Exception):  # noqa: N818
    """Raised inside a peer's loop when its run has to end."""


class Clock:
    """Seconds since the start and the lowest cost so far; ends a run at its target or its limit."""

    def __init__(self, target, limit):
        self.target, self.limit, self.curve, self.cost, self.start = target, limit, [], math.inf, time.perf_counter()

    def saw(self, cost):
        """Note a cost; raise RunEnd where the run has to end."""
        elapsed = time.perf_counter() - self.start
        self.cost = min(self.cost, float(cost))
        self.curve.append((elapsed, float(cost)))
        if self.cost <= self.target or elapsed > self.limit:
            raise RunEnd

    def ended(self, first_call, theta):
        """The run as it ended."""
        seconds = self.curve[-1][0] if self.curve else time.perf_counter() - self.start
        return Run(seconds, self.cost <= self.target, self.cost, len(self.curve), first_call, self.curve, theta)


def levenberg_marquardt(residual, linear_solver, jac="fwd"):
    """optimistix's Levenberg–Marquardt, one compiled step at a time, as its documentation does it.

    ``residual`` is scaled so that half the sum of its squares is the cost.
    """
    solver = optx.LevenbergMarquardt(rtol=1e-14, atol=1e-14, linear_solver=linear_solver)

    def fn(theta, args):
        del args
        return residual(theta), None

    options = {"jac": jac}
    step = eqx.filter_jit(lambda y, state: solver.step(fn, y, None, options, state, frozenset()))

    def run(theta, *, target, seconds):
        f_struct, aux_struct = jax.eval_shape(fn, theta, None)
        state = solver.init(fn, theta, None, options, f_struct, aux_struct, frozenset())
        began = time.perf_counter()
        # Twice: what a step returns has other weak types than what init makes.
        jax.block_until_ready(step(*step(theta, state)[:2])[0])
        first_call = time.perf_counter() - began
        clock, y = Clock(target, seconds), theta
        try:
            while True:
                y, state, _ = step(y, state)
                # f of the last accepted point.
                clock.saw(0.5 * jnp.sum(state.f_info.residual**2))
        except RunEnd:
            return clock.ended(first_call, y)

    return run


def scipy_lbfgs(cost, memory=10):
    """scipy's L-BFGS-B on a compiled cost and gradient."""
    value_and_grad = jax.jit(jax.value_and_grad(cost))

    def run(theta, *, target, seconds):
        began = time.perf_counter()
        jax.block_until_ready(value_and_grad(theta))
        first_call = time.perf_counter() - began
        clock = Clock(target, seconds)

        def evaluate(x):
            value, grad = value_and_grad(x)
            clock.saw(value)
            return float(value), np.asarray(grad)

        options = {"maxiter": 10**9, "maxfun": 10**9, "ftol": 0.0, "gtol": 0.0, "maxcor": memory}
        with contextlib.suppress(RunEnd):
            scipy.optimize.minimize(evaluate, np.asarray(theta), jac=True, method="L-BFGS-B", options=options)
        return clock.ended(first_call, theta)

    return run


class Started(MLPRegressor):
    """scikit-learn's network from given layers, ended by a clock. Its cost is the one that it computes anyway."""

    layers: Any = ()
    clock: Any = None

    def _init_coef(self, fan_in, fan_out, dtype):
        w, b = next(layer for layer in self.layers if layer[0].shape == (fan_in, fan_out))
        return w.astype(dtype), b.astype(dtype)

    def _loss_grad_lbfgs(self, *args, **options):
        loss, grad = super()._loss_grad_lbfgs(*args, **options)
        self.clock.saw(loss)
        return loss, grad

    def _update_no_improvement_count(self, *args, **options):
        super()._update_no_improvement_count(*args, **options)
        self._no_improvement_count = 0
        self.clock.saw(self.loss_)  # mean over the batches of the epoch


def scikit_learn(inputs, targets, widths, solver):
    """MLPRegressor with its defaults but alpha = 0 and no early end; tanh, from the given layers."""

    def run(params, *, target, seconds):
        endless = {"alpha": 0.0, "tol": 0.0, "max_iter": 10**7, "max_fun": 10**9, "n_iter_no_change": 10**7}
        model = Started(hidden_layer_sizes=tuple(widths), activation="tanh", solver=solver, random_state=0, **endless)
        model.layers = [(np.asarray(layer["w"]), np.asarray(layer["b"])) for layer in params]
        model.clock = clock = Clock(target, seconds)
        with contextlib.suppress(RunEnd), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(inputs, targets[:, 0])
        layers = [{"w": w, "b": b} for w, b in zip(model.coefs_, model.intercepts_, strict=True)]
        return clock.ended(0.0, layers)

    return run


def methods(problem, params, inputs, targets, widths, rates):
    """Name → run(params, target=, seconds=) for one network on one data set; compiled once, run from several starts."""
    cost = flat_cost(problem, params)[1]
    unravel = problem.ravel(params)[1]

    def residual(theta):
        return ((problem.outputs(unravel(theta)) - targets) / len(targets) ** 0.5).ravel()

    def on_theta(run):
        return lambda params, **limits: run(problem.ravel(params)[0], **limits)

    flat: dict[str, Any] = {f"optax Adam {rate:g}": Descent(optax.adam(rate), cost) for rate in rates}
    flat["optax L-BFGS"] = Descent(optax.lbfgs(), cost, has_line_search=True)
    flat["scipy L-BFGS-B"] = scipy_lbfgs(cost)
    flat["optimistix LM (QR)"] = levenberg_marquardt(residual, lx.QR(), "bwd")
    flat["optimistix LM (LSMR)"] = levenberg_marquardt(residual, lx.LSMR(rtol=1e-3, atol=1e-10))
    own = {"cf.fit": lambda params, **limits: chord(problem, params, **limits)}
    sk = {f"scikit-learn {solver}": scikit_learn(inputs, targets, widths, solver) for solver in ("adam", "lbfgs")}
    return own | {name: on_theta(run) for name, run in flat.items()} | sk
