"""Outputs that are not regular files: links are followed, pipes and devices written through, others refused."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from steerling_jax.errors import UserError
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.json_files import write_json
from steerling_jax.io.trace_file import read_trace


def write(target: Path | str, text: str, fails: bool = False) -> None:
    with atomic_path(target) as path:
        path.write_text(text)
        if fails:
            raise RuntimeError


class Reader(threading.Thread):
    """Reads a FIFO to its end in the background."""

    def __init__(self, path: Path):
        super().__init__(daemon=True)
        self.path, self.content = path, b""
        self.start()

    def run(self) -> None:
        self.content = self.path.read_bytes()

    def result(self) -> bytes:
        self.join(600)
        assert not self.is_alive(), "the FIFO's reader is still waiting"
        return self.content


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def null_device(path: Path) -> Path:
    """A copy of /dev/null that a faulty program may destroy."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes device nodes")
    return path


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path, exists: bool):
    (tmp_path / "real").mkdir()
    target, link, second = tmp_path / "real" / "out.txt", tmp_path / "link", tmp_path / "second"
    link.symlink_to("real/out.txt")
    second.symlink_to(link)
    if exists:
        target.write_text("old")
    inode = target.stat().st_ino if exists else None
    write(second, "new")
    assert second.is_symlink()
    assert link.is_symlink()
    assert not target.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_ino != inode  # replaced, not overwritten
    with pytest.raises(RuntimeError):
        write(second, "incomplete", fails=True)
    assert target.read_text() == "new"
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["link", "out.txt", "real", "second"]


def test_a_link_to_a_folder(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").touch()
    (tmp_path / "link").symlink_to("real")
    with atomic_path(tmp_path / "link", folder=True) as path:
        (path / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert [entry.name for entry in (tmp_path / "real").iterdir()] == ["new"]


def test_a_fifo_is_written_through(tmp_path: Path):
    pipe = fifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    content = "é" * 500_000  # more than a pipe's buffer
    for target in (pipe, tmp_path / "link"):
        reader = Reader(pipe)
        write(target, content)
        assert reader.result().decode() == content
        assert stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(RuntimeError):  # and the FIFO is not opened, which would wait for a reader
        write(pipe, "incomplete", fails=True)


def test_a_fifo_whose_reader_exits(tmp_path: Path):
    pipe = fifo(tmp_path / "pipe")
    with subprocess.Popen(["head", "-c", "5", pipe], stdout=subprocess.PIPE) as head:
        with pytest.raises(UserError, match=r"Cannot write .*pipe: Broken pipe"):
            write(pipe, "x" * 1_000_000)
        assert head.communicate()[0] == b"xxxxx"


def test_a_device_stays_a_device(tmp_path: Path):
    device = null_device(tmp_path / "null")
    write(device, "text")
    write_json(device, [1])
    assert stat.S_ISCHR(device.stat().st_mode)
    write("/dev/null", "text")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_full_device():
    with pytest.raises(UserError, match="Cannot write /dev/full: No space left on device"):
        write("/dev/full", "text")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("kind", ["file", "pipe", "socket"])
def test_standard_output(tmp_path: Path, kind: str, name: str, child_environment: dict[str, str]):
    """In the order of the program, whatever standard output is, and without truncating its file."""
    code = (
        "import sys; from steerling_jax.io.atomic import atomic_path\n"
        "print('before')\n"
        "with atomic_path(sys.argv[1]) as path: path.write_text('content\\n')\n"
        "print('after')"
    )
    command = [sys.executable, "-c", code, name]
    environment = {key: value for key, value in child_environment.items() if key != "PYTHONUNBUFFERED"}
    expected = b"first\nbefore\ncontent\nafter\n"
    if kind == "pipe":
        out = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
        assert b"first\n" + out == expected
    elif kind == "socket":
        ours, theirs = socket.socketpair()
        with ours, theirs:
            subprocess.run(command, env=environment, stdout=theirs.fileno(), check=True)
            assert b"first\n" + ours.recv(1000) == expected
    else:
        path = tmp_path / "out"
        with path.open("wb") as file:
            file.write(b"first\n")
            file.flush()
            subprocess.run(command, env=environment, stdout=file, check=True)
        assert path.read_bytes() == expected
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_closed_standard_output(child_environment: dict[str, str]):
    code = (
        "from steerling_jax.io.atomic import atomic_path\n"
        "with atomic_path('/dev/stdout') as path: path.write_text('content')"
    )
    command = ["bash", "-c", 'exec "$0" -c "$1" >&-', sys.executable, code]
    done = subprocess.run(command, env=child_environment, stderr=subprocess.PIPE, text=True)
    assert done.stderr.splitlines()[-1].endswith(
        "UserError: Cannot write /dev/stdout: Bad file descriptor. Choose another location or free some space."
    )


def test_what_is_refused(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    for name, words in [
        ("folder", "it is a folder"),
        ("socket", "it is a socket"),
        ("loop", "Too many levels of symbolic links"),
        ("file/below", "Not a directory"),
    ]:
        with pytest.raises(UserError, match=f"Cannot write .*{name}: {words}"):
            write(tmp_path / name, "text")
    with pytest.raises(UserError, match="exists and is not a folder"), atomic_path(tmp_path / "file", folder=True):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "loop", "socket"]
    try:
        os.mknod(tmp_path / "disk", 0o600 | stat.S_IFBLK, os.makedev(7, 250))
    except PermissionError:
        return
    with pytest.raises(UserError, match="it is a block device"):
        write(tmp_path / "disk", "text")


# Commands ----------------------------------------------------------------------------------------------------------


def command(model: Path, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "steerling_jax.cli.main", *map(str, arguments), "--model", str(model)]


def test_a_batch_into_a_fifo_and_standard_output(text_model: Path, tmp_path: Path, child_environment: dict[str, str]):
    """Results arrive as they are finished; a pipe has no earlier results, so each run does every request."""
    requests = [{"id": i, "prompt": "The quick", "seed": i, "max_tokens": 8} for i in range(3)]
    source, pipe = tmp_path / "in.jsonl", fifo(tmp_path / "pipe")
    source.write_text("".join(json.dumps(request) + "\n" for request in [*requests, {"id": 9}]))
    options = ("generate", "--input", source, "--rows", "1", "--output")
    reader = Reader(pipe)
    done = subprocess.run(command(text_model, *options, pipe), env=child_environment, capture_output=True, timeout=600)
    assert done.returncode == 1, done.stderr
    lines = sorted(reader.result().splitlines())
    assert [json.loads(line)["id"] for line in lines] == [0, 1, 2, 9]
    printed = subprocess.run(
        command(text_model, *options, "/dev/stdout"), env=child_environment, capture_output=True, timeout=600
    )
    assert sorted(printed.stdout.splitlines()) == lines
    assert b"3 texts written to /dev/stdout; 0 were there already; 1 errors" in printed.stderr.replace(b"\n", b" ")


def test_outputs_of_commands(text_model: Path, tmp_path: Path, child_environment: dict[str, str]):
    device, pipe = null_device(tmp_path / "null"), fifo(tmp_path / "page.html")
    (tmp_path / "trace.json").write_text("old")
    (tmp_path / "link").symlink_to("trace.json")
    reader = Reader(pipe)
    outputs = ("--trace", tmp_path / "link", "--html", pipe, "--json", "/dev/stdout", "--graph", device)
    arguments = ("trace", "The quick", "--max-new-tokens", "16", "--greedy", "--no-inputs", *outputs)
    done = subprocess.run(command(text_model, *arguments), env=child_environment, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "link").is_symlink()
    assert read_trace(tmp_path / "trace.json").prompt_text == "The quick"
    assert b"</html>" in reader.result()
    assert stat.S_ISCHR(device.stat().st_mode)
    assert json.loads(done.stdout.splitlines()[0])
