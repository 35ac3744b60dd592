"""The one table of tolerances. A test that needs another says why beside it; a condition number multiplies these."""

from typing import Any

import numpy as np

# kind: (float64, float32, reason). All are relative to the largest quantity compared, unless the reason says otherwise.
TABLE: dict[str, tuple[float, float, str]] = {
    "rounding": (1e-14, 1e-5, "tens of operations on numbers of order one: about 50 machine epsilons"),
    "sums": (1e-12, 1e-4, "products and sums of hundreds of terms, or results of LAPACK at condition one"),
    "spectrum": (1e-13, 1e-5, "singular values, absolute in units of the largest: LAPACK is backward stable"),
    "gram": (1e-7, 1e-3, "what was seen through a Gram matrix: the square root of machine epsilon, times 5"),
    "finite_difference": (
        1e-7,
        1e-2,
        "central differences lose a third of the digits and more",
    ),
    "paths": (1e-11, 1e-4, "two runs with the same steps that differ in the rounding of each step"),
    "default_run": (
        1e-6,
        1e-3,
        "errors of some tens of steps at the default rtol 1e-7 (float32: 1e-4)",
    ),
    "tight_run": (1e-8, 1e-3, "errors of some hundreds of steps at rtol 1e-10"),
}


def tol(dtype: Any, kind: str) -> float:
    """The tolerance of a kind of comparison in a precision."""
    double, single, _ = TABLE[kind]
    return {"float64": double, "float32": single}[np.dtype(dtype).name]
