"""Settings for every test, in the environment before JAX is imported, so that child processes have them too."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden cases: what the published implementation returned."""
    return REPOSITORY / "tests" / "golden"
