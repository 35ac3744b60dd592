"""SHA-256 sums of what is in a run folder, in the file and the form that ``sha256sum -c SHA256SUMS`` reads."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from chordflow.files import replacing, sha256

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def read_sums(folder: Path) -> dict[str, str]:
    """Sum of each listed file, by its path in the folder with ``/``; lines that are damaged are left out."""
    try:
        text = (folder / NAME).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    lines = map(_LINE.fullmatch, text.splitlines())
    return {line[2]: line[1] for line in lines if line is not None}


def sums_are_whole(folder: Path) -> bool:
    """Whether the list exists and each of its lines is one."""
    try:
        text = (folder / NAME).read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return False
    return (not text or text.endswith("\n")) and all(map(_LINE.fullmatch, text.splitlines()))


def list_sums(folder: Path, add: Iterable[Path] = (), drop: Callable[[str], bool] | None = None) -> None:
    """Replace the list: with the sums of files as they are now, and without the names that are dropped."""
    kept = {name: total for name, total in read_sums(folder).items() if not (drop and drop(name))}
    kept |= {path.relative_to(folder).as_posix(): sha256(path) for path in add}
    with replacing(folder / NAME) as temporary:
        temporary.write_text("".join(f"{kept[name]}  {name}\n" for name in sorted(kept)), encoding="utf-8")


def damage(folder: Path, name: str, total: str) -> str | None:
    """What is wrong with a listed file, or None."""
    path = folder / name
    if not path.is_file():
        return "is missing"
    return None if sha256(path) == total else "is truncated or damaged (another SHA-256 sum than when it was written)"
