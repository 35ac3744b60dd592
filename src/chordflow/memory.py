"""How much memory there is, and the refusal of what does not fit."""

import os


def require_memory(num_bytes: int, what: str, way_out: str) -> None:
    """Raise MemoryError, before anything is allocated, if ``num_bytes`` exceed what the machine has available.

    The limit is the environment variable CHORDFLOW_MEMORY_LIMIT (bytes) or, without it, the free memory reported by the
    operating system; where neither is known nothing is checked.
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
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None
