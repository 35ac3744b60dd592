"""The record of a benchmark: results beside the environment they were measured in."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import jax

from chordflow import environment

PACKAGES = (
    "chordflow",
    "diffrax",
    "equinox",
    "jax",
    "jaxlib",
    "lineax",
    "numpy",
    "optax",
    "optimistix",
    "scikit-learn",
    "scipy",
)


def describe() -> dict[str, Any]:
    """Versions, device, thread settings, commit, and whether the tree was clean."""
    packages, state = environment.versions(PACKAGES), environment.git() or {}
    return {
        "python": packages.pop("python"),
        "packages": packages,
        "device": jax.devices()[0].device_kind,
        "cpu_count": os.cpu_count(),
        "machine": platform.machine(),
        "threads": {k: v for k, v in os.environ.items() if k in ("OPENBLAS_NUM_THREADS", "XLA_FLAGS")},
        "commit": state.get("commit"),
        "clean_tree": state.get("dirty") is False,
    }


def write_record(path: str, name: str, results: Any) -> None:
    """Write ``results`` with the environment as indented JSON."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": name, "environment": describe(), "results": results}
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(f"record: {target}")
