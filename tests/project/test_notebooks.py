"""The notebooks: valid, installable by themselves, and every cell prints what is stored with it."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.worlds import notebooks
from tests.worlds.notebooks import (
    NOTEBOOKS,
    code_cells,
    differences,
    has_outputs,
    read,
    run_cells,
    store,
    tags_of,
    text_of,
)
from tests.worlds.paths import REPOSITORY
from tests.worlds.real_models import smollm2_file

# In place of the cell with the tag "parameters".
PARAMETERS = {
    "explore": "TOKENS = 8\nEXPLAINED = 1",
    "open_model": "TOKENS = 4\nLAYER = 14",
    "train": 'STEPS = 2\nFOLDER = "runs/tiny"\nEXPLAINED = 1\nINDEXED = "heldout"',
}


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["explore", "open_model", "train"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_format_is_4_5_with_outputs_of_every_cell_that_prints_or_of_none(path: Path):
    book = read(path)
    stored = has_outputs(book)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert set(book) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    assert book["metadata"]["accelerator"] == "TPU"
    names = [cell["id"] for cell in book["cells"]]
    assert len(set(names)) == len(names)
    counts = []
    for cell in book["cells"]:
        code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | code
        assert cell["cell_type"] in ("code", "markdown")
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if code and "install" not in tags_of(cell):
            counts.append(cell["execution_count"])
            assert all(one["output_type"] in ("stream", "execute_result") for one in cell["outputs"])
            if stored and any(line.startswith(("print(", "show_")) for line in cell["source"]):
                assert text_of(cell["outputs"]), cell["id"]
    assert counts == (list(range(1, len(counts) + 1)) if stored else [None] * len(counts))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_badge_opens_this_notebook_of_the_repository_that_it_installs(path: Path):
    badge, install = ("".join(cell["source"]) for cell in read(path)["cells"][:2])
    (address,) = notebooks.ADDRESS.findall(install)
    opened = address.replace("https://github.com", "https://colab.research.google.com/github")
    assert f"({opened}/blob/main/tpu_scripts/notebooks/{path.name})" in badge.splitlines()[0]


def test_one_command_sets_the_address_everywhere(tmp_path: Path):
    for path in NOTEBOOKS:
        copied = tmp_path / path.name
        copied.write_bytes(path.read_bytes())
        notebooks.set_repository(copied, "https://github.com/someone/a-fork")
        badge, install = ("".join(cell["source"]) for cell in read(copied)["cells"][:2])
        assert f"colab.research.google.com/github/someone/a-fork/blob/main/tpu_scripts/notebooks/{path.name}" in badge
        assert 'REPOSITORY = "https://github.com/someone/a-fork"' in install
        assert read(copied)["cells"][2:] == read(path)["cells"][2:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_this_checkout_or_the_repository(path: Path, tmp_path: Path):
    """With a pip that only says what it is asked for."""
    cell = code_cells(read(path))[0]
    assert tags_of(cell) == ["install"]
    source = notebooks.ADDRESS.sub("https://github.com/someone/steerling-jax", "".join(cell["source"]))
    say = "import subprocess; subprocess.run = lambda words, check: print(words[-1])\n"
    for folder, expected in ((path.parent, str(REPOSITORY)), (tmp_path, "steerling-jax @ git+https://github.com/")):
        done = subprocess.run([sys.executable, "-c", say + source], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(expected)


def test_without_an_address_the_first_cell_says_what_to_do(tmp_path: Path):
    for path in NOTEBOOKS:
        source = "".join(code_cells(read(path))[0]["source"])
        (address,) = notebooks.ADDRESS.findall(source)
        source = source.replace(address, "https://github.com/NAME/steerling-jax")
        done = subprocess.run([sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1
        assert "set REPOSITORY, above" in done.stderr


def test_a_tpu_that_is_not_there_is_no_reason_to_stop():
    source = "".join(code_cells(read(NOTEBOOKS[0]))[1]["source"])
    environment = os.environ | {"JAX_PLATFORMS": "tpu"}
    done = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("1 × cpu")


def test_stored_outputs_are_compared_with_what_cells_print(tmp_path: Path):
    """A notebook of three cells, run and stored; then one output of it is changed."""

    def cell(name: str, source: str, *tags: str) -> dict:
        metadata = {"tags": list(tags)} if tags else {}
        fields = {"cell_type": "code", "execution_count": None, "id": name, "metadata": metadata, "outputs": []}
        return fields | {"source": source.splitlines(keepends=True)}

    page = "from IPython.display import HTML\nHTML('<b>page</b>')"
    book = {"cells": [cell("a", "x = 2.5\nprint('x is', x)\nx + 1"), cell("b", page), cell("c", "print(x)", "varies")]}
    found = run_cells(book, tmp_path, dict(os.environ))
    assert [text_of(found[name]) for name in "abc"] == ["x is 2.5\n3.5", "<IPython.core.display.HTML object>", "2.5"]
    assert found["b"][0]["data"]["text/html"] == ["<b>page</b>"]
    assert differences(book, found)
    store(book, found)
    assert differences(json.loads(json.dumps(book)), found) == []
    for name, text, wrong in (("a", "x is 2.9\n", True), ("c", "another", False), ("c", "", True)):
        changed = copy.deepcopy(book)
        next(one for one in changed["cells"] if one["id"] == name)["outputs"][0]["text"] = [text]
        assert bool(differences(changed, found)) == wrong, name


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_and_prints_what_is_stored(path: Path, tmp_path: Path, child_environment: dict[str, str]):
    """`make notebooks` stores what cells print. A notebook of which every output varies runs with less to do."""
    if path.stem == "open_model":
        smollm2_file()
    book = read(path)
    varies = all("varies" in tags_of(cell) for cell in code_cells(book) if cell["outputs"])
    parameters = PARAMETERS[path.stem] if varies else None
    found = run_cells(book, tmp_path, child_environment, parameters)
    assert not has_outputs(book) or differences(book, found) == []
    if path.stem == "explore":
        assert "<!doctype html>" in (tmp_path / "runs/page.html").read_text().lower()
    elif path.stem == "train":
        assert (tmp_path / "runs/tiny/export/model.safetensors").is_file()
        assert (tmp_path / "runs/tiny/index").is_dir()
