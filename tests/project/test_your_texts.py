"""The page "Your folder to your interpretable model", in small: its commands, one after the other."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from steerling_jax.configs.folder import config_for
from tests.worlds.paths import REPOSITORY
from tests.worlds.training_world import make_corpus

PAGE = (REPOSITORY / "docs/guide/your-texts.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)  # fences in pairs
    return [block for name, block in found if name == language]


def run(folder: Path, line: str, *more: str) -> str:
    """Runs a command line of the page with `more` options; returns what it prints."""
    name, *words = shlex.split(line, comments=True)
    program = ["-m", "steerling_jax.cli.main"] if name == "steerling" else []
    done = subprocess.run(
        [sys.executable, *program, *words, *more],
        cwd=folder,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.slow
def test_your_folder_to_your_model(tmp_path: Path):
    split, config = blocks("python")
    (concepts,) = blocks("toml")
    (tmp_path / "split.py").write_text(split)
    (tmp_path / "concepts.toml").write_text(concepts)
    run(tmp_path, f"python {shlex.quote(str(tmp_path / 'split.py'))} {shlex.quote(str(REPOSITORY / 'docs'))}")
    prepare, train, trace, generate, evaluate = [
        line for block in blocks("") for line in block.splitlines() if line.startswith("steerling")
    ]
    run(tmp_path, prepare)
    run(tmp_path, train, "--steps", "3", "--json")
    run(tmp_path, trace, "--max-new-tokens", "8", "--json", "trace.json")
    named = set(json.loads((tmp_path / "trace.json").read_text())["concepts"]["known"].values())
    assert named
    assert named <= set(re.findall(r'^name = "(.*)"', concepts, re.MULTILINE))
    assert "<html" in (tmp_path / "page.html").read_text()
    assert json.loads(run(tmp_path, generate, "--json"))["steering"] == ["amplify Steering at 1"]
    assert "bits per byte" in run(tmp_path, evaluate)
    (tmp_path / "my_config.py").write_text(config)
    run(tmp_path, "steerling train --config my_config.py --out runs/again --steps 1 --json")


def test_the_page_says_for_how_many_steps_the_config_trains(tmp_path: Path):
    run = config_for(make_corpus(tmp_path / "corpus"))
    assert f"{run.steps:,} steps" in PAGE
