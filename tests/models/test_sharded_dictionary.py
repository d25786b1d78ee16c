"""A strict model's training step, texts and features on a mesh of eight devices are those of one device."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.worlds.paths import REPOSITORY


@pytest.mark.slow
def test_a_mesh_computes_what_one_device_computes() -> None:
    """With the concepts' tables over fsdp and tensor: losses and moments to 1e-5 of their size, texts to the token."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-m", "tests.worlds.sharded_dictionary"]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["dead"] > 0.2  # the auxiliary loss is part of the step
    for name, difference in report["differences"].items():
        assert difference < 1e-5, f"{name} differs by {difference:.1e} of its size"
    assert report["same"]
    assert len({tuple(text) for text in report["texts"]}) == 4
