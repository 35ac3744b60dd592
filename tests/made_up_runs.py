"""Run folders of made-up flows: what a run leaves, without running anything."""

import numpy as np
import xarray

from chordflow import record

CONFIG = {"flows": ["straight", "standard"], "loss": "squared_error", "data": {"name": "digits", "samples": 4}}


def flow_data(
    *,
    bend: float = 0.0,
    end: float = 1.0,
    seed: int = 0,
    samples: int = 4,
    classes: int = 3,
    loss: str = "SquaredError",
    saves: int = 9,
):
    """A dataset as a run leaves it, of a made-up flow that bends off its chord."""
    rng = np.random.default_rng(seed)
    labels = np.eye(classes)[np.arange(samples) % classes]
    x0, target = rng.normal(size=labels.shape), labels * 0.7 + 0.3 / classes
    y = np.log(target) if loss == "CrossEntropy" else target
    if loss == "CrossEntropy":
        y += np.mean(x0 - y, axis=1, keepdims=True)
    t = np.linspace(0, end, saves)
    few, some = slice(None, None, (saves - 1) // 2), slice(None, None, (saves - 1) // 4)
    way = rng.normal(size=x0.shape)
    x = x0 + t[:, None, None] * (y - x0) + bend * (t * (1 - t))[:, None, None] * way
    off = abs(x - x0 - t[:, None, None] * (y - x0)).max(axis=(1, 2)) / abs(y - x0).max()
    cost = 0.5 * ((x - y) ** 2).sum(axis=(1, 2)) / samples
    sigma = np.geomspace(10, 1e-3, labels.size) * (1 + t[few, None])
    with np.errstate(divide="ignore"):
        s = -samples * np.log1p(-t)
    variables = {
        "outputs": (("time", "sample", "output"), x),
        "cost": ("time", cost),
        "target": (("sample", "output"), target),
        "equilibrium": (("sample", "output"), y),
        "predicted_cost": ("time", cost * 1.1),
        "deviation": ("time", off),
        "predicted_deviation": ("time", 1.1 * off, {"long_name": "max |x − chord|, predicted by (2.58)"}),
        "sigma": (("spectrum_time", "singular_value"), sigma),
        "effective_dimension": ("spectrum_time", labels.size - t[few]),
        "unreachable_fraction": ("diagnosis_time", 1e-9 + 0.1 * t[some]),
        "kernel_drift": ("diagnosis_time", t[some]),
        "test_cost": ("time", cost + 0.1),
        "seconds": ((), 1.5),
    }
    coords = {"time": t, "s": ("time", s), "spectrum_time": t[few], "diagnosis_time": t[some]}
    attrs = {"num_samples": float(samples), "lam": 1e-6, "cost_minimum": 0.0, "loss": loss, "flow": "made up"}
    return xarray.Dataset(variables, coords=coords, attrs=attrs)


def folder(path, datasets, config=CONFIG):
    """A run folder with these datasets and a summary that goes with them."""
    run = record.create(path, config)
    row = {"quantity": "deviation from the chord", "predicted": 0.0, "measured": 3e-8}
    for name, dataset in datasets.items():
        run.write_dataset(record.dataset_name(name), dataset)
    flow = {"result": "successful", "samples": 4, "stats": {"num_steps": 7}, "comparison": [row]}
    run.write_summary({"flows": dict.fromkeys(datasets, flow)})
    return run


def two_flows(**options):
    return {"straight": flow_data(**options), "standard": flow_data(bend=3.0, end=0.6, **options)}
