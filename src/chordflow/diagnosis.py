"""What a finished flow is compared with and shown by: spectra, table, labelled dataset, figures."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from chordflow import figures, geometry, record
from chordflow.comparison import Comparison, gradient_times, saved_scalars
from chordflow.problem import Problem
from chordflow.setting import Plan
from chordflow.solve import RankPolicy
from chordflow.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPECTRUM_SAVES, FEW_SPECTRUM_SAVES, MANY_OUTPUTS = 11, 5, 1000
"""A spectrum is a decomposition, which for more than a thousand outputs takes seconds: then fewer of them."""


@dataclass(frozen=True)
class FlowRun:
    """One finished flow of a run."""

    plan: Plan
    trajectory: Trajectory
    comparison: Comparison
    spectrum_times: Float[np.ndarray, " t"]
    sigmas: Float[np.ndarray, "t k"]
    seconds: float

    @property
    def num_samples(self) -> float:
        """N."""
        return float(self.plan.problem.num_samples)

    @property
    def s(self) -> np.ndarray:
        """Gradient-flow time of each save."""
        return gradient_times(self.plan.flow, self.plan.clock, self.trajectory.ts, self.num_samples)


def spectra(problem: Problem, trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """Times and singular values of some saves; by the Gram matrix where D is large and G sees them all."""
    n, K = problem.jacobian(trajectory.params).shape
    many = min(n, K) > MANY_OUTPUTS
    count = FEW_SPECTRUM_SAVES if many else SPECTRUM_SAVES
    picked = np.unique(np.linspace(0, len(trajectory.ts) - 1, count).astype(int))
    spectra = []
    for i in picked:
        params = trajectory.params_saved(int(i))
        sigma = geometry.spectrum_from_gram(problem, params) if many else geometry.spectrum(problem, params)
        spectra.append(geometry.spectrum(problem, params) if bool(jnp.isnan(sigma).any()) else sigma)
    return np.asarray(trajectory.ts)[picked], np.asarray(spectra)


def flow_dataset(done: FlowRun) -> Any:
    """Everything saved of a flow, with its prediction and spectra, as one labelled xarray dataset."""
    dataset = done.trajectory.to_xarray()
    dataset = dataset.assign_coords(s=("time", done.s))
    if done.comparison.predicted is not None:
        dataset["predicted_outputs"] = (dataset["outputs"].dims, done.comparison.predicted)
    dataset = dataset.assign_coords(spectrum_time=("spectrum_time", done.spectrum_times))
    dataset["sigma"] = (("spectrum_time", "singular_value"), done.sigmas)
    dataset["seconds"] = ((), done.seconds)
    dataset.attrs |= {"flow": done.plan.name, "prediction": done.comparison.what}
    return dataset


def flow_summary(done: FlowRun) -> dict[str, Any]:
    """Outcome, numbers and table of a flow."""
    return {
        "result": done.trajectory.result_name,
        "samples": int(done.num_samples),
        "stats": saved_scalars(done.trajectory),
        "comparison": [row._asdict() for row in done.comparison.rows],
    }


def draw(runs: list[FlowRun]) -> dict[str, "Figure"]:
    """The figures of a run: outputs in one plane, cost on both clocks, spectra over time."""
    problems = [r.plan.problem for r in runs]
    common = min(len(problem.terms[0].targets) for problem in problems)
    outputs = {r.plan.name: np.asarray(r.trajectory.outputs)[:, :common] for r in runs}
    first = runs[0].trajectory.outputs[0][:common]
    target = jax.vmap(problems[0].loss.equilibrium)(first, problems[0].terms[0].targets[:common])
    drawn: dict[str, Any] = {}
    if target is not None and np.isfinite(target).all():
        drawn["outputs"] = figures.output_plane(outputs, chord=(np.asarray(first), np.asarray(target)))
    minimum = [float(m) if (m := problem.minimum()) is not None else 0.0 for problem in problems]
    # Each flow against s/N, so that flows on different numbers of samples share one axis.
    curves = {
        r.plan.name: (r.s / r.num_samples, np.asarray(r.trajectory.costs) - low)
        for r, low in zip(runs, minimum, strict=True)
    }
    predictions = {
        r.plan.name: (r.s / r.num_samples, _costs(r.plan.problem, r.comparison.predicted) - low)
        for r, low in zip(runs, minimum, strict=True)
        if r.comparison.predicted is not None
    }
    drawn["cost"] = figures.cost_curves(curves, 1.0, predictions=predictions)
    for r in runs:
        lam = float(RankPolicy.of(r.plan.flow.filter, r.trajectory.stats["sigma_max"], 0.0).lam)
        drawn[f"spectrum-{record.dataset_name(r.plan.name)}"] = figures.spectrum_map(
            r.spectrum_times, r.sigmas, lam, time_label=r.plan.variable
        )
    return drawn


def _costs(problem: Problem, outputs: np.ndarray) -> np.ndarray:
    """C along given outputs (T, N, Q)."""
    return np.asarray(jax.vmap(problem.cost_at)(jnp.asarray(outputs)))
