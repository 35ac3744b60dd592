"""What a run leaves: saved quantities at their times, the last good parameters, the outcome and its numbers."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from chordflow.extras import load_extra
from chordflow.parameters import tree_path
from chordflow.problem import Problem
from chordflow.results import RESULTS

if TYPE_CHECKING:
    import xarray


class Sealed(eqx.Module):
    """A pytree whose arrays are leaves and whose other leaves, such as functions, are structure.

    ``jax.jit``, ``jax.vmap`` and ``jax.lax`` take and return it, where a function as a leaf is an error.
    """

    arrays: list[Any]
    rest: tuple[Any, ...] = eqx.field(static=True)
    structure: Any = eqx.field(static=True)

    @classmethod
    def of(cls, tree: PyTree) -> "Sealed":
        """Seal a pytree; its leaves that are no arrays must be hashable, as functions, numbers and strings are."""
        leaves, structure = jax.tree.flatten(tree)
        arrays = [leaf if _is_array(leaf) else None for leaf in leaves]
        return cls(arrays, tuple(None if _is_array(leaf) else leaf for leaf in leaves), structure)

    def open(self) -> PyTree:
        """The pytree as it was."""
        pairs = zip(self.arrays, self.rest, strict=True)
        return jax.tree.unflatten(self.structure, [rest if leaf is None else leaf for leaf, rest in pairs])


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, np.ndarray | np.generic)


class Trajectory(eqx.Module):
    """Result of :func:`chordflow.evolve`. May be returned from ``jax.jit`` if the parameters may.

    Attributes
    ----------
    ts
        Save times (T,), in the run's own variable. Under jit with ``ts=None`` the array has its full length and unused
        entries are infinite; otherwise it holds what was reached.
    saved
        Everything asked for with ``save``, each with a leading axis T.
    params
        The last good parameters, at ``stats["t_last"]``.
    result
        A member of :class:`chordflow.RESULTS`.
    stats
        Numbers of the run: t_last, num_steps, num_accepted, num_rejected, event (−1 for none), sigma_max (an estimate
        for the standard flow); where the filter inverts also lam and effective_dimension_start, _end,
        relative_residual_start, _end.
    """

    ts: Float[Array, " T"]
    saved: dict[str, Any]
    params: PyTree
    result: RESULTS
    stats: dict[str, Any]
    sealed: Sealed

    def __init__(
        self,
        ts: Float[Array, " T"],
        saved: dict[str, Any],
        params: PyTree,
        result: RESULTS,
        stats: dict[str, Any],
        problem: Problem,
        dense: Any,
    ):
        self.ts, self.saved, self.params, self.result, self.stats = ts, saved, params, result, stats
        self.sealed = Sealed.of((problem, dense))

    @property
    def problem(self) -> Problem:
        """The problem that was run."""
        return self.sealed.open()[0]

    @property
    def dense(self) -> Any:
        """The solver's interpolant, or None."""
        return self.sealed.open()[1]

    @property
    def outputs(self) -> PyTree[Float[Array, "*seeds _time _n _q"]]:
        """x (T, N, Q), or a tuple of them; a leading axis of seeds after vmap."""
        return self._saved("outputs")

    @property
    def costs(self) -> Float[Array, "*seeds T"]:
        """C (T,)."""
        return self._saved("cost")

    @property
    def result_name(self) -> str:
        """Name of the result code, as a string."""
        return next(name for name, item in RESULTS._name_to_item.items() if bool(self.result == item))

    def _saved(self, name: str) -> Any:
        if name not in self.saved:
            raise ValueError(f"'{name}' was not saved, only {sorted(self.saved)}: ask with evolve(..., save=(...))")
        return self.saved[name]

    def params_saved(self, index: int) -> PyTree:
        """Parameters at ``ts[index]``; needs ``params`` among ``save``.

        ``saved["params"]`` holds their arrays alone, with a leading axis T; here is all of them.
        """
        return eqx.combine(jax.tree.map(lambda leaf: leaf[index], self._saved("params")), self.params)

    def params_at(self, t: float | Float[Array, ""]) -> PyTree:
        """Parameters at time ``t`` in [0, t_last], by the solver's interpolant; needs ``evolve(..., dense=True)``."""
        if self.dense is None:
            raise ValueError("params_at needs the solver's dense output: evolve(..., dense=True)")
        time = jnp.asarray(t, self.ts.dtype)
        last = self.stats["t_last"]
        if not isinstance(time, Tracer) and not bool((time >= 0) & (time <= last)):
            raise ValueError(f"params_at: t must be in [0, {float(last):g}], the part that was integrated, got {t}")
        return self.dense(time)

    def to_xarray(self) -> "xarray.Dataset":
        """Label the saved quantities: dimensions time, sample, output (and sample_k, output_k for term k of several).

        Needs xarray. A quantity that is a pytree becomes one variable per leaf, whose attributes ``quantity`` and
        ``tree_path`` (JSON) say which leaf of which quantity it is.
        """
        dataset = labelled(self.ts, self.saved)
        scalars = {k: np.asarray(v).item() for k, v in self.stats.items() if np.ndim(v) == 0}
        return dataset.assign_attrs({"result": self.result_name, **scalars})

    def plot(self) -> Any:
        """Draw the headline picture: outputs in the principal plane with the chord. Returns a matplotlib figure."""
        from chordflow import figures

        x = np.asarray(_flat(self.outputs))
        first = jax.tree.map(lambda leaf: leaf[0], self.outputs)
        goal = self.problem.equilibrium(first)
        y = x[0] if goal is None else np.asarray(self.problem.flatten(goal))
        if goal is None or not np.isfinite(y).all():
            raise ValueError("plot: the loss has no finite target to draw a chord to; use cf.figures on the outputs")
        return figures.output_plane({"run": x}, chord=(x[0], y))


def _flat(outputs: PyTree) -> Array:
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(outputs)], axis=1)


def _dims(name: str, suffix: str, ndim: int) -> tuple[str, ...]:
    if name == "outputs":
        return (f"sample{suffix}", f"output{suffix}")[:ndim]
    return tuple(f"{name}{suffix}_{axis}" for axis in range(ndim))


def _named_leaves(saved: dict[str, Any]) -> Iterator[tuple[str, str, list[int | str], Any]]:
    """Name of the variable, quantity, path in it, and leaf, for each array of what is saved."""
    taken = set()
    for quantity, value in saved.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(value):
            keys = tree_path(path)
            # "/" makes groups in netCDF; different paths may spell the same name.
            name = quantity + "".join(f"_{key}" for key in keys).replace("/", "-")
            while name in taken:
                name += "_"
            taken.add(name)
            yield name, quantity, keys, leaf


def labelled(ts: Any, saved: dict[str, Any]) -> "xarray.Dataset":
    """What was saved at times ``ts`` as labelled arrays over ``time``; :func:`unlabelled` reads it back."""
    xarray = load_extra("xarray", "labelled trajectories")
    variables: dict[str, Any] = {}
    for name, quantity, keys, leaf in _named_leaves(saved):
        array = np.asarray(leaf)
        dims = ("time", *_dims(quantity, name.removeprefix(quantity), array.ndim - 1))
        attrs = {"quantity": quantity, "tree_path": json.dumps(keys)} if keys else {}
        variables[name] = (dims, array, attrs)
    return xarray.Dataset(variables, coords={"time": np.asarray(ts)})


def unlabelled(dataset: "xarray.Dataset", struct: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """Times, and what was saved as NumPy arrays, from labelled arrays; ``struct`` has the shapes of one save."""
    leaves = iter([dataset[name].to_numpy() for name, *_ in _named_leaves(struct)])
    # A mapping keeps its own order of the quantities; jax would sort them.
    saved = {quantity: jax.tree.map(lambda _: next(leaves), value) for quantity, value in struct.items()}
    return dataset["time"].to_numpy(), saved


def trim(ts: Array, saved: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
    """Drop the unused (infinite) entries of the save buffers of a finished, concrete run."""
    count = int(jnp.sum(jnp.isfinite(ts)))
    return ts[:count], jax.tree.map(lambda leaf: leaf[:count], saved)
