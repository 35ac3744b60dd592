"""The Gram matrix of a configured problem: computed in pieces, its spectrum, and the file that keeps it."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from chordflow.config import Config
from chordflow.experiment import Say, new_folder
from chordflow.extras import load_extra
from chordflow.kernel import GramPlan, gram_plan, gram_rows
from chordflow.memory import require_memory
from chordflow.progress_bar import counting
from chordflow.setting import Setting
from chordflow.solve import RankPolicy
from chordflow.solve.weighted import sigma_from_squares

PIECE_BYTES = 2**26
CHUNK_OUTPUTS = 512
"""A chunk of the file has about so many rows and columns, 2 MiB."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of D from the eigenvalues σ² of G = DDᵀ, and how many directions they make at a tolerance.

    Parameters
    ----------
    sigma
        Descending, min(n, K) of them; NaN below ``floor`` · σ_max, where the rounding of G hides them.
    floor
        √(n · machine epsilon).
    eps
        ε of the rank policy, λ = (ε σ_max)².
    effective_dimension
        Bounds on Σ σ²/(σ²+λ): what is hidden counts as 0 and as ``floor`` · σ_max.
    """

    sigma: Float[np.ndarray, " k"]
    floor: float
    eps: float
    effective_dimension: tuple[float, float]

    @classmethod
    def of(cls, gram: Float[np.ndarray, "n n"], num_params: int, eps: float) -> "Spectrum":
        """One eigendecomposition without vectors, n³ work; ``num_params`` is K.

        Examples
        --------
        >>> spectrum = Spectrum.of(np.diag([4.0, 1.0, 0.0]), num_params=2, eps=0.5)
        >>> spectrum.sigma.tolist(), spectrum.effective_dimension
        ([2.0, 1.0], (1.3, 1.3))
        """
        floor = float(np.sqrt(len(gram) * np.finfo(gram.dtype).eps))
        if not gram.any():
            return cls(np.zeros(min(len(gram), num_params)), floor, eps, (0.0, 0.0))
        sigma = sigma_from_squares(jnp.asarray(np.linalg.eigvalsh(gram)))[:num_params]
        policy = RankPolicy(jnp.asarray(eps, sigma.dtype), sigma[0])
        hidden = jnp.isnan(sigma)
        bounds = (policy.effective_dimension(jnp.where(hidden, s, sigma)) for s in (0.0, floor * sigma[0]))
        low, high = (float(bound) for bound in bounds)
        return cls(np.asarray(sigma), floor, eps, (low, high))

    @property
    def num_hidden(self) -> int:
        """Singular values that G does not show."""
        return int(np.isnan(self.sigma).sum())

    def lines(self) -> list[str]:
        """The spectrum in words: extremes, how many lie above powers of ten, effective dimension."""
        shown = self.sigma[~np.isnan(self.sigma)]
        decades = np.arange(1, 1 + int(-np.log10(self.floor)))
        counts = ", ".join(f"1e-{d}: {int(np.sum(shown > 10.0**-d * shown[0]))}" for d in decades)
        hidden = f", {self.num_hidden} below {self.floor:.1g} of the largest, hidden by rounding"
        low, high = (f"{bound:.1f}" for bound in self.effective_dimension)
        dimension = low if low == high else f"{low} to {high}"
        return [
            f"singular values of D: {shown[0]:.6g} to {shown[-1]:.3g}{hidden if self.num_hidden else ''}",
            f"above a part of the largest: {counts}",
            f"effective dimension at eps = {self.eps:g}: {dimension} of {len(self.sigma)}",
        ]


def run(config: Config, *, say: Say = print, progress: bool = False) -> Path:
    """Compute and keep the Gram matrix G = DDᵀ of a configuration at its initial parameters; the run folder.

    The folder holds ``gram.nc``: ``gram`` (sample, output, other_sample, other_output), unweighted, and ``sigma``, the
    singular values of D.

    Raises
    ------
    MemoryError
        Before there is a folder or an array, if the matrix and its eigendecomposition do not fit.
    StorageError
        The folder cannot be written, such as on a full disk; as after any other failure it is taken away again.
    """
    setting = Setting.build(config)
    inputs, targets = setting.dataset.inputs, setting.dataset.targets
    n, num_params = setting.problem().jacobian(setting.params).shape
    num_samples, size = len(targets), n * n * 8
    # LAPACK overwrites a copy.
    require_memory(2 * size, f"the Gram matrix of n = {n} outputs with its spectrum", "use fewer data.samples")
    rows = max(1, min(num_samples, PIECE_BYTES // (size // num_samples)))
    piece = gram_plan(setting.apply, setting.params, inputs[:rows], inputs)
    require_memory(size + piece.peak_bytes, f"the Gram matrix of n = {n} outputs", "use fewer data.samples")
    with new_folder(config, f"{setting.dataset.name}-gram", "gram") as (folder, undone), undone:
        say(f"run folder {folder.path}")
        say(f"{setting.dataset.name}: {num_samples} samples, n = {n}, K = {num_params}")
        say(piece.explain())
        start = time.perf_counter()
        gram = _in_pieces(setting, n, rows, progress=progress)
        seconds = time.perf_counter() - start
        say(f"Gram matrix ({n} x {n}, {size / 2**20:.3g} MiB) in {seconds:.1f} s")
        if not np.isfinite(gram.sum()):
            raise ValueError(
                "the Jacobian at the initial parameters is not finite: use another model, seed or data scaling"
            )
        spectrum = Spectrum.of(gram, num_params, config.eps)
        for line in spectrum.lines():
            say(line)
        folder.write_dataset("gram", _dataset(setting, gram, spectrum, seconds))
        folder.write_summary({"gram": _summary(n, num_params, num_samples, spectrum, piece)})
        folder.seal()
        say(f"config, summary and gram.nc: {folder.path}")
    return folder.path


def _in_pieces(setting: Setting, n: int, rows: int, *, progress: bool) -> Float[np.ndarray, "n n"]:
    inputs = setting.dataset.inputs
    num_outputs = n // len(inputs)
    gram = np.empty((n, n))
    with counting(len(inputs), "Gram matrix", "sample", show=progress) as done:
        for where, piece in gram_rows(setting.apply, setting.params, jnp.asarray(inputs), rows=rows):
            num = where.stop - where.start
            gram[where.start * num_outputs : where.stop * num_outputs] = np.asarray(piece).reshape(-1, n)
            done(num)
    return gram


def _dataset(setting: Setting, gram: Float[np.ndarray, "n n"], spectrum: Spectrum, seconds: float) -> Any:
    """Everything computed as one labelled xarray dataset."""
    xarray = load_extra("xarray", "labelled results")
    num_samples = len(setting.dataset.targets)
    num_outputs = len(gram) // num_samples
    names = setting.dataset.class_names
    outputs = np.array(names) if len(names) == num_outputs else np.arange(num_outputs)
    samples = np.arange(num_samples)
    dims = ("sample", "output", "other_sample", "other_output")
    data = xarray.Dataset(
        {
            "gram": (dims, gram.reshape(num_samples, num_outputs, num_samples, num_outputs)),
            "sigma": ("singular_value", spectrum.sigma),
            "seconds": ((), seconds),
        },
        coords=dict(zip(dims, (samples, outputs, samples, outputs), strict=True)),
        attrs={
            "eps": spectrum.eps,
            "effective_dimension_low": spectrum.effective_dimension[0],
            "effective_dimension_high": spectrum.effective_dimension[1],
        },
    )
    data["gram"].attrs["long_name"] = "G = DDᵀ at the initial parameters, unweighted"
    data["sigma"].attrs["long_name"] = "singular values of D; NaN where the rounding of G hides them"
    chunk = max(1, min(num_samples, CHUNK_OUTPUTS // num_outputs))
    data["gram"].encoding["chunksizes"] = (chunk, num_outputs, chunk, num_outputs)
    return data


def _summary(n: int, num_params: int, num_samples: int, spectrum: Spectrum, plan: GramPlan) -> dict[str, Any]:
    return {
        "samples": num_samples,
        "n": n,
        "K": num_params,
        "sigma_max": spectrum.sigma[0],
        "num_hidden": spectrum.num_hidden,
        "eps": spectrum.eps,
        "effective_dimension": list(spectrum.effective_dimension),
        "rules": plan.rules,
    }
