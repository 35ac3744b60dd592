"""A matplotlib figure as SVG inside a page: text as text, colours that follow the page's theme, marks that move."""

import io
import re
from collections.abc import Callable, Iterable
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from chordflow.extras import load_extra
from chordflow.figures.look import FAINT, GREY, GRID, INK, PAPER, RC

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIABLES = {
    INK: "ink",
    GREY: "muted",
    FAINT: "faint",
    GRID: "grid",
    PAPER: "paper",
    "#000000": "black",
    "#E69F00": "orange",
    "#56B4E9": "sky",
    "#009E73": "green",
    "#0072B2": "blue",
    "#D55E00": "vermilion",
    "#CC79A7": "purple",
}
"""Colours of the figures and the variables of ``page.css`` that stand for them; the colour itself is the fallback."""

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
_FONT = re.compile(r"font(-family)?: ?(?:([\d.]+px) )?'DejaVu Sans'[^;\"]*")


def draw(make: Callable[[bool], "Figure"], *, narrow: bool) -> "Figure":
    """A figure without its title, which the page has itself, with every character of a name meaning itself."""
    with load_extra("matplotlib", "reports").rc_context({"text.parse_math": False}):
        figure = make(narrow)
    figure.suptitle("").set_in_layout(False)
    return figure


def nothing(figure: "Figure") -> Iterable[str]:
    """No elements beside those of the figure."""
    del figure
    return ()


def inline(figure: "Figure", ident: str, title: str, extra: Callable[["Figure"], Iterable[str]] = nothing) -> str:
    """SVG for a page, with ids that are unique in it; ``extra`` adds elements once the places of axes are known."""
    text = io.StringIO()
    with load_extra("matplotlib", "reports").rc_context({**RC, "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = _own_ids(body.replace("xlink:href", "href"), ident)
    body = _FONT.sub(lambda m: f"font-size: {m[2]}; font-family: inherit" if m[2] else "font-family: inherit", body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    width, height = (72 * float(side) for side in figure.get_size_inches())
    marks = "".join(extra(figure))
    # Lines join round, as matplotlib's own style sheet says, which would otherwise reach the whole page.
    return (
        f'<svg id="{ident}" viewBox="0 0 {width:.6g} {height:.6g}" role="img" aria-label="{escape(title)}" '
        f'stroke-linejoin="round" stroke-linecap="butt">{coloured(body)}{marks}</svg>'
    )


def _own_ids(body: str, ident: str) -> str:
    """Ids that something refers to, under the name of the picture; the others, which equal parts share, are dropped."""
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{ident}-{m[1]}"' if m[1] in referred else "", body)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{ident}-", body)


def coloured(text: str) -> str:
    """The figures' colours as variables of the page's theme.

    Examples
    --------
    >>> coloured("stroke: #0072b2")
    'stroke: var(--blue, #0072b2)'
    """
    known = {colour.lower(): name for colour, name in VARIABLES.items()}

    def variable(match: re.Match[str]) -> str:
        name = known.get(match[0].lower())
        return f"var(--{name}, {match[0].lower()})" if name else match[0]

    return _COLOUR.sub(variable, text)


def places(figure: "Figure", ax: Any, points: np.ndarray) -> np.ndarray:
    """Coordinates (T, 2) in the picture, in units of its view box, of data points (T, 2) of a drawn figure."""
    pixels = ax.transData.transform(points) * 72 / figure.dpi
    height = 72 * float(figure.get_size_inches()[1])
    return np.stack([pixels[:, 0], height - pixels[:, 1]], axis=1)


def cursors(figure: "Figure") -> Iterable[str]:
    """A vertical line for every panel over clock time or s/N, for the page's slider to move."""
    for ax in figure.axes:
        label = ax.get_xlabel()
        if not label.startswith(("clock time", "gradient-flow time")):
            continue
        low, high = ax.get_ylim()
        x = ax.get_xlim()
        corners = places(figure, ax, np.array([[0.0, low], [1.0, high], [x[0], low], [x[1], low]]))
        (x0, bottom), (x1, top), (left, _), (right, _) = corners
        kind = "t" if label.startswith("clock") else "s"
        yield (
            f'<line class="cursor" data-clock="{kind}" data-zero="{x0:.2f}" data-unit="{x1 - x0:.2f}" '
            f'data-left="{left:.2f}" data-right="{right:.2f}" x1="0" x2="0" y1="{bottom:.2f}" y2="{top:.2f}"/>'
        )
