"""The documentation's Python examples run as they stand, page by page, in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.worlds.paths import REPOSITORY


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_examples_run(page: str, tmp_path: Path) -> None:
    examples = re.findall(r"^```python\n(.+?)^```", (REPOSITORY / page).read_text(encoding="utf-8"), re.DOTALL | re.M)
    assert examples
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", "\n".join(examples)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{page}: {done.stderr[-3000:]}"
