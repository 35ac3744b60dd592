"""Rearrangements of one parameter leaf, as shapes only: transposes, reshapes, reversals, new axes of any length."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Array

Axes = tuple[int, ...]


class Move(NamedTuple):
    """One step from a leaf to a base: transpose by ``perm``, reverse the axes ``flips``, reshape to ``shape``."""

    before: Axes
    perm: Axes
    flips: Axes
    shape: Axes

    def undo(self, array: Array) -> Array:
        """Trailing axes of shape ``shape`` back to shape ``before``; leading axes stay."""
        lead = array.ndim - len(self.shape)
        array = array.reshape(array.shape[:lead] + tuple(self.before[p] for p in self.perm))
        array = array[(..., *(slice(None, None, -1 if i in self.flips else 1) for i in range(len(self.perm))))]
        inverse = [self.perm.index(i) for i in range(len(self.perm))]
        return array.transpose(*range(lead), *(lead + i for i in inverse))


class View(NamedTuple):
    """A value whose entries are those of a parameter leaf, each as often as the broadcast axes say.

    The leaf is taken to a *base* of shape ``base`` by ``moves``; axis i of the value is axis ``axes[i]`` of the base,
    or a new axis (None). Axes of the base that the value lacks have length 1, except ``pins``: (depth of a scan, axis
    that this scan runs over).
    """

    leaf: int
    shape: Axes
    base: Axes
    axes: tuple[int | None, ...]
    moves: tuple[Move, ...] = ()
    pins: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, leaf: int, shape: Axes) -> "View":
        """The leaf itself."""
        return cls(leaf, shape, shape, tuple(range(len(shape))))

    @property
    def repeats(self) -> bool:
        """Whether some entry occurs more than once."""
        return any(axis is None and size != 1 for axis, size in zip(self.axes, self.shape, strict=True))

    def transpose(self, perm: Sequence[int]) -> "View":
        """Axes reordered."""
        return self._replace(shape=tuple(self.shape[p] for p in perm), axes=tuple(self.axes[p] for p in perm))

    def reshape(self, shape: Axes) -> "View | None":
        """Another shape; None where broadcast or scanned axes stand in the way."""
        if [s for s in self.shape if s != 1] == [s for s in shape if s != 1]:
            rest = iter([a for a, s in zip(self.axes, self.shape, strict=True) if s != 1])
            return self._replace(shape=shape, axes=tuple(next(rest) if s != 1 else None for s in shape))
        return self._moved((), shape)

    def reverse(self, dims: Sequence[int]) -> "View | None":
        """Some axes reversed."""
        return self._moved(tuple(dims), self.shape)

    def _moved(self, dims: Axes, shape: Axes) -> "View | None":
        if self.repeats or self.pins:
            return None
        known = [axis for axis in self.axes if axis is not None]
        perm = (*known, *(i for i in range(len(self.base)) if i not in known))
        flips = tuple(known.index(axis) for axis in (self.axes[d] for d in dims) if axis is not None)
        move = Move(self.base, perm, flips, shape)
        return View(self.leaf, shape, shape, tuple(range(len(shape))), (*self.moves, move))

    def broadcast(self, shape: Axes, dims: Sequence[int]) -> "View":
        """Axis i placed at ``dims[i]`` of ``shape``; the other axes are new."""
        axes: list[int | None] = [None] * len(shape)
        for i, dim in enumerate(dims):
            axes[dim] = self.axes[i] if self.shape[i] == shape[dim] else None
        return self._replace(shape=shape, axes=tuple(axes))

    def scanned(self, depth: int) -> "View | None":
        """One slice along the first axis, as a scan at ``depth`` sees it."""
        axis = self.axes[0]
        if axis is None:
            return None
        return self._replace(shape=self.shape[1:], axes=self.axes[1:], pins=(*self.pins, (depth, axis)))
