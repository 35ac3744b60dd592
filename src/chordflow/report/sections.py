"""The sections of the page: a figure each, what to look for in it, and what is absent and why."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from chordflow import figures
from chordflow.figures import Curve, Look
from chordflow.projection import Plane, principal_plane
from chordflow.report.reading import NOT_YET, RunPage, Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_WIDTHS = (1.7, 0.9, 2.6)
"""Of lines, in points: that of the first run, the second, the third, and so on from the start."""
RUN_MARKERS = {"o": "p", "s": "P", "D": "X", "^": ">", "v": "<", "P": "*", "X": "h"}
MAX_PANELS = 8
"""Maps and triangles drawn; more flows than that are named under the figure."""


@dataclass(frozen=True)
class Section:
    """One figure of the page with its words; ``make`` is None where there is nothing to draw."""

    ident: str
    short: str
    """Its name among the links at the top."""
    title: str
    caption: str
    make: Callable[[bool], "Figure"] | None
    remarks: list[str] = field(default_factory=list)


def styles(series: Sequence[Series]) -> dict[str, Look]:
    """The same colour and dashes for a flow in every run; those of the second are thin with rings, then other marks."""
    flows = figures.looks(dict.fromkeys(one.flow for one in series))
    return {one.label: _of_run(flows[one.flow], one.run) for one in series}


def _of_run(look: Look, run: int) -> Look:
    if run == 0:
        return look
    marker = look.marker if run == 1 else RUN_MARKERS.get(look.marker, "o")
    return replace(look, hollow=run % 2 == 1, marker=marker, width=RUN_WIDTHS[run % len(RUN_WIDTHS)])


def way(one: Series) -> tuple[np.ndarray, np.ndarray] | None:
    """What the headline follows (T, N, Q), and where it is to end (N, Q); None where there is no finite end.

    Outputs and their equilibrium. One-hot labels are at no finite distance from logits: then probabilities and labels.
    """
    if (goal := one.array("equilibrium")) is not None:
        return one.outputs, goal
    if is_logits(one) and is_classification(one):
        return probabilities(one.outputs), np.asarray(one.array("target"))
    return None


def planes(series: Sequence[Series]) -> list[Plane]:
    """One plane for all flows with the same chord, on the samples that all of them have."""
    ways = {one.label: found for one in series if (found := way(one)) is not None}
    groups: list[list[str]] = []
    for label, found in ways.items():
        group = next((group for group in groups if _same_chord(ways[group[0]], found)), None)
        if group is None:
            groups.append([label])
        else:
            group.append(label)
    drawn = []
    for group in groups:
        common = min(ways[label][0].shape[1] for label in group)
        outputs, goal = ways[group[0]]
        paths = {label: ways[label][0][:, :common] for label in group}
        drawn.append(principal_plane(paths, (outputs[0, :common], goal[:common])))
    return drawn


def _same_chord(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    common = min(one[0].shape[1], other[0].shape[1])
    pairs = [(one[0][0], other[0][0]), (one[1], other[1])]
    return one[0].shape[2] == other[0].shape[2] and all(
        np.allclose(a[:common], b[:common], rtol=1e-9, atol=1e-12) for a, b in pairs
    )


def sections(runs: Sequence[RunPage]) -> list[Section]:
    """All figures of the page, in its order."""
    series = [one for run in runs for one in run.series]
    look_of = styles(series)
    return [
        _headline(series, look_of),
        _cost(series, look_of),
        _seconds(series, look_of),
        _deviation(series, look_of),
        _spectrum(series),
        _reach(series, look_of),
        _drift(series, look_of),
        _classes(series),
        *_held_out(series, look_of),
    ]


def _curves(series: Sequence[Series], name: str) -> tuple[dict[str, Curve], list[str]]:
    """The curves that are there, and a sentence for those that are not."""
    found = {one.label: one.curve(name) for one in series}
    absent: dict[str, list[str]] = {}
    for one in series:
        if found[one.label] is None:
            absent.setdefault(one.reason(name), []).append(one.label)
    drawn = {label: curve for label, curve in found.items() if curve is not None}
    return drawn, [f"Not shown for {', '.join(labels)}: {reason}." for reason, labels in absent.items()]


ON_THE_CHORD = (
    "All outputs of every flow, projected into the plane of the chord, the grey line from where they start to the "
    "labels. Look for flows that stay on it: straight and adapted do where the parameters can follow. Flows that bend "
    "away are pulled by the kernel."
)
OF_PROBABILITIES = (
    "All probabilities, the softmax of the outputs, of every flow, projected into the plane of the line from where "
    "they start to the labels. One-hot labels are at no finite distance from logits, so that no flow is told to stay "
    "on this line or can reach its end. Look for how far along each flow comes, and where the flows part."
)
SLIDER = "The slider moves a mark along each flow, in sizes that show marks in one place, and a line over every clock."


def _headline(series: Sequence[Series], look_of: Mapping[str, Look]) -> Section:
    found, remarks = planes(series), []
    for reason, group in (
        ("there is no finite end to draw a chord to, or an older version made the folder", True),
        (NOT_YET, False),
    ):
        if without := [one.label for one in series if way(one) is None and one.is_finished == group]:
            remarks.append(f"Not shown for {', '.join(without)}: {reason}.")
    if len(found) > 1:
        remarks.append("The runs have different chords: each is drawn from 0 to 1, across in its own direction.")
    endless = [one.label for one in series if way(one) is not None and one.array("equilibrium") is None]
    only_endless = len(endless) == sum(len(plane.points) for plane in found) > 0
    if endless and not only_endless:
        remarks.append(f"For {', '.join(endless)}, whose labels are one-hot, probabilities are drawn, not logits.")
    return Section(
        "outputs",
        "Outputs",
        "Outputs on their way to the labels",
        f"{OF_PROBABILITIES if only_endless else ON_THE_CHORD} {SLIDER}",
        (lambda narrow: figures.draw_planes(found, styles=look_of, narrow=narrow)) if found else None,
        remarks,
    )


def _cost(series: Sequence[Series], look_of: Mapping[str, Look]) -> Section:
    measured = {one.label: (one.s, e) for one in series if (e := one.excess()) is not None}
    predicted = {one.label: (one.s, e) for one in series if (e := one.excess("predicted_cost")) is not None}
    remarks = []
    if silent := [one.label for one in series if one.label not in predicted]:
        remarks.append(f"No prediction is drawn for {', '.join(silent)}.")
    if unknown := [one.label for one in series if not one.is_finished and "cost_minimum" not in one.data.attrs]:
        remarks.append(f"The whole cost is drawn for {', '.join(unknown)}: its minimum is not known before the end.")
    return Section(
        "cost",
        "Cost",
        "Cost on both clocks",
        "Cost above its minimum, against gradient-flow time s/N and against the clock t = 1 − exp(−s/N) on which the "
        "chord is travelled at constant speed. Wide pale lines are predictions. Look for a straight line with two "
        "e-foldings per unit of s/N on the left: that is the adapted flow of squared error at full rank.",
        (lambda narrow: figures.cost_curves(measured, 1.0, predictions=predicted, styles=look_of, narrow=narrow))
        if measured
        else None,
        remarks,
    )


def _seconds(series: Sequence[Series], look_of: Mapping[str, Look]) -> Section:
    timed = {one.label: curve for one in series if (curve := one.over_seconds()) is not None}
    remarks = []
    if any(len(seconds) == 2 for seconds, _ in timed.values()):
        remarks.append("Only the whole duration of each flow is known, so that each is one mark, where it ended.")
    return Section(
        "seconds",
        "Seconds",
        "Cost against seconds",
        "The same costs against wall-clock time, compilation included. Look for what is low and to the left. Seconds "
        "belong to one machine on one day; everything else on this page does not change from run to run.",
        (lambda narrow: figures.cost_seconds(timed, styles=look_of, narrow=narrow, logarithmic=False))
        if timed
        else None,
        remarks,
    )


def _deviation(series: Sequence[Series], look_of: Mapping[str, Look]) -> Section:
    measured, remarks = _curves(series, "deviation")
    predicted, silent = _curves([one for one in series if one.label in measured], "predicted_deviation")
    how: dict[str, list[str]] = {}
    for one in series:
        if one.label in predicted:
            name = str(one.data["predicted_deviation"].attrs.get("long_name", "")).partition(", ")[2]
            how.setdefault(name, []).append(one.label)
    remarks += [f"Prediction for {', '.join(labels)}: {name}." for name, labels in how.items() if name]
    remarks += [text.replace("Not shown", "No prediction is drawn") for text in silent]
    return Section(
        "deviation",
        "Deviation",
        "Distance from the chord",
        "The largest distance of an output from its place on the chord, in units of the longest way an output has to "
        "go. Look for a measured line on its wide pale prediction: the run departs from the chord exactly as the "
        "theory says. At full rank nothing is predicted but 0, and what is measured is the error of the integration, "
        "some multiple of rtol.",
        (lambda narrow: figures.deviation_curves(measured, predictions=predicted, styles=look_of, narrow=narrow))
        if measured
        else None,
        remarks,
    )


def _spectrum(series: Sequence[Series]) -> Section:
    spectra: dict[str, Any] = {}
    for one in series:
        sigma = one.array("sigma")
        if sigma is not None and np.isfinite(sigma).all():
            times = one.t[np.searchsorted(one.data["time"].to_numpy(), one.data["spectrum_time"].to_numpy())]
            spectra[one.label] = (times, sigma, float(one.data.attrs.get("lam", 0.0)))
    shown = dict(list(spectra.items())[:MAX_PANELS])
    remarks = [f"Not shown: {', '.join(list(spectra)[MAX_PANELS:])}."] if len(spectra) > MAX_PANELS else []
    return Section(
        "spectrum",
        "Spectrum",
        "Spectrum of the Jacobian",
        "How many singular values of D lie where, over time; ticks below mark the spectra that were computed. The "
        "dotted line is the damping √λ, and what is at zero lies on the lower edge. Directions well above it are "
        "followed, those below are left where they are. "
        "Look for singular values that fall through the line: there the flow loses rank and leaves the chord.",
        (lambda narrow: figures.spectrum_heat(shown, narrow=narrow)) if shown else None,
        remarks,
    )


def _reach(series: Sequence[Series], look_of: Mapping[str, Look]) -> Section:
    dimension, first = _curves(series, "effective_dimension")
    unreachable, second = _curves(series, "unreachable_fraction")
    return Section(
        "reach",
        "Reach",
        "What the parameters can follow",
        "The effective dimension Σ σ²/(σ²+λ) counts the directions in output space that are followed, and the "
        "unreachable fraction |u − Su|/|u| is the part of the wanted velocity that the parameters cannot make. Look "
        "for a dimension equal to the number of outputs and a fraction that stays tiny; where the fraction nears 1 "
        "the run stands still before the labels.",
        (lambda narrow: figures.dimension_curves(dimension, unreachable, styles=look_of, narrow=narrow))
        if dimension or unreachable
        else None,
        list(dict.fromkeys(first + second)),
    )


def _drift(series: Sequence[Series], look_of: Mapping[str, Look]) -> Section:
    drift, remarks = _curves(series, "kernel_drift")
    return Section(
        "drift",
        "Kernel",
        "Drift of the tangent kernel",
        "How far the kernel G = DDᵀ is from that of the start. Near 0 the network is lazy, and the frozen-kernel "
        "prediction of the standard flow holds. Look for values of order 1: features are learnt, and only predictions "
        "that use the kernel along the run can hold.",
        (lambda narrow: figures.drift_curves(drift, styles=look_of, narrow=narrow)) if drift else None,
        remarks,
    )


def _held_out(series: Sequence[Series], look_of: Mapping[str, Look]) -> list[Section]:
    """Cost and accuracy on samples that were not trained on, where a run has some."""
    panels = {}
    for name, label in (("test_cost", "cost"), ("test_accuracy", "accuracy")):
        if found := _curves(series, name)[0]:
            panels[label] = found
    if not panels:
        return []
    return [
        Section(
            "heldout",
            "Held out",
            "Held-out samples",
            "What the flows make of samples that they were not trained on. Look at where each flow ends, and whether "
            "the way there was better than the end.",
            lambda narrow: figures.over_clock("Held-out samples", panels, styles=look_of, narrow=narrow),
        )
    ]


def _classes(series: Sequence[Series]) -> Section:
    """The simplex for logits of three classes, otherwise the mean outputs of each class."""
    classified = [one for one in series if is_classification(one)]
    shown, remarks = classified[:MAX_PANELS], []
    if len(classified) > MAX_PANELS:
        remarks.append(f"Not shown: {', '.join(one.label for one in classified[MAX_PANELS:])}.")
    title = "Classes"
    if not shown:
        reason = "The task is not a classification, or the labels are not there (yet)."
        return Section("classes", title, title, "", None, [reason])
    if all(is_logits(one) and one.outputs.shape[2] == 3 for one in shown):
        paths = {one.label: probabilities(one.outputs) for one in shown}
        ends = {one.label: _expected(one) for one in shown}
        return Section(
            "classes",
            title,
            title,
            "Each sample's probabilities on their way from near the centre of the triangle to the ring, where the "
            "closed form of the equilibrium puts it. Look for dots inside rings; a dot outside its ring has not "
            "arrived or cannot.",
            lambda narrow: figures.simplex(paths, ends, narrow=narrow),
            remarks,
        )
    quantity = "probability" if any(map(is_logits, shown)) else "output"
    panels = {name: panel for one in _by_run(shown) for name, panel in _maps(one).items()}
    return Section(
        "classes",
        title,
        title,
        f"Mean {quantity} of each unit (columns) over the samples of each class (rows): at the start, at the end of "
        "each flow, and as the equilibrium predicts. Look for a clean diagonal, and for classes that are still mixed "
        "up.",
        lambda narrow: figures.class_map(panels, quantity=quantity, narrow=narrow),
        remarks,
    )


def _by_run(series: Sequence[Series]) -> list[list[Series]]:
    """The series of each run."""
    return [[one for one in series if one.run == run] for run in dict.fromkeys(one.run for one in series)]


def _maps(series: Sequence[Series]) -> dict[str, np.ndarray]:
    """Mean outputs per class of one run: where its flows start, where each ends, and where they are predicted to."""
    most = max(series, key=lambda one: one.outputs.shape[1])  # some flows may have the first samples only
    ending = most.label.removeprefix(most.flow)
    return {
        f"start{ending}": _by_class(most, _seen(most)[0]),
        **{one.label: _by_class(one, _seen(one)[-1]) for one in series},
        f"predicted{ending}": _by_class(most, _expected(most)),
    }


def is_classification(one: Series) -> bool:
    """Whether the labels are on the simplex of at least two classes."""
    labels = one.array("target")
    if labels is None or labels.ndim != 2 or labels.shape[1] < 2 or not labels.size:
        return False
    return bool((labels >= 0).all() and np.allclose(labels.sum(axis=1), 1))


def is_logits(one: Series) -> bool:
    """Whether outputs are logits, whose softmax the labels are compared with."""
    return one.data.attrs.get("loss") == "CrossEntropy"


def probabilities(x: np.ndarray) -> np.ndarray:
    """The softmax over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _seen(one: Series) -> np.ndarray:
    return probabilities(one.outputs) if is_logits(one) else one.outputs


def _expected(one: Series) -> np.ndarray:
    """Where outputs, or the probabilities of logits, end: at the equilibrium; for logits its softmax is the label."""
    goal = one.array("equilibrium")
    if goal is None:
        return np.asarray(one.array("target"))
    return probabilities(goal) if is_logits(one) else goal


def _by_class(one: Series, x: np.ndarray) -> np.ndarray:
    """Means (Q, Q) of rows over the samples of each class; NaN where there is none."""
    classes = np.asarray(one.array("target")).argmax(axis=1)
    count = x.shape[1]
    return np.stack(
        [x[classes == c].mean(axis=0) if (classes == c).any() else np.full(count, np.nan) for c in range(count)]
    )
