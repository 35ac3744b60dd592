"""Packages that `import chordflow` must not load and that the core installs without."""

import importlib
from typing import Any


class MissingExtraError(ImportError, ValueError):
    """A package of an extra is not installed; the one-line message says how to get it."""


def load_extra(module: str, purpose: str, extra: str = "run") -> Any:
    """Import a module of an extra on first use.

    Raises
    ------
    MissingExtraError
        If it, or something that it needs, is not installed.

    Examples
    --------
    >>> load_extra("json", "summaries").dumps([1])
    '[1]'
    >>> load_extra("no_such_package", "figures")
    Traceback (most recent call last):
    chordflow.extras.MissingExtraError: figures need no_such_package: pip install "chordflow[run]"
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise MissingExtraError(f'{purpose} need {missing}: pip install "chordflow[{extra}]"', name=missing) from error
