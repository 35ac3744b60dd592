"""A configuration turned into objects: data, network, loss, and what each flow of a run is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from chordflow import data, models
from chordflow.clocks import AbstractClock
from chordflow.config import Config, ConfigError, make_clock, make_loss, parse_flow
from chordflow.flows import Flow
from chordflow.losses import AbstractLoss
from chordflow.problem import Problem
from chordflow.velocities import Straight


@dataclass(frozen=True, eq=False)
class Plan:
    """What one flow of a run is made of, before anything is integrated."""

    name: str
    flow: Flow
    problem: Problem
    clock: AbstractClock | None
    t1: float

    @property
    def variable(self) -> str:
        """``s`` for gradient-flow time, ``t`` for a clock and for straight and along, which have their own t."""
        return "s" if self.flow.velocity.is_autonomous and self.clock is None else "t"

    def obstacle(self, params: PyTree) -> str | None:
        """Why the problem does not allow the flow, such as a straight one to labels without a finite equilibrium.

        A path of the user's own that does not fit is a mistake and raises ConfigError.
        """
        try:
            self.flow.velocity.bind(self.problem, self.problem.outputs(params))
        except ValueError as reason:
            if not isinstance(self.flow.velocity, Straight):
                raise ConfigError(f"flows = {self.name}: {reason}") from None
            return str(reason)
        return None


@dataclass(frozen=True)
class Setting:
    """A configuration turned into objects: data, network, loss, and one problem per sample size."""

    config: Config
    dataset: data.Dataset
    apply: Callable[[Any, Any], Array]
    params: PyTree
    loss: AbstractLoss

    @classmethod
    def build(cls, config: Config) -> "Setting":
        """Load the data and make the network; every mistake is a one-line ValueError that names the key."""
        options = {key: getattr(config.data, key) for key in ("path", "task", "target", "standardise")}
        d = config.data
        dataset = data.load(
            d.name, samples=d.samples, seed=d.seed, smoothing=d.smoothing, max_test=d.max_test, **options
        )
        if config.loss == "cross_entropy" and dataset.task != "classification":
            raise ConfigError(f"loss = cross_entropy: data.name = {d.name} is a {dataset.task} task, needs classes")
        network = dict(config.model)
        name = network.pop("name", "mlp")
        model = models.build(name, dataset.input_shape, dataset.num_outputs, seed=config.seed, **network)
        setting = cls(config, dataset, model.apply, model.params, make_loss(config.loss))
        setting._check(setting.problem())
        return setting

    def _check(self, problem: Problem) -> None:
        """The mistakes of a model and a loss of the user's own, before there is a folder."""
        dtype = problem.ravel(self.params)[0].dtype
        if dtype != np.float64:
            where = "leave out model.dtype" if "dtype" in self.config.model else "make the parameters float64"
            raise ConfigError(f"model.name: parameters are {dtype}, flows are integrated in float64: {where}")
        problem.check(self.params)
        eqx.filter_eval_shape(problem.cost, self.params)

    def problem(self, samples: int | None = None) -> Problem:
        """The problem on the first ``samples`` (all if None)."""
        rows = slice(samples)
        return Problem(self.apply, self.dataset.inputs[rows], self.dataset.targets[rows], loss=self.loss)

    def plan(self, name: str) -> Plan:
        """Objects for one flow of the configuration.

        A flow with a part as stiff as DDᵀ gets ``data.stiff_samples``. It ends at 1 in its own t (straight, along),
        else at ``t1``, by default s = N, or 5 N where nothing is stiff.
        """
        config, flow = self.config, parse_flow(name).flow(self.config.eps)
        blend = flow.filter.blend()
        stiff = blend is None or float(blend.transpose) > 0
        N, few = len(self.dataset.targets), config.data.stiff_samples
        if few is not None and few > N:
            raise ConfigError(f"data.stiff_samples = {few}: expected at most the {N} samples there are")
        N = few or N if stiff else N
        problem = self.problem(N)
        if not flow.velocity.is_autonomous:
            return Plan(name, flow, problem, None, 1.0)
        clock, t1 = make_clock(config.clock, N), config.t1
        if t1 is None:
            s = (1.0 if stiff else 5.0) * N
            t1 = s if clock is None else float(clock.t(jnp.asarray(s)))
        if clock is not None and t1 >= clock.end:
            raise ConfigError(f"t1 = {t1:g}: expected below {clock.end:g} on the {config.clock} clock")
        return Plan(name, flow, problem, clock, t1)
