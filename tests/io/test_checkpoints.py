"""Training checkpoints: what is restored, what is preserved, how damage (flipped bits, cut files) is handled."""

from __future__ import annotations

import errno
import gc
import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from steerling_jax.errors import UserError
from steerling_jax.io.checkpoints.digests import find_damage, write_digests
from steerling_jax.io.checkpoints.training import RestoredCheckpoint, TrainingCheckpoints
from steerling_jax.io.disk_errors import disk_error_reason


def save(folder: Path, *steps: int, keep: int = 3, keep_every: int | None = None) -> None:
    """Checkpoints whose values are their step."""
    with TrainingCheckpoints(folder, keep=keep, keep_every=keep_every) as checkpoints:
        for step in steps:
            checkpoints.save(step, {"w": jnp.full(4, float(step))}, {"starts": step, "seconds": {}})


def restore(folder: Path) -> RestoredCheckpoint:
    with TrainingCheckpoints(folder, keep=3) as checkpoints:
        found = checkpoints.restore({"w": jnp.zeros(4)})
    assert found is not None
    return found


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_state_and_clock_are_restored_together(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    found = restore(tmp_path)
    assert (found.step, found.clock, found.unreadable) == (2, {"starts": 2, "seconds": {}}, ())
    assert found.verified
    np.testing.assert_array_equal(found.state["w"], 2.0)


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    newest = tmp_path / "checkpoints/2"
    found = files(newest)
    assert {"data.json", "_METADATA", "manifest.ocdbt", "digests-0-of-1.json"} <= {path.name for path in found}
    arrays = [path for path in found if path.parent.name == "d"]
    assert arrays
    for path in [*arrays, newest / "clock/data.json", newest / "digests-0-of-1.json"]:
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        path.write_bytes(flipped)
        result = restore(tmp_path)
        ((step, reason),) = result.unreadable
        assert (result.step, step) == (1, 2), path
        assert path.name in reason or "digests-" in path.name
        path.write_bytes(whole)
    assert restore(tmp_path).step == 2
    # Reading all of them is what finds it, whichever file it is.
    for path in found:
        if not path.name.startswith("digests-"):
            path.write_bytes((whole := path.read_bytes())[:-1] + bytes([whole[-1] ^ 128]))
            damage = find_damage(newest)
            assert damage is not None
            assert damage.startswith(path.relative_to(newest).as_posix())
            path.write_bytes(whole)
    assert find_damage(newest) is None


def test_orbax_alone_does_not_notice_a_flipped_bit(tmp_path: Path) -> None:
    """The reason for the digests. If this fails with a later Orbax, they can be removed."""
    noise = np.random.default_rng(0).standard_normal((128, 128), np.float32)
    with TrainingCheckpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, {"w": jnp.asarray(noise)}, {})
    data = max(files(tmp_path / "checkpoints/1/state"), key=lambda path: path.stat().st_size)
    flipped = bytearray(data.read_bytes())
    flipped[len(flipped) // 2] ^= 64
    data.write_bytes(flipped)
    with TrainingCheckpoints(tmp_path, keep=1) as checkpoints:
        with pytest.raises(UserError, match="SHA-256 differs"):
            checkpoints.restore({"w": jnp.asarray(noise)})
        (tmp_path / "checkpoints/1/digests-0-of-1.json").unlink()
        found = checkpoints.restore({"w": jnp.asarray(noise)})
    assert found is not None
    assert np.any(np.asarray(found.state["w"]) != noise)


@pytest.mark.parametrize("part", ["state", "clock"])
def test_a_cut_checkpoint_is_passed_over(tmp_path: Path, part: str) -> None:
    save(tmp_path, 1, 2)
    for path in files(tmp_path / "checkpoints/2" / part):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with TrainingCheckpoints(tmp_path, keep=3) as checkpoints:
        found = checkpoints.restore({"w": jnp.zeros(4)})
        assert found is not None
        ((step, reason),) = found.unreadable
        assert (found.step, step) == (1, 2)
        assert "bytes instead of" in reason
        np.testing.assert_array_equal(found.state["w"], 1.0)
        checkpoints.save(2, {"w": jnp.full(4, 5.0)}, found.clock)  # replaces the unreadable one
        assert checkpoints.wait() == 2
        found = checkpoints.restore({"w": jnp.zeros(4)})
    assert found is not None
    np.testing.assert_array_equal(found.state["w"], 5.0)


@pytest.mark.filterwarnings("ignore:.*never awaited", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_cut_off_before_the_digests(tmp_path: Path) -> None:
    """Orbax had renamed the folder, so it is complete and is loaded, but only Orbax could find damage."""
    save(tmp_path, 1, 2)
    (tmp_path / "checkpoints/2/digests-0-of-1.json").unlink()
    found = restore(tmp_path)
    assert (found.step, found.verified) == (2, False)
    (tmp_path / "checkpoints/2/state/manifest.ocdbt").unlink()
    found = restore(tmp_path)
    assert (found.step, found.verified, [step for step, _ in found.unreadable]) == (1, True, [2])
    gc.collect()  # coroutines that Orbax leaves unfinished on a failure warn when they are collected


def test_an_undamaged_checkpoint_that_does_not_load_is_never_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For lack of memory, say: training would continue from an older one and overwrite it."""

    def fail(*_: object) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    save(tmp_path, 1, 2)
    with TrainingCheckpoints(tmp_path, keep=3) as checkpoints:
        monkeypatch.setattr(ocp.training.Checkpointer, "load_checkpointables", fail)
        with pytest.raises(UserError, match=r"checkpoints/2 is undamaged but could not be loaded \(RESOURCE_EXHAUSTED"):
            checkpoints.restore({"w": jnp.zeros(4)})
    monkeypatch.undo()
    assert restore(tmp_path).step == 2


def test_no_readable_checkpoint_is_an_error_not_a_new_start(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for path in files(tmp_path / "checkpoints"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="None of the checkpoints in"):
        restore(tmp_path)


def test_half_written_checkpoints_are_not_loaded(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    half = tmp_path / "checkpoints/2.orbax-checkpoint-tmp"
    (tmp_path / "checkpoints/2").rename(half)
    assert restore(tmp_path).step == 1
    assert not half.exists()


def test_which_checkpoints_are_preserved(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 5, 6, 7, keep=2, keep_every=3)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "6", "7"]


def test_several_processes_share_the_reading(tmp_path: Path) -> None:
    """The files written by process 1 of two are read by process 1 of two, and by process 0 of one."""
    for name in ("_METADATA", "ocdbt.process_0/d/a", "ocdbt.process_1/d/b", "array_metadatas/process_1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for process in range(2):
        write_digests(tmp_path, process, 2)
    listed = [json.loads((tmp_path / f"digests-{process}-of-2.json").read_text()) for process in range(2)]
    assert [sorted(names) for names in listed] == [
        ["_METADATA", "ocdbt.process_0/d/a"],
        ["array_metadatas/process_1", "ocdbt.process_1/d/b"],
    ]
    (tmp_path / "ocdbt.process_1/d/b").unlink()
    assert find_damage(tmp_path, 0, 2) is None
    assert find_damage(tmp_path, 1, 2) == find_damage(tmp_path) == "ocdbt.process_1/d/b is missing"


def test_a_full_disk_is_recognised_whatever_raised_the_error() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert disk_error_reason(full) == "no space left on device"
    assert disk_error_reason(
        ValueError("RESOURCE_EXHAUSTED: Error writing: write failed: No space left on device")
    ) == ("no space left on device")
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = full
    assert disk_error_reason(wrapped) == "no space left on device"
    assert disk_error_reason(ValueError("shapes differ")) is None


def test_digests_of_another_process_that_vanish_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes write their digests at the same time; one that failed here would leave the others waiting for it."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state/data").write_text("x")
    other = tmp_path / ".digests-1-of-2.json.abc"
    other.mkdir()
    scan = os.scandir

    def scan_late(path: str | Path | int) -> Any:
        if str(path) == str(other):
            other.rmdir()
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_late)
    write_digests(tmp_path, 0, 2)
    assert set(json.loads((tmp_path / "digests-0-of-2.json").read_text())) == {"state/data"}
