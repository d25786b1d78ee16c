"""The matrix of programs of docs/results/compile.md, and its tables."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from steerling_jax.cli.console import plain
from steerling_jax.errors import UserError
from steerling_jax.parallel.sharding import MeshShape, make_mesh
from steerling_jax.train.aot import matrix
from steerling_jax.train.aot.chips import CHIPS, GIB, device_count
from steerling_jax.train.aot.open_models import read_model_shape
from steerling_jax.train.aot.program import Program
from steerling_jax.train.aot.render import as_json
from steerling_jax.train.aot.report import Report, Shortage, make_report
from steerling_jax.train.aot.tables import tables
from steerling_jax.train.aot.target import Target
from steerling_jax.train.run.config_files import load_config
from steerling_jax.train.run.run_config import RunConfig
from tests.worlds.training_world import CONFIG


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def run(config_file: Path) -> RunConfig:
    return load_config(config_file)


@pytest.fixture(scope="module")
def report(run: RunConfig) -> Report:
    """The report of a training step, compiled for one CPU."""
    return make_report(Program("train", run), one_cpu())


def one_cpu() -> Target:
    return Target("v5e:1x1", CHIPS["v5e"], make_mesh(MeshShape(), jax.devices()[:1]))


def test_the_programs_of_the_matrix_are_valid() -> None:
    """The config, topology and mesh of each entry fit together."""
    listed = matrix.entries()
    names = [entry["name"] for entry in listed]
    assert len(set(names)) == len(names)
    for entry in listed:
        devices = device_count(entry["topology"], entry.get("slices", 1))
        if "model" in entry:
            model = read_model_shape(entry["model"])[1]
            assert entry["length"] <= model.context_length
            assert entry["mode"] != "train" or entry["rows"] % devices == 0
            continue
        config = load_config(entry["config"])
        if entry.get("mode", "train") == "train":
            assert entry.get("batch-size", config.data.batch_size) % np.prod(config.mesh.sizes(devices)[:2]) == 0
        assert entry.get("like", names[0]) in names
    assert matrix.command(listed[5])[-1] == "--without-concepts"


def test_tables_of_the_matrix(report: Report) -> None:
    """The tables of a program that fits and one that does not go between the marks of the document."""
    short = dataclasses.replace(
        report, memory=None, costs=None, estimate=None, shortage=Shortage(20.0 * GIB, 15.75 * GIB, 4.25 * GIB)
    )
    both = [
        {"name": name, "report": {**as_json(one), "date": "2026-01-01"}} for name, one in (("a", report), ("b", short))
    ]
    text = tables(plain(both))
    assert "no: 4.2 too much" in text
    written = matrix.with_tables(f"before {matrix.BEGIN} old {matrix.END} after", text, Path("compile.md"))
    assert written.startswith("before")
    assert written.endswith("after")
    assert "old" not in written
    with pytest.raises(UserError, match="put them around the place of the tables"):
        matrix.with_tables("nothing", text, Path("compile.md"))
