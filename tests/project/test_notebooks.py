"""The notebooks: valid, without outputs, and every cell of them runs on a CPU, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.worlds.paths import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "tpu_scripts" / "notebooks").glob("*.ipynb"))
# In place of the cell with the tag "parameters".
PARAMETERS = {
    "explore": "TOKENS = 8\nEXPLAINED = 1",
    "train": 'STEPS = 2\nFOLDER = "runs/tiny"\nEXPLAINED = 1\nINDEXED = "heldout"',
}
# What a notebook server has and the tests' environment lacks: `HTML`, the last value of a cell, is only made.
IPYTHON = "class HTML:\n    def __init__(self, data):\n        assert '<iframe' in data\n"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(path: Path) -> list[tuple[str, list[str]]]:
    """Source and tags of each."""
    cells = [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    return [("".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in cells]


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["explore", "train"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_format_is_4_5_and_nothing_was_left_in_it(path: Path):
    book = read(path)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert set(book) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    assert book["metadata"]["accelerator"] == "TPU"
    names = [cell["id"] for cell in book["cells"]]
    assert len(set(names)) == len(names)
    for cell in book["cells"]:
        code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | code
        assert cell["cell_type"] in ("code", "markdown")
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if code:
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_this_checkout_or_the_repository(path: Path, tmp_path: Path):
    """With a pip that only says what it is asked for."""
    source, tags = code_cells(path)[0]
    assert tags == ["install"]
    say = "import subprocess; subprocess.run = lambda words, check: print(words[-1])\n"
    done = subprocess.run([sys.executable, "-c", say + source], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "set REPOSITORY, above" in done.stderr
    source = source.replace('REPOSITORY = ""', 'REPOSITORY = "https://github.com/someone/steerling-jax"')
    for folder, expected in ((path.parent, str(REPOSITORY)), (tmp_path, "steerling-jax @ git+https://github.com/")):
        done = subprocess.run([sys.executable, "-c", say + source], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(expected)


def test_a_tpu_that_is_not_there_is_no_reason_to_stop():
    source, _ = code_cells(NOTEBOOKS[0])[1]
    environment = os.environ | {"JAX_PLATFORMS": "tpu"}
    done = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("1 × cpu")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path: Path, tmp_path: Path, child_environment: dict[str, str]):
    (tmp_path / "IPython").mkdir()
    (tmp_path / "IPython" / "display.py").write_text(IPYTHON)
    cells = [
        PARAMETERS[path.stem] if "parameters" in tags else source
        for source, tags in code_cells(path)
        if "install" not in tags
    ]
    program = tmp_path / "cells.py"
    program.write_text("\n".join(cells))
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, env=child_environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert "cpu" in told[0]
    if path.stem == "explore":
        assert "<!doctype html>" in (tmp_path / "runs/page.html").read_text().lower()
    else:
        assert (tmp_path / "runs/tiny/export/model.safetensors").is_file()
        assert (tmp_path / "runs/tiny/index").is_dir()
