"""A strict model's training step and features on meshes of eight devices are those of one device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_meshes_compute_what_one_device_computes() -> None:
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    program = Path(__file__).parents[1] / "worlds" / "dictionary_on_meshes.py"
    command = [sys.executable, "-W", "error", str(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert len(report) == 4
    for case, (difference, name) in report.items():
        assert difference < 1e-5, f"{name} differs by {difference:.1e} of its size: {case}"
