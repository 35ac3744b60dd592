"""SHA-256 sums of what is in a run folder, in the file and the form that ``sha256sum -c SHA256SUMS`` reads."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from chordflow.files import replacing, sha256, sha256_of

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


def list_damage(folder: Path, *, bare: bool) -> str | None:
    """What is wrong with the list itself, or None; where it may be ``bare``, it need not end with its own sum."""
    path = folder / NAME
    if not path.is_file():
        return "is missing"
    *lines, last = path.read_bytes().decode(errors="replace").splitlines(keepends=True) or [""]
    if bare and last.endswith("\n") and all(_LINE.fullmatch(line.rstrip("\n")) for line in (*lines, last)):
        return None
    return None if last == _own_line("".join(lines)) else "is truncated or damaged"


def list_sums(folder: Path, add: Iterable[Path] = (), drop: Callable[[str], bool] | None = None) -> None:
    """Replace the list: with the sums of files as they are now, and without the names that are dropped."""
    kept = {name: total for name, total in read_sums(folder).items() if not (drop and drop(name))}
    kept |= {path.relative_to(folder).as_posix(): sha256(path) for path in add}
    text = "".join(f"{kept[name]}  {name}\n" for name in sorted(kept))
    with replacing(folder / NAME) as temporary:
        temporary.write_text(text + _own_line(text), encoding="utf-8")


def _own_line(text: str) -> str:
    """The last line, a comment to ``sha256sum``: without it a list that was cut at the end of a line looks whole."""
    return f"# {sha256_of(text.encode())} is the sum of the lines above\n"


def damage(folder: Path, name: str, total: str) -> str | None:
    """What is wrong with a listed file, or None."""
    path = folder / name
    if not path.is_file():
        return "is missing"
    return None if sha256(path) == total else "is truncated or damaged (another SHA-256 sum than when it was written)"
