"""The plane in which the outputs of several flows are looked at: their chord, and where they leave it most."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

Points = Float[np.ndarray, "..."]
"""Outputs, of any shape: (n,) or (N, Q)."""

Path = Float[np.ndarray, "_T ..."]
"""Outputs over time."""


@dataclass(frozen=True)
class Plane:
    """Trajectories in the plane of the chord and the direction in which they leave it most.

    With the chord of length L = |y − x₀| along e, and r = (x − x₀) − e eᵀ(x − x₀), ``across`` is the first principal
    direction of all r (each trajectory with the same total weight, however often it was saved): the unit vector
    v ⊥ e for which Σ |vᵀr|² is largest.
    """

    points: dict[str, Float[np.ndarray, "_T 2"]]
    """eᵀ(x − x₀) and vᵀ(x − x₀), both divided by L."""
    along: Float[np.ndarray, " n"]
    across: Float[np.ndarray, " n"]
    length: float
    off: dict[str, float]
    """max over time of |r| / L in all n dimensions, not in the plane alone."""
    share: float
    """Part of the weighted Σ|r|² that ``across`` shows; 1 where there is nothing to show."""


def principal_plane(trajectories: Mapping[str, Path], chord: tuple[Points, Points]) -> Plane:
    """Project the outputs of several flows into one plane that holds their chord.

    Parameters
    ----------
    trajectories
        Outputs over time, (T, n) or (T, N, Q), one array per flow; T may differ.
    chord
        Its ends, x₀ and y, of the shape of the outputs.

    Returns
    -------
    Plane
        Lengths are divided by |y − x₀|, or by 1 where the chord has no length; then the two first principal directions
        of x − x₀ span the plane. Where no trajectory leaves the chord by more than rounding, ``across`` is 0.

    Raises
    ------
    ValueError
        If there is no trajectory, shapes disagree, or a number is not finite.

    Notes
    -----
    One eigendecomposition of order min(n, all T together).

    Examples
    --------
    >>> circle = np.array([[0.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    >>> plane = principal_plane({"detour": circle}, (np.zeros(2), np.array([1.0, 0.0])))
    >>> plane.off["detour"], plane.points["detour"].tolist()
    (0.5, [[0.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    """
    start, end = (np.asarray(point, float).ravel() for point in chord)
    moves = {name: _flat(name, x, start.size) - start for name, x in trajectories.items()}
    if not moves:
        raise ValueError("principal_plane: no trajectory; expected a mapping of names to (T, n) arrays")
    finite("chord", np.concatenate([start, end]))
    length = float(np.linalg.norm(end - start))
    along = (end - start) / length if length else _principal(moves.values(), start.size)
    rests = {name: move - np.outer(move @ along, along) for name, move in moves.items()}
    # Differences of numbers of this size are rounding; a direction through them would be noise, not across the chord.
    size = max(np.abs(part).max() for part in (start, end, *moves.values()))
    noise = 8 * np.finfo(float).eps * size
    rests = {name: np.where(np.abs(rest) > noise, rest, 0.0) for name, rest in rests.items()}
    across = _principal(rests.values(), start.size)
    across = across - along * (along @ across)
    total = sum(np.mean(np.sum(rest**2, axis=1)) for rest in rests.values())
    shown = sum(np.mean((rest @ across) ** 2) for rest in rests.values())
    unit = length or 1.0
    return Plane(
        points={name: np.stack([moves[name] @ along, rests[name] @ across], axis=1) / unit for name in moves},
        along=along,
        across=across,
        length=length,
        off={name: float(np.linalg.norm(rest, axis=1).max()) / unit for name, rest in rests.items()},
        share=float(shown / total) if total else 1.0,
    )


def _flat(name: str, x: np.ndarray, n: int) -> np.ndarray:
    """(T, n) from (T, n) or (T, N, Q), checked."""
    flat = np.asarray(x, float).reshape(len(x), -1) if np.ndim(x) > 1 and len(x) else np.zeros((0, 0))
    if not flat.size or flat.shape[1] != n:
        raise ValueError(f"trajectory {name!r}: expected shape (T, {n}) or (T, N, Q) with N Q = {n}, got {np.shape(x)}")
    return finite(f"trajectory {name!r}", flat)


def finite(what: str, values: Any) -> np.ndarray:
    """The values as float64, refused where a picture would silently leave a part out."""
    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        raise ValueError(
            f"{what}: expected finite numbers, got {(~np.isfinite(values)).sum()} that are not; cut the run there"
        )
    return values


def _principal(rows: Iterable[np.ndarray], n: int) -> np.ndarray:
    """First principal direction of several groups of rows through 0, each of equal weight; 0 for zero rows.

    The sign is that which makes the largest coordinate of a row along it positive.
    """
    stacked = np.concatenate([row / np.sqrt(len(row)) for row in rows])
    if not stacked.any():
        return np.zeros(n)
    wide = len(stacked) < n
    _, vectors = np.linalg.eigh(stacked @ stacked.T if wide else stacked.T @ stacked)
    direction = stacked.T @ vectors[:, -1] if wide else vectors[:, -1]
    direction = direction / np.linalg.norm(direction)
    coordinates = stacked @ direction
    return direction * np.sign(coordinates[np.argmax(np.abs(coordinates))])
