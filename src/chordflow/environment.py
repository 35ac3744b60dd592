"""What a run was made with: versions, device, and the state of git, so that it can be made again."""

import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

PACKAGES = ("chordflow", "jax", "jaxlib", "diffrax", "equinox", "numpy")


def describe(seed: int | None = None) -> dict[str, Any]:
    """Versions, device, dtype, seed, and commit of the folder it was started in; no names, paths or times.

    ``git`` is None outside a checkout; ``dirty`` says whether tracked files differ from the commit.

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
        "dtype": "float64",
        **({} if seed is None else {"seed": seed}),
        "git": git(),
    }


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Those of Python and some packages, None for one that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What may change the last digits of a run that goes on: versions and device, as ``jax 0.10.1 -> 0.10.2``.

    Examples
    --------
    >>> differences({"versions": {"jax": "0.10.1"}}, {"versions": {"jax": "0.10.2"}, "machine": "x86_64"})
    ['jax 0.10.1 -> 0.10.2']
    """
    flat = [
        {**made.get("versions", {}), "device": made.get("device", {}).get("kind"), "machine": made.get("machine")}
        for made in (then, now)
    ]
    names = [name for name, value in flat[0].items() if value is not None and value != flat[1].get(name)]
    return [f"{name} {flat[0][name]} -> {flat[1].get(name)}" for name in names]


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
