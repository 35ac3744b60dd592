"""How much memory there is, and the refusal of what does not fit."""

import os
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Limit, use, and the part of the use that the kernel gives back when asked, in version 2 and 1 of control groups.
UNIFIED = ("memory.max", "memory.current", "inactive_file")
LEGACY = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def require_memory(num_bytes: int, what: str, way_out: str) -> None:
    """Raise MemoryError, before anything is allocated, if ``num_bytes`` exceed what is available to this process.

    The limit is the environment variable CHORDFLOW_MEMORY_LIMIT (bytes) or, without it, the free memory reported by the
    operating system or left in the process's control groups (containers, job schedulers), whichever is less; where
    nothing is known nothing is checked.
    """
    available = available_memory()
    if available is not None and num_bytes > available:
        raise MemoryError(
            f"{what} needs {num_bytes / 2**30:.2f} GiB but {available / 2**30:.2f} GiB are available: {way_out}"
        )


def available_memory() -> int | None:
    """Bytes available to this process for arrays, or None where that is unknown."""
    if limit := os.environ.get("CHORDFLOW_MEMORY_LIMIT"):
        try:
            return int(limit)
        except ValueError:
            raise ValueError(f"CHORDFLOW_MEMORY_LIMIT must be a number of bytes, got {limit!r}") from None
    return min([*_physical(), *_left_in_groups()], default=None)


def _physical() -> Iterator[int]:
    """Free memory of the machine, on Linux."""
    try:
        fields = dict(line.split(":", 1) for line in (PROC / "meminfo").read_text().splitlines())
        yield int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return


def _left_in_groups() -> Iterator[int]:
    """What the limit of each control group above this process leaves; nothing for groups without one."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            names = LEGACY if controllers else UNIFIED
            base = CGROUPS / "memory" if controllers else CGROUPS
            folder = base / path.lstrip("/")
            # In a container the path may be the host's, which is not there: the container's own group is the base.
            for group in (folder, *folder.parents):
                yield from _left_in(group, names)
                if group == base:
                    break


def _left_in(group: Path, names: tuple[str, str, str]) -> Iterator[int]:
    limit, use, reclaimable = names
    try:
        left = int((group / limit).read_text()) - int((group / use).read_text())
        counters = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        yield max(left + int(counters.get(reclaimable, 0)), 0)
    except (OSError, ValueError):  # no such group, or "max": no limit
        return
