"""Singular values of the Jacobian over time: as lines, and as a map of how many lie where."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from chordflow.extras import load_extra
from chordflow.figures.axes import new_axes, ordinate, powers, shades
from chordflow.figures.look import DAMPING, FAINT, GREY
from chordflow.projection import finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Spectrum = tuple[Float[np.ndarray, " _T"], Float[np.ndarray, "_T _k"], float]
"""Times of the saves, singular values of each, and the damping λ."""

PER_DECADE, COLUMNS = 10, 240
"""Bins of the map of singular values: per power of ten of σ, and over time."""
MAX_COLUMNS = 4
"""Panels in a row."""


def spectrum_map(
    times: Float[np.ndarray, " T"],
    sigmas: Float[np.ndarray, "T k"],
    lam_line: float | Float[np.ndarray, " T"] | None = None,
    *,
    time_label: str = "t",
) -> "Figure":
    """Draw singular values of the Jacobian: at ranks spread from 1 to k over time, and all of them at each save.

    Parameters
    ----------
    times
        Times of the saves, (T,).
    sigmas
        Singular values σ₁ ≥ … ≥ σ_k of each save, (T, k).
    lam_line
        Damping λ, a number or (T,). The line at √λ: directions far below it are left where they are.
    time_label
        What the times are.

    Raises
    ------
    ValueError
        If shapes disagree, or a number is negative or not finite.

    Examples
    --------
    >>> figure = spectrum_map(np.arange(3.0), np.geomspace(1, 1e-6, 40) * np.ones((3, 1)), 1e-8)
    >>> [ax.get_xlabel() for ax in figure.axes]
    ['t', 'rank i']
    """
    times, sigmas = _checked("spectrum_map", times, sigmas)
    ranks = np.arange(1, sigmas.shape[1] + 1)
    some = np.unique(np.round(np.geomspace(1, ranks[-1], 20)).astype(int)) - 1
    with new_axes(8.2, 3.9, 2, "Singular values of the Jacobian", sharey=True) as (figure, axes):
        drawn, remark = ordinate(axes[0], [sigmas])
        for colour, i in zip(shades("viridis_r", len(some)), some, strict=True):
            axes[0].plot(times, drawn(sigmas[:, i]), color=colour, marker=".", linewidth=1.2)
        for i in {some[0], some[len(some) // 2], some[-1]}:
            if sigmas[-1, i] > 0:
                place = (times[-1], sigmas[-1, i])
                axes[0].annotate(rf"$\sigma_{{{i + 1}}}$", place, (7, 0), textcoords="offset points", va="center")
        named = {0, len(times) // 2, len(times) - 1}
        for j, colour in enumerate(shades("cividis_r", len(times))):
            marker = "." if len(ranks) < 30 else ""
            label = f"{time_label} = {times[j]:.3g}" if j in named else None
            axes[1].plot(ranks, drawn(sigmas[j]), color=colour, marker=marker, linewidth=1.4, label=label)
        if lam_line is not None:
            level = np.sqrt(finite("lam_line", np.broadcast_to(lam_line, times.shape)))
            axes[0].plot(times, level, **DAMPING)
            axes[1].axhline(level[-1], **DAMPING, label="√λ, the damping")
        axes[0].set(xlabel=time_label, ylabel=r"singular value $\sigma_i$", title=remark)
        axes[1].set(xlabel="rank i")
        axes[1].legend(loc="best")
    return figure


def spectrum_heat(spectra: Mapping[str, Spectrum], *, narrow: bool = False) -> "Figure":
    """Draw how many singular values of the Jacobian lie where, over clock time, with the damping line √λ.

    Parameters
    ----------
    spectra
        For each flow the clock times t of its spectra in [0, 1], (T,), singular values σ₁ ≥ … ≥ σ_k, (T, k), and λ. A
        panel each.
    narrow
        Panels below each other, for the column of a phone.

    Returns
    -------
    Figure
        The colour is the number of singular values per tenth of a power of ten. Between spectra, which ticks below the
        map mark, log σᵢ is interpolated linearly. Values below a hundredth of √λ, zeros among them, lie in the lowest
        row: no direction is followed there.

    Raises
    ------
    ValueError
        If there is no spectrum, shapes disagree, or a number is negative or not finite.

    Examples
    --------
    >>> sigmas = np.geomspace(1, 1e-6, 40) * np.ones((3, 1))
    >>> figure = spectrum_heat({"straight": (np.array([0.0, 0.5, 1.0]), sigmas, 1e-8)})
    >>> figure.axes[0].get_title(loc="left")
    'straight'
    """
    if not spectra:
        raise ValueError("spectrum_heat: no spectrum; expected a mapping of names to (times, sigmas, lam)")
    checked = {
        name: (*_checked("spectrum_heat", ts, sigmas), float(lam)) for name, (ts, sigmas, lam) in spectra.items()
    }
    low, high = _range(checked)
    edges = np.geomspace(low, high, max(2, round(PER_DECADE * np.log10(high / low))) + 1)
    counts = {name: _counts(ts, sigmas, edges) for name, (ts, sigmas, _) in checked.items()}
    colours = load_extra("matplotlib.colors", "figures").LogNorm(1, max(2.0, max(c.max() for c in counts.values())))
    title = "Spectrum of the Jacobian over time"
    mesh: Any = None
    columns = 1 if narrow else min(MAX_COLUMNS, len(checked))
    rows = -(-len(checked) // columns)
    height = 1.2 + 1.5 * rows if narrow else 0.9 + 2.5 * rows
    grid = (rows, columns)
    with new_axes(8.2, height, 0, title, narrow=narrow, grid=grid, sharey=True, sharex=True) as (figure, axes):
        for ax in axes[len(checked) :]:
            ax.set_axis_off()
        for ax, (name, (ts, _, lam)) in zip(axes, checked.items(), strict=False):
            edge = np.linspace(ts[0], ts[-1], counts[name].shape[1] + 1) if ts[-1] > ts[0] else ts[0] + [-0.01, 0.01]
            mesh = ax.pcolormesh(edge, edges, counts[name], cmap="cividis", norm=colours, rasterized=True, zorder=2)
            ax.plot([-0.03, 1.03], [np.sqrt(lam)] * 2, **DAMPING)
            ax.annotate("√λ", (0.0, np.sqrt(lam)), (0, 2), textcoords="offset points", ha="left", va="bottom")
            ax.plot(ts, [low] * len(ts), "|", color=GREY, markersize=6, clip_on=False, zorder=5)
            ax.set(yscale="log", ylim=(low, high), xlim=(-0.03, 1.03), title=name, xlabel="clock time t")
            ax.title.set_color(GREY)
            ax.set_xticks([0, 0.5, 1])
        for i, ax in enumerate(axes[: len(checked)]):
            lowest = i >= len(checked) - columns
            ax.tick_params(labelbottom=lowest)
            ax.xaxis.label.set_visible(lowest)
        for ax in axes[::columns]:
            ax.set_ylabel("singular value σ")
            powers(ax.yaxis)
        place: dict[str, Any] = {"location": "bottom", "aspect": 40} if narrow else {"aspect": 30, "pad": 0.02}
        bar = axes[0].figure.colorbar(mesh, ax=list(axes), label="singular values per 0.1 decade", **place)
        powers(bar.ax.xaxis if narrow else bar.ax.yaxis)
        bar.outline.set_edgecolor(FAINT)
    return figure


def _checked(who: str, times: Any, sigmas: Any) -> tuple[np.ndarray, np.ndarray]:
    """Times (T,) and singular values (T, k), as float64."""
    times, sigmas = finite("times", times), finite("singular values", sigmas)
    if sigmas.ndim != 2 or times.shape != sigmas.shape[:1] or not sigmas.size:
        raise ValueError(f"{who}: expected times (T,) and sigmas (T, k), got {times.shape} and {sigmas.shape}")
    if (sigmas < 0).any():
        raise ValueError(f"{who}: singular values are not negative, got {sigmas.min():.3g}")
    return times, sigmas


def _range(spectra: Mapping[str, tuple[np.ndarray, np.ndarray, float]]) -> tuple[float, float]:
    """The ordinate of the map: all singular values and the line, a little room, nothing far below the line."""
    high = max([s.max() for _, s, _ in spectra.values()] + [lam**0.5 for _, _, lam in spectra.values()]) or 1.0
    damped = [lam**0.5 for _, _, lam in spectra.values() if lam > 0]
    floor = min(damped) / 100 if damped else high * 1e-18
    smallest = min((s[s > 0].min() for _, s, _ in spectra.values() if (s > 0).any()), default=high)
    return max(floor, min([smallest, *damped]) / 2), 2 * high


def _counts(ts: np.ndarray, sigmas: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Numbers (bins, columns) of singular values between edges of σ, log σᵢ linear between the times."""
    levels = np.log(np.clip(sigmas, edges[0], edges[-1]))
    columns = COLUMNS if ts[-1] > ts[0] else 1
    middle = ts[0] + (np.arange(columns) + 0.5) / columns * (ts[-1] - ts[0])
    right = np.clip(np.searchsorted(ts, middle), 1, max(1, len(ts) - 1))
    if len(ts) == 1:
        between = levels[[0] * columns]
    else:
        weight = ((middle - ts[right - 1]) / (ts[right] - ts[right - 1]))[:, None]
        between = (1 - weight) * levels[right - 1] + weight * levels[right]
    bins = np.log(edges)
    # Interpolation rounds: what was put on the outermost edges stays inside them.
    counted = [np.histogram(np.clip(row, bins[0], bins[-1]), bins)[0] for row in between]
    return np.ma.masked_equal(np.stack(counted, axis=1), 0)
