"""Training by several real processes over loopback, and on other meshes: the same run as one process on one device."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from steerling_jax.errors import UserError
from steerling_jax.sharding import MeshShape

from .training_world import CONFIG, STEPS, make_corpus

SHORT = 12
Processes = list[subprocess.Popen]


class World:
    """A corpus, a compilation cache, and runs of a short config on meshes of all sorts."""

    def __init__(self, root: Path):
        self.root, self.corpus = root, make_corpus(root / "corpus")

    def config(self, mesh: str) -> Path:
        text = CONFIG.replace("def config", "from steerling_jax.sharding import MeshShape\n\ndef config")
        text = text.replace(f"steps={STEPS}", f"mesh=MeshShape({mesh}), steps={SHORT}")
        text = text.replace("batch_size=4", "batch_size=12")
        path = self.root / f"{abs(hash(text))}.py"
        path.write_text(text)
        return path

    def start(self, out: str, mesh: str, *, processes: int = 1, devices: int = 1) -> Processes:
        line = [sys.executable, "-m", "steerling_jax.cli.main", "train", "--config", self.config(mesh)]
        line += ["--out", self.root / out, "--corpus", self.corpus]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
        started = []
        for number in range(processes):
            which = ["--coordinator", address, "--process-count", processes, "--process-index", number]
            command = [str(word) for word in line + (which if processes > 1 else [])]
            started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        return started

    def run(self, out: str, mesh: str, **how) -> list[dict]:
        """What the run's metrics say of each step."""
        finish(self.start(out, mesh, **how), 0)
        return self.steps(out)

    def steps(self, out: str) -> list[dict]:
        lines = [json.loads(line) for line in (self.root / out / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if line["kind"] == "step"]


def finish(processes: Processes, code: int) -> list[str]:
    told = [process.communicate(timeout=300)[1] for process in processes]
    for process, text in zip(processes, told, strict=True):
        assert process.returncode == code, text[-3000:]
    return told


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def alone(world: World) -> list[dict]:
    return world.run("alone", "data=1, fsdp=1, tensor=1")


def assert_same_losses(found: list[dict], wanted: list[dict]) -> None:
    assert [line["step"] for line in found] == list(range(1, SHORT + 1))
    for name in ("loss", "diffusion", "presence", "residual", "independence", "gradient_norm"):
        ours, theirs = ([line[name] for line in lines] for lines in (found, wanted))
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, err_msg=f"{name}: is each row of a batch read once?")


@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [(2, 2, "data=2, fsdp=1, tensor=2"), (3, 1, "data=1, fsdp=3, tensor=1")],
    ids=["two", "three"],
)
def test_several_processes_train_as_one(world: World, alone: list[dict], processes: int, devices: int, mesh: str):
    found = world.run(f"{processes} processes", mesh, processes=processes, devices=devices)
    assert_same_losses(found, alone)


def test_stopped_together_and_continued_by_another_number_of_processes(world: World, alone: list[dict]):
    """SIGTERM to one of two: both save and leave; one process on another mesh goes on with the same batches."""
    started = world.start("moved", "data=2, fsdp=1, tensor=1", processes=2)
    first, second = started
    assert first.stderr is not None
    assert any(line.startswith("step 1/") for line in first.stderr)
    second.send_signal(signal.SIGTERM)
    told = finish(started, 128 + signal.SIGTERM)
    assert "Stopped and saved at step" in told[0]
    done = len(world.steps("moved"))
    assert 1 <= done < SHORT, "the run was over before the signal came"
    (told,) = finish(world.start("moved", "data=1, fsdp=2, tensor=2", devices=4), 0)
    assert f"Going on from step {done}." in told
    assert_same_losses(world.steps("moved"), alone)


def test_bad_meshes_are_told(world: World):
    for mesh, words in (("data=5, fsdp=1, tensor=1", "does not fit 1 devices"), ("data=0", "sizes of at least 1")):
        (told,) = finish(world.start("refused", mesh), 2)
        assert words in told
    (told,) = finish(world.start("refused", "data=8, fsdp=1, tensor=1", devices=8), 2)
    assert "must be a multiple of 8" in told
    assert not (world.root / "refused").exists()


def test_sizes():
    assert MeshShape().sizes(8) == (1, 8, 1)
    assert MeshShape(data=-1, fsdp=2, tensor=2).sizes(8) == (2, 2, 2)
    for shape, devices in ((MeshShape(tensor=3), 8), (MeshShape(-1, -1, 1), 8), (MeshShape(2, 2, 1), 8)):
        with pytest.raises(UserError, match="The mesh data="):
            shape.sizes(devices)
