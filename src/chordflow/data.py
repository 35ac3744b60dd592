"""Data sets as NumPy arrays: a seeded training part, the held-out rest, and the scaling that was fitted."""

import operator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from chordflow.lookup import chosen
from chordflow.sources import SOURCES, TASKS, Raw, Source, Task


class Scaling(NamedTuple):
    """The affine map (values − offset) / scale, one pair per feature, fitted on training samples.

    Examples
    --------
    >>> scaling = Scaling(np.array([10.0]), np.array([2.0]))
    >>> scaling.apply(np.array([[14.0]])).item(), scaling.invert(np.array([[2.0]])).item()
    (2.0, 14.0)
    """

    offset: Float64[np.ndarray, " ..."]
    scale: Float64[np.ndarray, " ..."]

    def apply(self, values: Float64[np.ndarray, "n ..."]) -> Float64[np.ndarray, "n ..."]:
        """(values − offset) / scale."""
        return (values - self.offset) / self.scale

    def invert(self, values: Float64[np.ndarray, "n ..."]) -> Float64[np.ndarray, "n ..."]:
        """Values · scale + offset: back to the units of the source."""
        return values * self.scale + self.offset


@dataclass(frozen=True, eq=False)
class Dataset:
    """N training samples and M held-out ones, float64 NumPy.

    Parameters
    ----------
    name
        The name given to :func:`load`.
    task
        ``"classification"``: targets are rows on the probability simplex, one-hot unless smoothed.
        ``"regression"``: targets are numbers.
    inputs, targets
        Training part, shapes (N, ...) and (N, Q), N ≥ 1.
    test_inputs, test_targets
        Held-out part, (M, ...) and (M, Q); M = 0 where every sample is used for training.
    class_names
        The Q names of the classes in the order of the target columns; empty for regression.
    input_scaling, target_scaling
        The standardisation applied, or None. Fitted on the training part alone: nothing of the held-out part leaks.
    """

    name: str
    task: Task
    inputs: Float64[np.ndarray, "n ..."]
    targets: Float64[np.ndarray, "n q"]
    test_inputs: Float64[np.ndarray, "m ..."]
    test_targets: Float64[np.ndarray, "m q"]
    class_names: tuple[str, ...] = ()
    input_scaling: Scaling | None = None
    target_scaling: Scaling | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self.inputs.shape[1:]

    @property
    def num_outputs(self) -> int:
        """Q, the number of target columns."""
        return self.targets.shape[1]


# The options of `load` are typed Any: they come from configuration files and are checked here, one line per mistake.
def load(
    name: str,
    *,
    samples: Any = None,
    seed: Any = 0,
    path: Any = None,
    task: Any = None,
    target: Any = None,
    standardise: Any = None,
    smoothing: Any = 0.0,
    max_test: Any = 1000,
) -> Dataset:
    """Load a data set, shuffle it with ``seed``, train on the first ``samples`` and hold out the rest.

    For one seed the training parts are nested: the first 100 of 200 samples are the 100 samples.

    Parameters
    ----------
    name
        ``digits`` (1797 images of 8×8, flat (64,), pixels/16, Q = 10), ``diabetes`` (442, regression, Q = 1), ``wine``
        (178, Q = 3), ``breast_cancer`` (569, Q = 2), ``csv``, ``npz`` or ``idx``.
    samples
        N, at least 1; None for all there are. Nothing is then held out, save where the source has its own test part.
    seed
        Non-negative integer, the only source of randomness.
    path
        The file of ``csv`` and ``npz``. CSV: comma-separated numbers in UTF-8; the first row is a header when none of
        its fields is a number. NPZ: arrays ``inputs`` and ``targets`` (or ``x`` and ``y``), optionally
        ``test_inputs`` and ``test_targets`` (``x_test`` and ``y_test``), a vector being one column; pickled objects
        are refused, other arrays left alone. For ``idx`` the pair of files (images, labels), or a folder with
        ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, the held-out part being ``t10k-…`` where present;
        plain or gzip. Images come as (H, W), pixels/255.
    task
        For ``csv`` and ``npz``: ``"regression"`` (when None) or ``"classification"``, whose labels are whole numbers or
        names in one column, or in NPZ also rows on the simplex.
    target
        For ``csv``: a column name or index (negative from the end), or a list of them; the last column when None.
    standardise
        Whether each input feature, and each target of a regression, is shifted and divided to mean 0 and standard
        deviation (with 1/N) 1 over the training part. None: yes for diabetes, wine, breast_cancer and csv, no for
        the others. A feature that is constant over the training part is shifted to 0 and divided by 1.
    smoothing
        a in [0, 1]: labels become (1 − a) y + a/Q, in both parts, so that their costs are comparable.
    max_test
        At most this many held-out samples, the first after the training part.

    Raises
    ------
    ValueError
        One line, for: an unknown name; an option that the source does not take; samples, seed, smoothing or max_test
        out of range; a missing, empty, ragged, truncated or otherwise malformed file; a field that is not a number; NaN
        or infinite values (how many, and the first); labels that are no classes; scikit-learn missing.

    Notes
    -----
    The source is read and checked as a whole; then only the chosen samples are converted to float64.

    Examples
    --------
    >>> data = load("digits", samples=200)
    >>> data.inputs.shape, data.targets.shape, data.test_inputs.shape
    ((200, 64), (200, 10), (1000, 64))
    >>> bool((data.inputs[:100] == load("digits", samples=100).inputs).all())
    True
    """
    source = chosen("data.name", name, SOURCES, "data set")
    raw = source.read(**_options(name, source, path=path, task=task, target=target))
    _check_raw(name, raw)
    available = len(raw.inputs) - raw.held_out
    if samples is not None:
        samples = _integer("samples", samples, 1, available, f"{name} has {available} samples, ")
    smoothing = _smoothing(name, smoothing, classes=bool(raw.class_names))
    train, test = _split(raw, samples, _integer("seed", seed, 0), _integer("max_test", max_test, 0))

    inputs, test_inputs = (np.asarray(raw.inputs[rows], np.float64) / raw.unit for rows in (train, test))
    targets, test_targets = (np.asarray(raw.targets[rows], np.float64) for rows in (train, test))
    input_scaling = target_scaling = None
    if _flag("standardise", standardise, raw.standardise):
        input_scaling = _fit_scaling(name, "inputs", inputs)
        inputs, test_inputs = input_scaling.apply(inputs), input_scaling.apply(test_inputs)
        if not raw.class_names:
            target_scaling = _fit_scaling(name, "targets", targets)
            targets, test_targets = target_scaling.apply(targets), target_scaling.apply(test_targets)
    if smoothing:
        targets, test_targets = ((1 - smoothing) * y + smoothing / y.shape[1] for y in (targets, test_targets))
    return Dataset(
        name,
        "classification" if raw.class_names else "regression",
        inputs,
        targets,
        test_inputs,
        test_targets,
        class_names=raw.class_names,
        input_scaling=input_scaling,
        target_scaling=target_scaling,
    )


def _options(name: str, source: Source, **options: Any) -> dict[str, Any]:
    """The options that were given, all of which the source takes."""
    given = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        if key not in source.options:
            takers = ", ".join(other for other, it in SOURCES.items() if key in it.options)
            raise ValueError(f"data.{key} = {value!r}: {name} takes no {key}, expected only with {takers}")
    if "path" in source.options and not given.get("path"):
        raise ValueError(f"data.path is not set: {name} reads from disk, expected a path")
    if given.get("task", TASKS[0]) not in TASKS:
        raise ValueError(f"data.task = {given['task']!r}: expected {' or '.join(TASKS)}")
    return given


def _integer(key: str, value: Any, least: int, most: int | None = None, because: str = "") -> int:
    expected = f"expected an integer {f'of at least {least}' if most is None else f'from {least} to {most}'}"
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise ValueError(f"data.{key} = {value!r}: {because}{expected}")
    number = operator.index(value)
    if number < least or (most is not None and number > most):
        raise ValueError(f"data.{key} = {value!r}: {because}{expected}")
    return number


def _flag(key: str, value: Any, default: bool) -> bool:
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"data.{key} = {value!r}: expected true or false")
    return default if value is None else value


def _smoothing(name: str, amount: Any, *, classes: bool) -> float:
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount <= 1:
        raise ValueError(f"data.smoothing = {amount!r}: expected a number in [0, 1]")
    if amount and not classes:
        raise ValueError(f"data.smoothing = {amount}: {name} is a regression without labels to smooth, expected 0")
    return float(amount)


def _check_raw(name: str, raw: Raw) -> None:
    if len(raw.inputs) == raw.held_out or not raw.inputs.size or not raw.targets.size:
        raise ValueError(
            f"data.name = {name}: empty, inputs {raw.inputs.shape} and targets {raw.targets.shape}, {raw.held_out} "
            "held out; expected at least one training sample, one feature and one target"
        )
    for what, values in (("inputs", raw.inputs), ("targets", raw.targets)):
        bad = ~np.isfinite(values)
        if bad.any():
            first = tuple(int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
            raise ValueError(
                f"data.name = {name}: {what} have {np.count_nonzero(bad)} NaN or infinite values, the first is "
                f"{values[first]} at {what}[{', '.join(map(str, first))}] (counted from 0); remove or fill them"
            )


def _split(raw: Raw, samples: int | None, seed: int, max_test: int) -> tuple[np.ndarray, np.ndarray]:
    """Row indices of the training and of the held-out part."""
    rng = np.random.default_rng(seed)
    available = len(raw.inputs) - raw.held_out
    order = rng.permutation(available)
    cut = available if samples is None else samples
    test = available + rng.permutation(raw.held_out) if raw.held_out else order[cut:]
    return order[:cut], test[:max_test]


def _fit_scaling(name: str, what: str, values: Float64[np.ndarray, "n ..."]) -> Scaling:
    # Constancy is decided on the values: the mean of equal numbers differs from them by rounding, and dividing by
    # the "deviation" that leaves would blow rounding up to size 1.
    constant = values.max(axis=0) == values.min(axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        offset = np.where(constant, values[0], values.mean(axis=0))
        scale = np.where(constant, 1.0, values.std(axis=0))
    if not (np.isfinite(offset).all() and np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(
            f"data.name = {name}: {what} up to {np.abs(values).max():.3g} have a standard deviation outside float64; "
            "rescale them or set data.standardise=false"
        )
    return Scaling(offset, scale)
