"""`steerling train` in separate processes: killed, stopped, refused, on a full disk."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from tests.worlds.signalled_command import signal_at
from tests.worlds.training_world import BARE_CONFIG, CONFIG, EVERY, STEPS, World, make_corpus

# `assert_same_run` takes the arrays back as they were saved.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("training")
    (root / "small.py").write_text(BARE_CONFIG)
    made = World(root, root / "small.py", make_corpus(root / "corpus"), root / "finished")
    code, output = made.run(made.finished)
    assert code == 0, output
    return made


def step_lines(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("tokens_per_second", None)
        line.pop("model_flops_per_second", None)
    return [line for line in lines if line["kind"] == "step"]


def assert_same_run(out: Path, other: Path) -> None:
    """The same parameters and optimizer state, bit for bit, and the same metrics, each step once."""
    from orbax.checkpoint import v1 as ocp

    assert (out / "export/model.safetensors").read_bytes() == (other / "export/model.safetensors").read_bytes()
    last = f"checkpoints/{STEPS}"
    ours, theirs = (ocp.load(str(folder / last), checkpointable_name="state") for folder in (out, other))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)
    assert [line["step"] for line in step_lines(out)] == list(range(1, STEPS + 1))
    assert step_lines(out) == step_lines(other)


# Moments at which a run is killed: the number of a file among those that it opens or renames, and their pattern.
MOMENTS = {
    "before its config is read": (1, r"/small\.py$"),
    "before its first checkpoint": (1, r"/metrics\.jsonl$"),
    "while a checkpoint is written": (1, r"\.orbax-checkpoint-tmp"),
    "before a checkpoint has its name": (2, r"/checkpoints/\d+$"),
    "before a checkpoint has its digests": (3, r"/checkpoints/\d+/digests-0-of-1\.json$"),
    "before the export has its name": (1, r"/export$"),
}


@pytest.mark.slow
def test_a_run_that_is_killed_repeatedly_ends_as_one_that_is_not(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for moment, (number, pattern) in MOMENTS.items():
        code, output = world.run(out, before=signal_at(signal.SIGKILL, number, pattern))
        assert code == -signal.SIGKILL, f"not killed {moment}: {output}"
    code, output = world.run(out)
    assert code == 0, output
    assert_same_run(out, world.finished)
    assert not list((out / "checkpoints").glob("*tmp*"))
    # Every start ran the same program: it was compiled once, by the uninterrupted run.
    assert len(list((world.root / "compiled").glob("jit_train_step*-cache"))) == 1


@pytest.mark.slow
def test_a_signal_stops_and_saves(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (signal.SIGTERM, signal.SIGINT):
        code, output = world.run(out, before=signal_at(number, 1, r"/checkpoints/\d+$"))
        assert code == 128 + number, output
        assert "Stopped and saved at step" in output
        assert "Traceback" not in output
        saved = [int(path.name) for path in (out / "checkpoints").iterdir()]
        assert f"at step {max(saved)};" in output
    code, output = world.run(out)
    assert code == 0, output
    assert f"  1. state and clock, step {max(saved)}: {out.absolute() / 'checkpoints' / str(max(saved))}\n" in output
    assert re.search(r"Time, 3 starts(.*\n)+init .*\n(.*\n)+all ", output)
    assert_same_run(out, world.finished)


def test_a_finished_run_is_not_changed(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(world.finished, out)
    code, output = world.run(out)
    assert code == 0, output
    assert_same_run(out, world.finished)


def test_full_disk_while_saving(world: World, tmp_path: Path) -> None:
    """Then the run resumes, and TensorBoard's files have the values of metrics.jsonl from the restored step on."""
    out = world.unfinished(tmp_path / "out")
    limit = 12_000  # bytes a file: below a checkpoint's, above the metrics that the last steps append
    (out / "metrics.jsonl").write_text("")
    code, output = world.run(
        out, before=f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    )
    assert code == 2, output
    place = out.absolute() / "checkpoints"
    assert f"error: The checkpoint of step {STEPS} could not be saved in {place}: file too large;" in output
    assert "Traceback" not in output
    # No partial checkpoint is left, and the previous one is intact.
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [str(STEPS - EVERY)]
    assert not (out / "export").exists()
    code, output = world.run(out, "--tensorboard")
    assert code == 0, output
    assert f"Resuming from step {STEPS - EVERY}." in output
    assert (out / "export/model.safetensors").read_bytes() == (world.finished / "export/model.safetensors").read_bytes()
    check_tensorboard(out, first=STEPS - EVERY + 1)


def check_tensorboard(out: Path, first: int) -> None:
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    (path,) = (out / "tensorboard").iterdir()
    events = [event_pb2.Event.FromString(record) for record in records(path.read_bytes())]
    # TensorBoard discards what an earlier process may have written of these steps.
    assert [event.step for event in events if event.HasField("session_log")] == [first]
    written = {(value.tag, event.step): value.simple_value for event in events for value in event.summary.value}
    expected: dict[tuple[str, int], float] = {}
    for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()):
        kind, step = line.pop("kind"), line.pop("step")
        if step >= first:
            expected |= {(f"{kind}/{name}", step): value for name, value in line.items() if value is not None}
    assert {step for _, step in expected} == set(range(first, STEPS + 1))
    assert {("step/loss", STEPS), ("evaluation/nats_per_token", STEPS)} <= written.keys()
    assert written == pytest.approx(expected, rel=1e-6)


def records(file: bytes) -> Iterator[bytes]:
    """The records of an event file: length (8 bytes) and its checksum (4), the record, and its checksum (4)."""
    while file:
        size = int.from_bytes(file[:8], "little")
        yield file[12 : 12 + size]
        file = file[16 + size :]


def test_another_run_in_the_same_folder_is_refused(world: World, tmp_path: Path) -> None:
    from steerling_jax.io.checkpoints.training_folder import lock_folder

    with lock_folder(tmp_path), pytest.raises(UserError, match="Another process is training in"), lock_folder(tmp_path):
        pass


def test_a_disk_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steerling_jax.io import file_lock
    from steerling_jax.io.checkpoints import training_folder

    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(file_lock.fcntl, "flock", fail)
    with pytest.raises(UserError, match=r"cannot be locked \(No locks"), training_folder.lock_folder(tmp_path):
        pass


def test_a_corpus_in_a_bucket_is_refused(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Rather than preparing a corpus in a local folder called `gs:`."""
    (tmp_path / "small.py").write_text(CONFIG)
    line = ["train", "--config", str(tmp_path / "small.py"), "--corpus", "gs://b/corpus", "--out", str(tmp_path / "o")]
    assert main(line) == 2
    assert "The corpus gs://b/corpus is in a bucket" in capfd.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_export_is_complete(world: World) -> None:
    export = world.finished / "export"
    assert {path.name for path in export.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "concepts.json",
        "documents.json",
    }
    documents = json.loads((export / "documents.json").read_text())["documents"]
    assert len(documents) == 120
    assert set(documents[0]) == {"name", "source", "sha256", "split"}
    assert [concept["id"] for concept in json.loads((export / "concepts.json").read_text())] == list(range(8))
