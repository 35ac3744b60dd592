"""Configurations as TOML, summaries as JSON: every value comes back as it was."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from chordflow.record.errors import RunError, first_line


def to_toml(config: Mapping[str, Any]) -> str:
    """TOML text of nested mappings of str, bool, int, float, lists and tuples; ``tomllib.loads`` gives them back.

    Floats keep every bit, infinities and NaN included. Scalars come before tables, otherwise the order is kept.

    Raises
    ------
    RunError
        For a value of another type, None among them, naming its key.

    Examples
    --------
    >>> print(to_toml({"rtol": 1e-08, "data": {"name": "digits", "samples": 200}}), end="")
    rtol = 1e-08
    <BLANKLINE>
    [data]
    name = "digits"
    samples = 200
    """
    return "\n".join(_tables(config, ())).lstrip("\n") + "\n"


def _tables(table: Mapping[Any, Any], keys: tuple[str, ...]) -> list[str]:
    """Lines of a table, then of the tables in it; ``keys`` lead to it."""
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines = [f"\n[{'.'.join(_toml_key(key) for key in keys)}]"] if keys else []
    lines += [f"{_toml_key(k)} = {_toml_value(v, (*keys, k))}" for k, v in table.items() if k not in inner]
    for key, value in inner.items():
        lines += _tables(value, (*keys, key))
    return lines


def _toml_key(key: object) -> str:
    """A bare key where TOML allows it."""
    if not isinstance(key, str):
        raise RunError(f"config: keys are strings, got {key!r}")
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_string(key)


def _toml_string(text: str) -> str:
    """JSON's escapes are a subset of TOML's; TOML alone forbids a raw DEL, and both half of a surrogate pair."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise RunError(f"config: {text!r} is not valid Unicode; expected text that UTF-8 can hold")
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_value(value: object, keys: tuple[str, ...]) -> str:
    """A value on one line; mappings inside lists become inline tables."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):  # int and float spelt out: subclasses, as NumPy's, print otherwise
        return float.__repr__(value)
    if isinstance(value, str):
        return _toml_string(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml_value(item, keys) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_toml_key(k)} = {_toml_value(v, (*keys, k))}' for k, v in value.items())}}}"
    kind = type(value).__name__
    raise RunError(f"config key {'.'.join(keys)}: expected a str, bool, int, float, list or table, got {kind}")


def plain(value: object, where: str) -> Any:
    """The value as JSON has it; ``where`` is the key path for the error message."""
    if getattr(value, "ndim", None) == 0:  # scalars of NumPy and JAX
        value = value.item()  # pyright: ignore[reportAttributeAccessIssue]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": float.__repr__(value)}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        if set(value) == {"float"}:
            raise RunError(f"summary key {where}: a mapping whose one key is 'float' is taken; rename the key")
        for key in value:
            if not isinstance(key, str):
                raise RunError(f"summary key {where}: keys are strings, got {key!r}")
        return {key: plain(item, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    raise RunError(
        f"summary key {where}: expected a str, bool, int, float, None, list or mapping, got {type(value).__name__}; "
        "arrays go into a dataset"
    )


def from_json(text: str) -> Any:
    """Undo :func:`_plain`; a bare NaN or Infinity, which is not JSON, is an error."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    def revive(mapping: dict[str, Any]) -> Any:
        return float(mapping["float"]) if set(mapping) == {"float"} else mapping

    return json.loads(text, parse_constant=refuse, object_hook=revive)


def read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The parsed file, with every way of failing told in one line."""
    try:
        value = parse(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"expected a table, got {type(value).__name__}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{path} is missing or damaged ({first_line(error)}): restore it or run again") from error
    return value
