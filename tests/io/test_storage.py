"""`StoragePath`: one behaviour for local folders and buckets; failures become one sentence."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from steerling_jax.errors import UserError
from steerling_jax.io import storage
from steerling_jax.io.storage import StoragePath


class Bucket(MemoryFileSystem):
    """Objects in memory, under the addresses of a bucket."""

    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012


class Refusing(MemoryFileSystem):
    """A bucket that this user may not use."""

    def _refuse(self, *_arguments: Any, **_options: Any) -> Any:
        raise RuntimeError("403, permission denied\nand a long answer")

    cat_file = info = find = pipe_file = _refuse


def use(system: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "file_system", lambda address: (system, address.removeprefix("gs:/")))


@pytest.fixture(params=["folder", "address", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoragePath:
    if request.param == "bucket":
        use(Bucket(), monkeypatch)
        return StoragePath(f"gs://bucket/{tmp_path.name}")
    return StoragePath(tmp_path / "s" if request.param == "folder" else f"file://{tmp_path}/s")


def test_files_are_read_as_written(place: StoragePath):
    assert (place.names(), place.read("a"), place.has("a")) == (set(), None, False)
    place.remove()  # nothing is there yet
    place.write("a", b"0123456789")
    place.write("deep/er/b", b"")
    (place / "deep").write_json("c.json", {"ü": [1]})
    assert place.names() == {"a", "deep/er/b", "deep/c.json"}
    assert place.names("deep") == {"deep/er/b", "deep/c.json"}
    assert (place.read("a"), place.read("a", 2, 5), place.read("deep/er/b")) == (b"0123456789", b"234", b"")
    assert place.read("deep/c.json") == '{\n "ü": [\n  1\n ]\n}\n'.encode()
    assert (place.has("a"), place.has("deep"), place.has("b")) == (True, False, False)
    place.write("a", b"new")
    assert place.read_many(["a", "deep/er/b"]) == [b"new", b""]
    with pytest.raises(UserError, match=r"/b is missing: remove .* and begin again"):
        place.read_many(["a", "b"])
    assert pickle.loads(pickle.dumps(place)) == place
    place.remove()
    assert place.names() == set()


def test_only_the_folder_itself_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    use(Bucket(), monkeypatch)
    for address in (str(tmp_path), f"gs://bucket/{tmp_path.name}"):
        for name in ("store", "st*", "[st]tore"):
            StoragePath(f"{address}/{name}").write("x", b"")
        for name in ("st*", "[st]tore"):
            StoragePath(f"{address}/{name}").remove()
        assert StoragePath(address).names() == {"store/x"}


def test_what_a_bucket_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    use(Refusing(), monkeypatch)
    refused = StoragePath("gs://b/store")
    for ask in (
        lambda: refused.read("x"),
        lambda: refused.read_many(["x"]),
        lambda: refused.has("x"),
        lambda: refused.write("x", b""),
        refused.names,
        refused.remove,
    ):
        with pytest.raises(UserError, match=r"^Cannot \w+ gs://b/store(/x)?: 403, permission denied\. [^\n]*$"):
            ask()


def test_what_the_disk_refuses_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    for ask in (StoragePath(tmp_path / "file").names, lambda: StoragePath(tmp_path / "file").write("x", b"")):
        with pytest.raises(UserError, match=r"^Cannot .*file.*: (Not a directory|File exists)\. "):
            ask()
    with pytest.raises(UserError, match=r"^memory://x cannot be used"):
        StoragePath("memory://x")


def test_a_killed_writer_leaves_no_part_of_a_file(tmp_path: Path):
    code = f"""
from steerling_jax.io.storage import StoragePath
place, number = StoragePath({str(tmp_path / "s")!r}), 0
while True:
    number += 1
    place.write("x", bytes([number % 256]) * (1 << 22))
"""
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ)
    while not (tmp_path / "s" / "x").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.05)
    process.kill()
    process.wait()
    place = StoragePath(tmp_path / "s")
    content = place.read("x")
    assert content is not None
    assert (len(content), len(set(content))) == (1 << 22, 1)
    assert place.names() == {"x"}
