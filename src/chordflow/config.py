"""Configuration of a run: frozen dataclasses ↔ TOML, with ``key=value`` overrides. Every mistake is one line."""

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chordflow import clocks, filters, flows, losses, velocities

LOSSES = {"squared_error": losses.SquaredError, "cross_entropy": losses.CrossEntropy}
CLOCKS = ("s", "interpolation", "log")
FLOWS = ("straight", "adapted", "standard", "interpolated", "power")
_FLOW = re.compile(r"\s*(\w+)\s*(?:\(\s*([^()]*?)\s*\))?\s*")


class ConfigError(ValueError):
    """A mistake in a configuration: one line that names the key, the value and what was expected."""


@dataclass(frozen=True)
class DataConfig:
    """``[data]``: what :func:`chordflow.data.load` takes, and the smaller sample for stiff flows.

    ``stiff_samples``: the standard, interpolated and power flows are as stiff as DDᵀ and get the first so many samples.
    """

    name: str = "digits"
    samples: int | None = None
    stiff_samples: int | None = None
    seed: int = 0
    path: Any = None
    task: str | None = None
    target: Any = None
    standardise: bool | None = None
    smoothing: float = 0.0
    max_test: int = 1000


@dataclass(frozen=True)
class Config:
    """A run as ``chordflow run`` takes it; the defaults are its main job.

    Parameters
    ----------
    data
        Where samples come from; digits with 200 samples, 100 for stiff flows, by default.
    model
        ``name`` and options of :func:`chordflow.models.build`.
    loss
        ``squared_error`` or ``cross_entropy``.
    flows
        Names as the functions: straight, adapted, standard, interpolated(τ), power(p).
    clock
        ``s``, ``interpolation`` or ``log``: the variable in which descent flows are integrated and reported.
    rtol, atol
        Tolerances of :func:`chordflow.evolve`.
    t1
        End of the descent flows in the clock's variable; None for s = N (5 N for adapted).
    eps
        ε of the damping.
    seed
        Seed of the initial parameters.
    saves
        Number of save times of each flow.
    max_steps
        Bound on the steps of each flow.
    out
        Run folder; None for ``runs/<data.name>-<time>``.
    """

    data: DataConfig = field(default_factory=lambda: DataConfig(samples=200, stiff_samples=100))
    model: Mapping[str, Any] = field(default_factory=lambda: {"name": "mlp", "widths": [64], "activation": "tanh"})
    loss: str = "squared_error"
    flows: tuple[str, ...] = ("straight", "adapted", "standard", "interpolated(0.5)")
    clock: str = "s"
    rtol: float = 1e-7
    atol: float = 1e-9
    t1: float | None = None
    eps: float = 1e-6
    seed: int = 0
    saves: int = 61
    max_steps: int = 100_000
    out: str | None = None

    def __post_init__(self):
        _choice("loss", self.loss, tuple(LOSSES))
        _choice("clock", self.clock, CLOCKS)
        for key in ("rtol", "atol", "eps"):
            _require(key, getattr(self, key), 0 < getattr(self, key) < 1, "a number in (0, 1)")
        _require("t1", self.t1, self.t1 is None or self.t1 > 0, "a positive number")
        for key, least in (("seed", 0), ("saves", 2), ("max_steps", 1)):
            _require(key, getattr(self, key), getattr(self, key) >= least, f"an integer of at least {least}")
        if not self.flows:
            raise ConfigError(f"flows = []: expected at least one of {', '.join(FLOWS)}")
        for text in self.flows:
            parse_flow(text, self.eps)
        if self.loss == "cross_entropy" and self.data.task == "regression":
            raise ConfigError("loss = cross_entropy: data.task is regression, expected classification")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values without the keys that are None, as TOML holds them."""

        def plain(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {k: plain(v) for k, v in value.items() if v is not None}
            return list(value) if isinstance(value, tuple) else value

        return plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> "Config":
        """Fill in defaults; those of ``data`` and ``model`` belong to the default data set and network alone."""
        values = dict(table)
        data = values.get("data", {})
        if not isinstance(data, Mapping):
            raise ConfigError(f"data = {data!r}: expected a table, as in data.name=digits")
        defaults = Config()
        if data.get("name", "digits") == "digits":
            data = {"samples": 200, "stiff_samples": 100, **data}
        values["data"] = _fill(DataConfig, data, "data.")
        model = values.get("model", {})
        if not isinstance(model, Mapping):
            raise ConfigError(f"model = {model!r}: expected a table, as in model.name=mlp")
        named = model.get("name", "mlp") == "mlp"
        values["model"] = {**(defaults.model if named else {}), **model}
        if isinstance(values.get("flows"), str):
            values["flows"] = split_flows(values["flows"])
        return _fill(cls, values, "")


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file (None for the defaults) and apply ``key=value`` overrides, dotted keys reaching into tables.

    Examples
    --------
    >>> config = load_config(None, ["data.samples=50", "flows=straight, interpolated(0.25)", "rtol=1e-6"])
    >>> config.data.samples, config.flows, config.rtol
    (50, ('straight', 'interpolated(0.25)'), 1e-06)
    """
    table: dict[str, Any] = {}
    if path is not None:
        try:
            table = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"config file {path}: {error.strerror or error}; expected a TOML file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"config file {path}: not valid TOML ({error})") from None
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{override!r}: expected key=value, as in data.samples=50")
        _assign(table, key.strip().split("."), _value(text.strip()), override)
    return Config.from_dict(table)


def split_flows(text: str) -> list[str]:
    """Comma-separated flow names, commas inside parentheses kept."""
    return [part.strip() for part in re.split(r",(?![^()]*\))", text) if part.strip()]


def parse_flow(text: Any, eps: float) -> flows.Flow:
    """A flow from its name: ``straight``, ``adapted``, ``standard``, ``interpolated(τ)``, ``power(p)``."""
    match = _FLOW.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ConfigError(f"flows: {text!r} is not a flow, expected names such as straight or interpolated(0.5)")
    name, argument = match.groups()
    _choice("flows", name, FLOWS)
    if name not in ("interpolated", "power"):
        if argument:
            raise ConfigError(f"flows: {name} takes no argument, got {text!r}")
        return {"straight": flows.straight(eps=eps), "adapted": flows.adapted(eps), "standard": flows.standard()}[name]
    try:
        number = float(argument)
        if name == "interpolated":
            return flows.interpolated(number, eps)
        return flows.Flow(velocities.Descent(), filters.Power(number, eps))
    except (TypeError, ValueError):
        raise ConfigError(f"flows: {text!r}: expected {name}(number in [0, 1]), as in {name}(0.5)") from None


def make_clock(name: str, num_samples: float) -> clocks.AbstractClock | None:
    """The clock of a configuration; None for gradient-flow time itself."""
    table = {"s": None, "interpolation": clocks.Interpolation(num_samples), "log": clocks.Log(num_samples)}
    return table[name]


def _value(text: str) -> Any:
    """A TOML value, or the text itself where it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(table: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{override!r}: {key} is not a table")
    table[keys[-1]] = value


def _fill(cls: Any, values: Mapping[str, Any], prefix: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"expected one of {', '.join(fields)}"
            raise ConfigError(f"{prefix}{key} = {values[key]!r}: unknown key, {hint}")
    return cls(**{key: _typed(prefix + key, value, fields[key].type) for key, value in values.items()})


def _typed(key: str, value: Any, kind: Any) -> Any:
    """Check scalars against the annotation; an integer is a float too, a list is the tuple of flows."""
    names = {str: "text", int: "an integer", float: "a number", bool: "true or false"}
    allowed = [t for t in names if re.search(rf"\b{t.__name__}\b", str(kind))] if "Any" not in str(kind) else []
    if kind == tuple[str, ...]:
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise ConfigError(f"{key} = {value!r}: expected a list of flows, as in straight,adapted")
        return tuple(value)
    if not allowed or value is None:
        return value
    if isinstance(value, bool) and bool not in allowed:
        raise ConfigError(f"{key} = {value!r}: expected {names[allowed[0]]}")
    if float in allowed and isinstance(value, int):
        return float(value)
    if not isinstance(value, tuple(allowed)):
        raise ConfigError(f"{key} = {value!r}: expected {names[allowed[0]]}")
    return value


def _require(key: str, value: Any, ok: bool, expected: str) -> None:
    if not ok:
        raise ConfigError(f"{key} = {value!r}: expected {expected}")


def _choice(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        close = difflib.get_close_matches(str(value), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
        raise ConfigError(f"{key} = {value!r}: unknown, {hint}")


def keys() -> Iterator[str]:
    """All configuration keys, dotted, for the command line's help."""
    for f in dataclasses.fields(Config):
        if f.name == "data":
            yield from (f"data.{inner.name}" for inner in dataclasses.fields(DataConfig))
        elif f.name == "model":
            yield from ("model.name", "model.widths", "model.activation", "model.init", "model.scale")
        else:
            yield f.name
