"""Training with several processes over loopback and on other meshes has the losses of one process on one device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from steerling_jax.errors import UserError
from steerling_jax.io.weights.published_writer import write_published
from steerling_jax.models.steerling.model import init_params
from steerling_jax.parallel.sharding import MeshShape
from steerling_jax.train.run.config_files import load_config
from tests.worlds.ports import lasting_port
from tests.worlds.serving_world import PATIENCE
from tests.worlds.signalled_command import signalled_command
from tests.worlds.training_world import CONFIG, STEPS, make_corpus

SHORT = 12
Processes = list[subprocess.Popen]


class World:
    """A corpus, a model to start from, and runs of a short config on different meshes."""

    def __init__(self, root: Path):
        self.root, self.corpus = root, make_corpus(root / "corpus")
        model = load_config(self.config("data=1")).model
        write_published(root / "model", model, jax.jit(partial(init_params, model))(jax.random.key(1)))

    def config(self, mesh: str, more: str = "") -> Path:
        text = CONFIG.replace("def config", "from steerling_jax.parallel.sharding import MeshShape\n\ndef config")
        settings = f"mesh=MeshShape({mesh}), steps={SHORT}, start_from={str(self.root / 'model')!r}, {more}"
        text = text.replace(f"steps={STEPS},", settings)
        text = text.replace("batch_size=4", "batch_size=12")
        path = self.root / f"{abs(hash(text))}.py"
        path.write_text(text)
        return path

    def start(
        self,
        out: str,
        mesh: str,
        *,
        processes: int = 1,
        devices: int = 1,
        more: str = "",
        words: Mapping[int, list[str]] | None = None,
    ) -> Processes:
        """more: fields of the config. words: what starts `steerling` in the processes with these numbers."""
        line = ["train", "--config", self.config(mesh, more), "--out", self.root / out, "--corpus", self.corpus]
        address = f"127.0.0.1:{lasting_port()}"
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
        started = []
        for number in range(processes):
            which = ["--coordinator", address, "--process-count", processes, "--process-index", number]
            program = (words or {}).get(number, [sys.executable, "-m", "steerling_jax.cli.main"])
            command = [str(word) for word in [*program, *line, *(which if processes > 1 else [])]]
            started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        return started

    def lines(self, out: str, kind: str = "step") -> list[dict]:
        lines = [json.loads(line) for line in (self.root / out / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if line["kind"] == kind]


def finish(processes: Processes, code: int) -> list[str]:
    try:
        errors = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, errors, strict=True):
        assert process.returncode == code, text[-3000:]
    return errors


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def alone(world: World) -> list[dict]:
    """The metrics of each step, from one process on one device."""
    finish(world.start("alone", "data=1, fsdp=1, tensor=1"), 0)
    return world.lines("alone")


def assert_same_losses(actual: list[dict], expected: list[dict]) -> None:
    assert [line["step"] for line in actual] == list(range(1, SHORT + 1))
    for name in ("loss", "diffusion", "presence", "residual", "independence", "gradient_norm"):
        ours, theirs = ([line[name] for line in lines] for lines in (actual, expected))
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, err_msg=f"{name}: is each row of a batch read once?")


@pytest.mark.slow
def test_two_processes_stopped_and_continued_by_three(world: World, alone: list[dict]):
    """The losses are those of one process. Two processes with two devices each start from given weights and save by the
    clock, which only agrees if they agree when; SIGTERM to the second of them: both save and leave. Then a bit flips in
    what the second one wrote, and three processes on another mesh go on from the checkpoint before."""
    out = world.root / "moved"
    more = "checkpoint_minutes=1e-9, keep=3,"
    # The second process gets the signal with the digests of its second checkpoint; a file is opened, then renamed.
    words = {1: signalled_command(signal.SIGTERM, 3, r"/digests-1-of-2\.json$")}
    started = world.start("moved", "data=2, fsdp=1, tensor=2", processes=2, devices=2, more=more, words=words)
    errors = finish(started, 128 + signal.SIGTERM)
    assert "Stopped and saved at step" in errors[0]
    done = len(world.lines("moved"))
    assert 2 <= done < SHORT, "the run was over before the signal came, or saved nothing before"
    before, newest = sorted(int(path.name) for path in (out / "checkpoints").iterdir())[-2:]
    assert newest == done
    assert {path.name for path in (out / f"checkpoints/{newest}").glob("digests-*")} == {
        "digests-0-of-2.json",
        "digests-1-of-2.json",
    }
    flip_largest(out / f"checkpoints/{newest}/state/ocdbt.process_1")
    errors = finish(world.start("moved", "data=1, fsdp=3, tensor=1", processes=3), 0)
    assert f"The checkpoint of step {newest} cannot be read (process 1 cannot read it); skipping it." in errors[0]
    assert f"Resuming from step {before}." in errors[0]
    assert_same_losses(world.lines("moved"), alone)
    starts = [json.loads((world.root / name / "run.json").read_text())["start"] for name in ("alone", "moved")]
    assert starts[0] == starts[1], "the fingerprint of sharded weights is the same"
    assert [line["step"] for line in world.lines("moved", "start")] == [0, before]


def flip_largest(folder: Path) -> None:
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(flipped)


def test_a_mesh_that_does_not_divide_the_batch_is_refused(world: World):
    (errors,) = finish(world.start("refused", "data=8, fsdp=1, tensor=1", devices=8), 2)
    assert "must be a multiple of 8" in errors
    assert not (world.root / "refused").exists()


def test_all_processes_fail_where_the_first_one_does(world: World, alone: list[dict]):
    """Another config for the folder of a run: no process waits for one that has exited."""
    errors = finish(world.start("alone", "data=2, fsdp=1, tensor=1", processes=2, more="seed=3,"), 2)
    assert "contains a run with another config" in errors[0]
    assert "The first process failed" in errors[1]


GATHER = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from steerling_jax.parallel.sharding import MeshShape, make_mesh, to_first_host
from steerling_jax.train.run.processes import initialise_processes, is_first_process
initialise_processes(sys.argv[1], 2, int(sys.argv[2]))
mesh = make_mesh(MeshShape(fsdp=2))
expected = np.arange(6 * 4 * 2, dtype=np.float32).reshape(6, 4, 2)
for spec in (PartitionSpec("fsdp"), PartitionSpec(None, "fsdp"), PartitionSpec()):
    split = jax.make_array_from_callback(expected.shape, NamedSharding(mesh, spec), lambda part: expected[part])
    for piece in (1, 150, 10**6):
        actual = to_first_host({"a": split}, piece)["a"]
        assert (actual is None) == (not is_first_process())
        assert actual is None or np.array_equal(actual, expected)
"""


FAIL_ALONE = """
import sys
from steerling_jax.io.checkpoints.digests import gather_problem
from steerling_jax.train.run.processes import initialise_processes
initialise_processes(sys.argv[1], 2, int(sys.argv[2]))
gather_problem(None)
if sys.argv[2] == "0":
    sys.exit("The disk is full.")
gather_problem(None)
"""


def two_processes(code: str) -> Processes:
    """Two Python processes that get a free address and their number as arguments."""
    address = f"127.0.0.1:{lasting_port()}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    lines = [[sys.executable, "-c", code, address, str(number)] for number in range(2)]
    return [subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True) for line in lines]


def test_arrays_are_gathered_on_the_first_process_in_pieces():
    finish(two_processes(GATHER), 0)


@pytest.mark.slow
def test_a_process_that_fails_alone_ends_the_others():
    """The second one waits for it in a collective, which has no time limit of its own."""
    started = two_processes(FAIL_ALONE)
    try:
        errors = [process.communicate(timeout=PATIENCE)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert "The disk is full." in errors[0]
    assert all(process.returncode != 0 for process in started)


def test_mesh_sizes():
    assert MeshShape().sizes(8) == (1, 8, 1)
    assert MeshShape(data=-1, fsdp=2, tensor=2).sizes(8) == (2, 2, 2)
    for shape, devices, words in (
        (MeshShape(tensor=3), 8, "does not fit 8 devices"),
        (MeshShape(2, 2, 1), 8, "does not fit 8 devices"),
        (MeshShape(-1, -1, 1), 8, "sizes of at least 1, and −1 at most once"),
        (MeshShape(data=0), 8, "sizes of at least 1"),
    ):
        with pytest.raises(UserError, match=f"The mesh data=.*{words}"):
            shape.sizes(devices)
