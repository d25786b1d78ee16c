"""Settings for every test, in the environment before JAX is imported, so that child processes have them too."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
# Most of the tests' time is XLA's: small models, many programs. Unoptimised ones compile in half the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden cases: what the published implementation returned."""
    return REPOSITORY / "tests" / "golden"


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs hold memory maps, of which Linux gives a process 65,530: a long run would end in a crash."""
    yield
    maps = Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > 30_000:
        import jax

        jax.clear_caches()
