"""What a name in a configuration stands for: an entry of a table, or a function in a module of the user's own."""

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

Entry = TypeVar("Entry")


def suggestion(name: Any, known: Iterable[str], prefix: str = "") -> str:
    """What to write instead of a name that is not known: the closest one where there is one, and all of them.

    Examples
    --------
    >>> suggestion("tan", ["tanh", "sin"]), suggestion("x", ["tanh", "sin"])
    ('did you mean tanh? Known: tanh, sin', 'expected one of tanh, sin')
    """
    listed = ", ".join(known := list(known))
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {prefix}{close[0]}? Known: {listed}" if close else f"expected one of {listed}"


def chosen(key: str, name: Any, known: Mapping[str, Entry], kind: str = "") -> Entry:
    """The entry of a table, or a ValueError that names the key, the value and what was expected.

    Examples
    --------
    >>> chosen("clock", "log", {"log": 1})
    1
    >>> chosen("clock", "lgo", {"log": 1})
    Traceback (most recent call last):
    ValueError: clock = 'lgo': unknown, did you mean log? Known: log
    """
    if isinstance(name, str) and name in known:
        return known[name]
    raise ValueError(f"{key} = {name!r}: unknown{f' {kind}' if kind else ''}, {suggestion(name, known)}")


def is_reference(name: Any) -> bool:
    """Whether a name has the form ``package.module:function``."""
    module, _, attribute = name.partition(":") if isinstance(name, str) else ("", "", "")
    return attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def referenced(
    key: str, reference: str, accepted: Callable[[Any], bool] = callable, expected: str = "a function"
) -> Any:
    """Import what ``package.module:function`` names. Importing runs the module's code; its exceptions pass through.

    Raises
    ------
    ValueError
        One line that opens with the key: another form, no such module, or nothing in it that is ``accepted``.

    Examples
    --------
    >>> referenced("loss", "math:hypot")(3, 4)
    5.0
    """
    if not is_reference(reference):
        raise ValueError(f"{key} = {reference!r}: expected package.module:function")
    module_name, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that is there but imports a missing one is another mistake, to be seen in full.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"{key} = {reference!r}: no module {error.name!r}; install it or put its folder on PYTHONPATH"
        ) from None
    value = getattr(module, attribute, None)
    if not accepted(value):
        got = f"is not {expected}" if hasattr(module, attribute) else "does not exist"
        raise ValueError(f"{key} = {reference!r}: {attribute!r} {got} in {module_name}, expected {expected} there")
    return value
