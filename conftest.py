"""Settings of every test and docstring example: float64, strict promotion, no silent rank promotion."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # see the Makefile: two threads on a busy machine are 10-25 times slower
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("SCIPY_ARRAY_API", "1")  # scikit-learn skips two of its checks of estimators without it

from jaxtyping import install_import_hook

# PEP 484: an int is accepted where a float is annotated, as pyright and every caller take it.
hook = install_import_hook("chordflow", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache(tmp_path_factory):
    """Many tests compile the same programs: share them within a run, never between runs."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    jax.config.update("jax_compilation_cache_dir", str(root / "jax_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
