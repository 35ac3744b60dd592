"""How figures look: ink, settings, and one look for each flow in every figure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

INK, GREY, FAINT, GRID, PAPER = "#222222", "#6E6E6E", "#D0D0D0", "#ECECEC", "#FFFFFF"

RC: dict[str, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": GREY,
    "axes.labelsize": 9.5,
    "axes.edgecolor": GREY,
    "axes.facecolor": PAPER,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 3.4,
    "legend.borderpad": 0.2,
    "legend.borderaxespad": 0.2,
    "figure.facecolor": PAPER,
    "svg.hashsalt": "chordflow",  # equal figures are equal bytes
}
DAMPING: dict[str, Any] = {"color": INK, "linestyle": (0, (1, 1.5)), "linewidth": 1.3, "zorder": 4}


@dataclass(frozen=True)
class Look:
    """How one flow is drawn: colour, dashes and marker say the same thing three times."""

    colour: str
    dashes: Any
    marker: str
    hollow: bool = False
    """Markers are rings: a second run of the same flow."""
    width: float = RC["lines.linewidth"]
    """Of the line, in points: another run of the same flow has another one."""

    @property
    def face(self) -> str:
        """What the marker is filled with."""
        return PAPER if self.hollow else self.colour


LOOKS = {
    "straight": Look("#0072B2", "-", "o"),
    "adapted": Look("#D55E00", (0, (6, 2)), "s"),
    "standard": Look("#CC79A7", (0, (1, 1.2)), "D"),
    "interpolated": Look("#009E73", (0, (6, 1.5, 1, 1.5)), "^"),
    "along": Look("#56B4E9", (0, (9, 2)), "v"),
}
OTHER_LOOKS = (
    Look("#E69F00", (0, (3, 1.5)), "P"),
    Look("#000000", (0, (3, 1, 1, 1, 1, 1)), "X"),
    *LOOKS.values(),
    # The same colours once more under other markers: families of more than seven flows.
    *(Look(look.colour, (0, (2, 1)), marker) for look, marker in zip(LOOKS.values(), "<>ph*", strict=True)),
)


def looks(names: Iterable[str]) -> dict[str, Look]:
    """One look per name: a named flow ("interpolated(0.5)" too) has its own, others take what is free in order.

    Examples
    --------
    >>> looks(["mine", "straight"])["straight"] == LOOKS["straight"]
    True
    """
    chosen: dict[str, Look] = {}
    others = []
    for name in names:
        look = LOOKS.get(name.split("(")[0].split(" ")[0])
        if look is None or look in chosen.values():
            others.append(name)
        else:
            chosen[name] = look
    free = [look for look in OTHER_LOOKS if look not in chosen.values()]
    repeated = {name: free[i % len(free)] for i, name in enumerate(others)}
    return {**chosen, **repeated}
