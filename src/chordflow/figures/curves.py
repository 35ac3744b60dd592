"""Lines over time: cost on both clocks and against seconds, deviation from the chord, what is followed and kept."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from chordflow.figures.axes import (
    Curve,
    Styles,
    curves,
    end,
    legend,
    line,
    new_axes,
    note,
    ordinate,
    powers,
    prediction,
    styled,
    timed,
)
from chordflow.figures.look import DAMPING, LOOKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLOCK = "clock time t = 1 − exp(−s/N)"


def cost_curves(
    measured: Mapping[str, Curve],
    n: float,
    *,
    predictions: Mapping[str, Curve] | None = None,
    styles: Styles = None,
    narrow: bool = False,
) -> "Figure":
    """Draw the cost above its minimum, C − C_min, on both clocks: s of gradient flow, and t = 1 − e^(−s/N).

    Parameters
    ----------
    measured
        For each flow its times s, (T,), and C − C_min, (T,). The end t = 1 of a straight flow is s = ∞, which the panel
        of t has a place for.
    n
        N of the clock s = −N ln(1 − t) (2.51): the total sample weight.
    predictions
        The same for predicted curves, wide and pale in the colour of the flow of that name.
    styles
        Looks for names, where they are not to have those of :func:`chordflow.figures.looks`.
    narrow
        Panels below each other, for the column of a phone.

    Raises
    ------
    ValueError
        If there is no curve, n is not positive, times are NaN or negative, shapes disagree, or a cost is not finite.

    Notes
    -----
    A logarithmic axis has no place for values at or below 0, which rounding makes of a cost at its minimum. The
    subtitle says how many there are.

    Examples
    --------
    >>> s = np.linspace(0.0, 30.0, 16)
    >>> figure = cost_curves({"adapted": (s, np.exp(-2 * s / 10))}, 10.0)
    >>> [ax.get_xlabel() for ax in figure.axes]
    ['gradient-flow time s / N', 'clock time t = 1 − exp(−s/N)']
    """
    if not n > 0:
        raise ValueError(f"cost_curves: n must be positive, the total sample weight N of s = −N ln(1 − t), got {n}")
    if not measured:
        raise ValueError("cost_curves: no curve; expected a mapping of names to pairs (s, C − C_min)")
    costs = {name: timed(name, curve) for name, curve in measured.items()}
    predicted = {name: timed(name, curve) for name, curve in (predictions or {}).items()}
    look_of = styled(dict.fromkeys([*costs, *predicted]), styles)
    with new_axes(8.2, 3.9, 2, "Cost above its minimum on both clocks", narrow=narrow, sharey=True) as (figure, axes):
        drawn, remark = ordinate(axes[0], [c for _, c in costs.values()], [c for _, c in predicted.values()])
        for ax, clock in ((axes[0], lambda s: s / n), (axes[1], lambda s: -np.expm1(-s / n))):
            shown, foreseen = ({name: (clock(s), c) for name, (s, c) in part.items()} for part in (costs, predicted))
            curves(ax, shown, foreseen, look_of, drawn)
        axes[0].set(xlabel="gradient-flow time s / N", ylabel="C − Cₘᵢₙ")
        axes[1].set(xlabel=CLOCK, xlim=(-0.03, 1.03), ylabel="C − Cₘᵢₙ" if narrow else "")
        note(axes[0], remark, narrow=narrow)
        legend(axes[0], narrow=narrow)
    return figure


def cost_seconds(
    measured: Mapping[str, Curve], *, styles: Styles = None, narrow: bool = False, logarithmic: bool = True
) -> "Figure":
    """Draw the cost above its minimum against the wall-clock seconds of each save.

    Parameters
    ----------
    measured
        For each flow its seconds, (T,), and C − C_min, (T,). Two saves, of the start and the end, are drawn as their
        ends alone: what is between them is not known.
    styles, narrow
        As for :func:`cost_curves`.
    logarithmic
        Whether the seconds are on a logarithmic axis; its place for 0 is the smallest positive number.

    Raises
    ------
    ValueError
        As for :func:`cost_curves`.

    Examples
    --------
    >>> cost_seconds({"straight": (np.array([0.1, 1.0, 3.0]), np.array([1.0, 0.1, 1e-9]))}).axes[0].get_xlabel()
    'seconds'
    """
    if not measured:
        raise ValueError("cost_seconds: no curve; expected a mapping of names to pairs (seconds, C − C_min)")
    costs = {name: timed(name, curve) for name, curve in measured.items()}
    with new_axes(8.2, 3.9, 1, "Cost above its minimum against seconds", narrow=narrow) as (figure, (ax,)):
        drawn, remark = ordinate(ax, [c for _, c in costs.values()])
        look_of = styled(costs, styles)
        for i, (name, (seconds, cost)) in enumerate(costs.items()):
            if len(seconds) > 2:
                line(ax, (seconds, drawn(cost)), look_of[name], i, label=name)
            else:
                end(ax, seconds, drawn(cost), look_of[name], label=name)
        if logarithmic and any((seconds > 0).any() for seconds, _ in costs.values()):
            ax.set_xscale("log")
            powers(ax.xaxis)
        else:
            ax.set_xlim(left=0)
        ax.set(xlabel="seconds", ylabel="C − Cₘᵢₙ")
        note(ax, remark, narrow=narrow)
        legend(ax, narrow=narrow)
    return figure


def deviation_curve(
    ts: Float[np.ndarray, " T"],
    deviation: Float[np.ndarray, " T"],
    predicted: Float[np.ndarray, " T"] | None = None,
    *,
    bound: float | None = None,
    time_label: str = "t",
) -> "Figure":
    """Draw how far the outputs are from their chord over time, with the prediction (2.58) and the bound required.

    Parameters
    ----------
    ts, deviation, predicted
        Times (T,), measured and predicted max |x(t) − chord(t)|, (T,) each. At the start it is 0, which a logarithmic
        axis leaves out; the subtitle counts zeros elsewhere.
    bound
        A horizontal line, what is allowed.
    time_label
        What the times are.

    Raises
    ------
    ValueError
        If shapes disagree or a number is not finite.

    Examples
    --------
    >>> figure = deviation_curve(np.linspace(0, 1, 5), np.zeros(5))
    >>> figure.axes[0].get_title(loc="left")
    'All values are exactly 0'
    """
    ts, measured = timed("deviation", (ts, deviation))
    other = None if predicted is None else timed("predicted", (ts, predicted))[1]
    look = LOOKS["straight"]
    with new_axes(6.4, 3.9, 1, "Deviation from the chord") as (figure, (ax,)):
        drawn, remark = ordinate(ax, [measured[1:]], [] if other is None else [other])
        if other is not None:
            prediction(ax, ts, drawn(other), look.colour, label="predicted")
        line(ax, (ts, drawn(measured)), look, 0, label="measured")
        if bound is not None:
            ax.axhline(bound, **DAMPING, label="allowed")
        ax.set(xlabel=time_label, ylabel="max |x − chord|", title=remark)
        legend(ax)
    return figure


def deviation_curves(
    measured: Mapping[str, Curve],
    *,
    predictions: Mapping[str, Curve] | None = None,
    styles: Styles = None,
    narrow: bool = False,
) -> "Figure":
    """Draw how far the outputs of several flows are from their chord over clock time, with what is predicted.

    Parameters
    ----------
    measured
        For each flow its clock times t in [0, 1], (T,), and max |x − chord|, (T,), in units of the longest way that an
        output has to go. The start, where it is 0, has no place on a logarithmic axis and is left out.
    predictions
        The same as predicted, by (2.58) or from predicted outputs: wide and pale beneath.
    styles, narrow
        As for :func:`cost_curves`.

    Raises
    ------
    ValueError
        As for :func:`cost_curves`.

    Examples
    --------
    >>> t = np.linspace(0, 1, 5)
    >>> deviation_curves({"standard": (t, 0.1 * t)}, predictions={"standard": (t, 0.1 * t)}).axes[0].get_yscale()
    'log'
    """
    ylabel = "max |x − chord|, relative"
    shown, foreseen = (
        {name: (t[1:], d[1:]) if len(t) > 1 else (t, d) for name, (t, d) in part.items()}
        for part in (measured, predictions or {})
    )
    return over_clock(
        "Deviation from the chord",
        {ylabel: shown},
        predictions={ylabel: foreseen},
        logarithmic=(ylabel,),
        styles=styles,
        narrow=narrow,
    )


def dimension_curves(
    dimension: Mapping[str, Curve],
    unreachable: Mapping[str, Curve],
    *,
    styles: Styles = None,
    narrow: bool = False,
) -> "Figure":
    """Draw how many directions are followed, and which part of the velocity the parameters cannot make, over time.

    Parameters
    ----------
    dimension
        For each flow clock times (T,) and the effective dimension Σ σ²/(σ²+λ), (T,).
    unreachable
        For each flow clock times and |u − S_λu|/|u|.
    styles, narrow
        As for :func:`cost_curves`.

    Raises
    ------
    ValueError
        As for :func:`cost_curves`; one of the two may be empty.

    Examples
    --------
    >>> t = np.linspace(0, 1, 5)
    >>> figure = dimension_curves({"straight": (t, 7 + t)}, {"straight": (t, 1e-9 + t)})
    >>> [ax.get_yscale() for ax in figure.axes]
    ['linear', 'log']
    """
    panels = {"effective dimension": dimension, "unreachable fraction |u − Su| / |u|": unreachable}
    return over_clock(
        "What the parameters can follow",
        {ylabel: panel for ylabel, panel in panels.items() if panel},
        logarithmic=("unreachable fraction |u − Su| / |u|",),
        styles=styles,
        narrow=narrow,
    )


def drift_curves(measured: Mapping[str, Curve], *, styles: Styles = None, narrow: bool = False) -> "Figure":
    """Draw how far the tangent kernel G = DDᵀ is from that of the start, |G − G₀| / |G₀|, over clock time.

    Parameters
    ----------
    measured
        For each flow clock times (T,) and the drift, (T,).
    styles, narrow
        As for :func:`cost_curves`.

    Raises
    ------
    ValueError
        As for :func:`cost_curves`.

    Examples
    --------
    >>> drift_curves({"standard": (np.linspace(0, 1, 5), np.linspace(0, 0.3, 5))}).axes[0].get_ylabel()
    'kernel drift |G − G₀| / |G₀|'
    """
    label = "kernel drift |G − G₀| / |G₀|"
    return over_clock("Drift of the tangent kernel", {label: measured}, styles=styles, narrow=narrow)


def over_clock(
    title: str,
    panels: Mapping[str, Mapping[str, Curve]],
    *,
    predictions: Mapping[str, Mapping[str, Curve]] | None = None,
    logarithmic: tuple[str, ...] = (),
    styles: Styles = None,
    narrow: bool = False,
) -> "Figure":
    """Draw quantities of several flows over clock time, a panel for each quantity.

    Parameters
    ----------
    title
        Of the figure.
    panels
        For each quantity, which is the label of its ordinate, a mapping of flows to times (T,) and values (T,).
    predictions
        The same for predicted curves, wide and pale.
    logarithmic
        Quantities with a logarithmic ordinate, where a value allows it.
    styles, narrow
        As for :func:`cost_curves`.

    Raises
    ------
    ValueError
        If there is no curve, times are NaN or negative, shapes disagree, or a value is not finite.

    Examples
    --------
    >>> t = np.linspace(0, 1, 5)
    >>> figure = over_clock("Held out", {"cost": {"straight": (t, 1 - t)}, "accuracy": {"straight": (t, t)}})
    >>> [ax.get_ylabel() for ax in figure.axes]
    ['cost', 'accuracy']
    """
    if not panels or not all(panels.values()):
        raise ValueError(f"{title}: no curve; expected a mapping of names to pairs (times, values)")
    names = dict.fromkeys(name for panel in panels.values() for name in panel)
    look_of = styled(names, styles)
    with new_axes(8.2, 3.9, len(panels), title, narrow=narrow) as (figure, axes):
        for ax, (ylabel, panel) in zip(axes, panels.items(), strict=True):
            measured = {name: timed(name, curve) for name, curve in panel.items()}
            foreseen = {name: timed(name, curve) for name, curve in (predictions or {}).get(ylabel, {}).items()}
            drawn: Any = np.asarray
            if ylabel in logarithmic:
                values = [[y for _, y in part.values()] for part in (measured, foreseen)]
                drawn, remark = ordinate(ax, *values)
                note(ax, remark, narrow=narrow)
            else:
                _keep_apart(ax, [y for _, y in measured.values()])
            curves(ax, measured, foreseen, look_of, drawn)
            ax.set(xlabel=CLOCK, ylabel=ylabel, xlim=(-0.03, 1.03))
        legend(axes[0], narrow=narrow)
    return figure


def _keep_apart(ax: Any, values: list[np.ndarray]) -> None:
    """Show what is constant but for a thousandth as constant."""
    everything = np.concatenate(values)
    middle = (everything.max() + everything.min()) / 2
    if 0 < np.ptp(everything) < 1e-3 * abs(middle):
        ax.set_ylim(middle - 0.05 * abs(middle), middle + 0.05 * abs(middle))
