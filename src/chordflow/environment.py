"""What a run was made with: versions, device, and the state of git, so that it can be made again."""

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

PACKAGES = (
    *("chordflow", "jax", "jaxlib", "diffrax", "equinox", "lineax", "optimistix", "numpy", "scipy"),
    *("scikit-learn", "xarray", "h5netcdf", "h5py", "orbax-checkpoint", "matplotlib"),
)
VARIABLES = ("XLA_FLAGS", "JAX_PLATFORMS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables of the environment that may change the last digits."""


def describe(seed: int | None = None) -> dict[str, Any]:
    """Versions, device, threads, dtype, seed, and commit of the folder it was started in; no names, paths or times.

    ``git`` is None outside a checkout; ``dirty`` says whether tracked files differ from the commit. ``threads`` are the
    processors it may use, ``variables`` those of :data:`VARIABLES` that are set, without words that hold a path.

    Examples
    --------
    >>> made = describe(seed=0)
    >>> made["seed"], made["dtype"], "jax" in made["versions"]
    (0, 'float64', True)
    """
    device = jax.devices()[0]
    return {
        "versions": versions(PACKAGES),
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "machine": platform.machine(),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "variables": {name: _without_paths(os.environ[name]) for name in VARIABLES if name in os.environ},
        "dtype": "float64",
        **({} if seed is None else {"seed": seed}),
        "git": git(),
    }


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Those of Python and some packages, None for one that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What may change the last digits of a run that goes on: versions and the like, as ``jax 0.10.1 -> 0.10.2``.

    What ``then`` does not tell, as an older version made it, is no difference.

    Examples
    --------
    >>> differences({"versions": {"jax": "0.10.1"}}, {"versions": {"jax": "0.10.2"}, "machine": "x86_64"})
    ['jax 0.10.1 -> 0.10.2']
    >>> differences({"variables": {}}, {"variables": {"OMP_NUM_THREADS": "1"}})
    ['OMP_NUM_THREADS unset -> 1']
    """
    before, after = _flat(then), _flat(now)
    names = [name for name, value in before.items() if value is not None and value != after.get(name)]
    return [f"{name} {before[name]} -> {after.get(name)}" for name in names]


def _flat(made: dict[str, Any]) -> dict[str, Any]:
    variables = dict.fromkeys(VARIABLES, "unset") | made["variables"] if "variables" in made else {}
    return {
        **made.get("versions", {}),
        "device": made.get("device", {}).get("kind"),
        "machine": made.get("machine"),
        "threads": made.get("threads"),
        **variables,
        "commit": (made.get("git") or {}).get("commit"),
    }


def _without_paths(value: str) -> str:
    return " ".join(word for word in value.split() if os.sep not in word)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git() -> dict[str, Any] | None:
    """Commit of the folder, and whether tracked files differ from it; None outside a checkout."""

    def said(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = said("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": said("status", "--porcelain", "--untracked-files=no") != ""}
