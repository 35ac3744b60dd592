"""Configuration of a run: frozen dataclasses ↔ TOML, with ``key=value`` overrides. Every mistake is one line."""

import dataclasses
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from chordflow import clocks, filters, flows, losses, models, velocities
from chordflow.bounds import require_within
from chordflow.lookup import chosen, is_reference, referenced, suggestion

REFERENCE = "package.module:function"
LOSSES = {"squared_error": losses.SquaredError, "cross_entropy": losses.CrossEntropy}
CLOCKS: dict[str, Callable[[float], clocks.AbstractClock | None]] = {
    "s": lambda num_samples: None,  # noqa: ARG005
    "interpolation": clocks.Interpolation,
    "log": clocks.Log,
}
FLOWS = ("straight", "adapted", "standard", "interpolated", "power", "along")
RUN_ONLY = (
    *("data.stiff_samples", "data.max_test", "flows", "clock", "atol", "t1"),
    *("saves", "max_steps", "checkpoint_seconds", "out"),
)
"""Keys that mean nothing to ``chordflow verify``."""
NOT_FOR_GRAM = (*(key for key in RUN_ONLY if key != "out"), "rtol")
"""Keys that mean nothing to ``chordflow gram``."""
_FLOW = re.compile(r"\s*(\w+)\s*(?:\(\s*([^()]*?)\s*\))?\s*")


class ConfigError(ValueError):
    """A mistake in a configuration: one line that names the key, the value and what was expected."""


@dataclass(frozen=True)
class DataConfig:
    """``[data]``: what :func:`chordflow.data.load` takes, and the smaller sample for stiff flows.

    ``stiff_samples``: the standard, interpolated and power flows are as stiff as DDᵀ and get the first so many samples,
    at most ``samples``; None for all.
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

    def __post_init__(self):
        stiff = self.stiff_samples
        _require("data.stiff_samples", stiff, stiff is None or stiff >= 1, "an integer of at least 1")


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
        ``squared_error``, ``cross_entropy``, or ``package.module:name``: a function fn(x, y) -> scalar of outputs and
        target of one sample, or a :class:`chordflow.Loss`, which may know its minimum and equilibrium too.
    flows
        Names as the functions, each flow once: straight, adapted, standard, interpolated(τ), power(p), and
        along(package.module:function) or along(package.module:function, κ): a path fn(t, x0, y) -> outputs (N, Q) from
        the outputs at the start, x0 at t = 0, with the gain κ (0).
    clock
        ``s``, ``interpolation`` or ``log``: the variable in which descent flows are integrated and reported.
    rtol, atol
        Tolerances of :func:`chordflow.evolve`; None for an atol of 1e-2 rtol.
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
    checkpoint_seconds
        Least time between two checkpoints of a flow, 0 for one after each stride; on a slow disk it is longer, so that
        they cost less than two percent of the time. It changes no number.
    out
        Run folder; None for ``runs/<data.name>-<time>``.
    """

    data: DataConfig = field(default_factory=lambda: DataConfig(samples=200, stiff_samples=100))
    model: Mapping[str, Any] = field(default_factory=lambda: {"name": "mlp", "widths": [64], "activation": "tanh"})
    loss: str = "squared_error"
    flows: tuple[str, ...] = ("straight", "adapted", "standard", "interpolated(0.5)")
    clock: str = "s"
    rtol: float = 1e-7
    atol: float | None = None
    t1: float | None = None
    eps: float = 1e-6
    seed: int = 0
    saves: int = 61
    max_steps: int = 100_000
    checkpoint_seconds: float = 10.0
    out: str | None = None

    def __post_init__(self):
        if not is_reference(self.loss):
            _known("loss", self.loss, (*LOSSES, REFERENCE))
        _known("clock", self.clock, CLOCKS)
        for key in ("rtol", "eps"):
            _require(key, getattr(self, key), 0 < getattr(self, key) < 1, "a number in (0, 1)")
        _require("atol", self.atol, self.atol is None or 0 < self.atol < math.inf, "a positive number")
        seconds = self.checkpoint_seconds
        _require("checkpoint_seconds", seconds, 0 <= seconds < math.inf, "a number of at least 0")
        _require("t1", self.t1, self.t1 is None or self.t1 > 0, "a positive number")
        for key, least in (("seed", 0), ("saves", 2), ("max_steps", 1)):
            _require(key, getattr(self, key), getattr(self, key) >= least, f"an integer of at least {least}")
        if not self.flows:
            raise ConfigError(f"flows = []: expected at least one of {', '.join(FLOWS)}")
        names = [str(parse_flow(text)) for text in self.flows]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"flows: {name} is there {names.count(name)} times, expected each flow once")
        object.__setattr__(self, "flows", tuple(names))  # one spelling for each: keys of summaries, names of files
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
            data = {"samples": 200, **data}
            few = isinstance(data["samples"], int) and data["samples"] < 100
            data = {"stiff_samples": None if few else 100, **data}
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
    return Config.from_dict(read_table(path, overrides))


def read_table(path: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The nested values of :func:`load_config` before defaults: what a file and overrides say themselves."""
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
    return table


def refuse_run_only(table: Mapping[str, Any], keys: Sequence[str] = RUN_ONLY, command: str = "verify") -> None:
    """Raise ConfigError if a table has a key that a command would ignore."""
    for key in keys:
        value: Any = table
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            raise ConfigError(f"{key} = {value!r}: chordflow {command} integrates no such flow; expected without {key}")


def split_flows(text: str) -> list[str]:
    """Comma-separated flow names, commas inside parentheses kept."""
    return [part.strip() for part in re.split(r",(?![^()]*\))", text) if part.strip()]


class FlowName(NamedTuple):
    """A flow as a configuration names it; ``str`` gives the one spelling it has in files and tables."""

    kind: str
    reference: str | None = None
    """The path of along."""
    number: float | None = None
    """τ, p or the gain κ."""

    def __str__(self) -> str:
        number = None if self.number is None else repr(self.number).removesuffix(".0")
        arguments = [text for text in (self.reference, number) if text is not None]
        return f"{self.kind}({','.join(arguments)})" if arguments else self.kind

    def flow(self, eps: float) -> flows.Flow:
        """The flow itself; the path of along is imported."""
        if self.kind == "along":
            path = referenced("flows: along", self.reference or "")
            return flows.Flow(velocities.Route(path, self.number or 0.0), filters.Damped(eps))
        return _numbered(self.kind, self.number, eps)


def parse_flow(text: Any) -> FlowName:
    """``straight``, ``adapted``, ``standard``, ``interpolated(τ)``, ``power(p)`` or ``along(module:function, κ)``.

    Examples
    --------
    >>> str(parse_flow("interpolated( .50 )")), str(parse_flow("adapted()"))
    ('interpolated(0.5)', 'adapted')
    """
    match = _FLOW.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ConfigError(f"flows: {text!r} is not a flow, expected names such as straight or interpolated(0.5)")
    kind, inside = match.groups()
    _known("flows", kind, FLOWS)
    arguments = [part.strip() for part in inside.split(",")] if inside else []
    if kind == "along":
        return _parse_along(text, arguments)
    if kind not in ("interpolated", "power"):
        if arguments:
            raise ConfigError(f"flows: {kind} takes no argument, got {text!r}")
        return FlowName(kind)
    try:
        (number,) = map(float, arguments)
        _numbered(kind, number, 1e-6)
    except ValueError:
        raise ConfigError(f"flows: {text!r}: expected {kind}(number in [0, 1]), as in {kind}(0.5)") from None
    return FlowName(kind, None, number)


def _parse_along(text: str, arguments: list[str]) -> FlowName:
    try:
        reference, gain = [*arguments, "0"] if len(arguments) == 1 else arguments
        require_within("along()", "gain", number := float(gain), 0)
    except ValueError:
        reference = number = None
    if not is_reference(reference):
        raise ConfigError(f"flows: {text!r}: expected along({REFERENCE}), or with a gain ≥ 0, along({REFERENCE}, 10)")
    return FlowName("along", reference, number or None)


def _numbered(kind: str, number: float | None, eps: float) -> flows.Flow:
    if kind == "power":
        return flows.Flow(velocities.Descent(), filters.Power(number or 0.0, eps))
    if kind == "interpolated":
        return flows.interpolated(number or 0.0, eps)
    return {"straight": flows.straight(eps=eps), "adapted": flows.adapted(eps), "standard": flows.standard()}[kind]


def make_loss(name: str) -> losses.AbstractLoss:
    """The loss of a configuration; importing one of the user's own runs its module's code."""
    if not is_reference(name):
        return LOSSES[name]()
    found = referenced(
        "loss", name, lambda value: callable(value) or isinstance(value, losses.AbstractLoss), "a function or cf.Loss"
    )
    return found if isinstance(found, losses.AbstractLoss) else losses.Loss(found)


def make_clock(name: str, num_samples: float) -> clocks.AbstractClock | None:
    """The clock of a configuration; None for gradient-flow time itself."""
    return CLOCKS[name](num_samples)


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
            raise ConfigError(f"{prefix}{key} = {values[key]!r}: unknown key, {suggestion(key, fields, prefix)}")
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


def _known(key: str, name: Any, names: Sequence[str] | Mapping[str, Any]) -> None:
    try:
        chosen(key, name, dict.fromkeys(names))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def keys(left_out: Sequence[str] = ()) -> Iterator[str]:
    """All configuration keys, dotted, for the command line's help."""
    for f in dataclasses.fields(Config):
        if f.name == "data":
            names = [f"data.{inner.name}" for inner in dataclasses.fields(DataConfig)]
        elif f.name == "model":
            names = [f"model.{name}" for name in ("name", *models.OPTIONS)]
        else:
            names = [f.name]
        yield from (name for name in names if name not in left_out)
