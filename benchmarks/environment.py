"""The record of a benchmark: results beside the environment they were measured in."""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("chordflow", "diffrax", "equinox", "jax", "jaxlib", "lineax", "numpy", "optax", "scipy")


def describe() -> dict[str, Any]:
    """Versions, device, thread settings, commit, and whether the tree was clean."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except ModuleNotFoundError:
            installed[package] = None
    return {
        "python": platform.python_version(),
        "packages": installed,
        "device": jax.devices()[0].device_kind,
        "cpu_count": os.cpu_count(),
        "machine": platform.machine(),
        "threads": {k: v for k, v in os.environ.items() if k in ("OPENBLAS_NUM_THREADS", "XLA_FLAGS")},
        "commit": git("rev-parse", "HEAD"),
        "clean_tree": git("status", "--porcelain", "--untracked-files=no") == "",
    }


def write_record(path: str, name: str, results: Any) -> None:
    """Write ``results`` with the environment as indented JSON."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": name, "environment": describe(), "results": results}
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(f"record: {target}")
