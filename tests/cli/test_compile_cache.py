"""Commands store what they compile in the user's cache folder, safely, and leave JAX's own settings alone."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from steerling_jax.cli import main
from steerling_jax.cli.compile_cache import DIRECTORY, cache_folder, use_compile_cache

# A command that compiles one program, and prints how often it was found in the cache and how often not.
COMMAND = """
import sys, types
from steerling_jax.cli import main

def run(args):
    import jax
    counts = dict.fromkeys(("cache_hits", "cache_misses"), 0)
    def count(event, **_):
        name = event.rsplit("/", 1)[-1]
        if name in counts:
            counts[name] += 1
    jax.monitoring.register_event_listener(count)
    jax.jit(lambda x: x * 3 + 1)(2.0).block_until_ready()
    print(counts["cache_hits"], counts["cache_misses"])

module = types.SimpleNamespace(HELP="Stand in.", configure=lambda parser: None, run=run, **{extra})
main.load_command = lambda name, found: module
sys.exit(main.main(["stand-in"]))
"""


def run(environment: dict[str, str], extra: str = "{}") -> str:
    plain = {name: value for name, value in os.environ.items() if name != DIRECTORY}
    line = [sys.executable, "-c", COMMAND.replace("{extra}", extra)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, env=plain | environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_the_second_command_compiles_nothing(tmp_path: Path):
    environment = {"STEERLING_CACHE_DIR": str(tmp_path)}
    assert run(environment) == "0 1"
    assert run(environment) == "1 0"
    (entry,) = tmp_path.glob("compiled/*/*-cache")
    assert entry.parent.stat().st_mode & 0o777 == 0o700, "JAX runs what it finds there"
    entry.write_bytes(entry.read_bytes()[:50])  # as a full disk leaves it
    assert run(environment) == "0 1", "a damaged entry costs time, and says nothing"


def test_a_damaged_entry_in_the_users_own_folder_says_nothing(tmp_path: Path):
    setting = {DIRECTORY: str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    assert run(setting) == "0 1"
    (entry,) = tmp_path.glob("*-cache")
    entry.write_bytes(b"")  # as another process has it between creating the file and writing it
    assert run(setting) == "0 1"
    assert run(setting, "{'COMPILE_CACHE': False}") == "0 1"


def test_a_command_with_a_cache_of_its_own_and_a_home_that_cannot_be_written(tmp_path: Path):
    assert run({"STEERLING_CACHE_DIR": str(tmp_path)}, "{'COMPILE_CACHE': False}") == "0 0"
    (tmp_path / "file").touch()
    assert run({"STEERLING_CACHE_DIR": str(tmp_path / "file" / "inside")}) == "0 0"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """This process's environment, as if JAX was not imported, with a home in `tmp_path`."""
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    copy = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "STEERLING_", "XDG_"))}
    copy["HOME"] = str(tmp_path)
    monkeypatch.setattr(os, "environ", copy)
    return copy


def test_variables(environment: dict[str, str], tmp_path: Path):
    use_compile_cache()
    folder = Path(environment[DIRECTORY])
    assert folder.parent == cache_folder() / "compiled"
    assert folder.is_relative_to(tmp_path)
    use_compile_cache()
    assert environment[DIRECTORY] == str(folder)
    environment |= {DIRECTORY: "/elsewhere", "STEERLING_CACHE_DIR": str(tmp_path / "mine")}
    use_compile_cache()
    assert environment[DIRECTORY] == "/elsewhere"
    environment[DIRECTORY] = ""  # off
    use_compile_cache()
    assert environment[DIRECTORY] == ""
    assert cache_folder() == tmp_path / "mine"
    assert not (tmp_path / "mine").exists()


def test_a_process_that_uses_jax_already_decides_itself(environment, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "jax", types.ModuleType("jax"))
    use_compile_cache()
    assert DIRECTORY not in environment


@pytest.fixture
def folder(environment: dict[str, str], tmp_path: Path) -> Path:
    """The folder of this machine's programs, not used yet."""
    environment["STEERLING_CACHE_DIR"] = str(tmp_path / "mine")
    use_compile_cache()
    return Path(environment.pop(DIRECTORY))


def test_a_folder_that_others_can_write_is_not_used(environment: dict[str, str], folder: Path):
    folder.chmod(0o777)
    use_compile_cache()
    assert DIRECTORY not in environment
    folder.chmod(0o755)
    use_compile_cache()
    assert environment[DIRECTORY] == str(folder)


def test_machines_with_other_processors_do_not_share_programs(
    environment: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(platform, "machine", lambda: "another")
    use_compile_cache()
    other = Path(environment[DIRECTORY])
    assert other != folder
    assert other.parent == folder.parent


def test_programs_that_a_kill_left_empty_go(folder: Path):
    for name, content, age in (("old", b"", 1000), ("young", b"", 0), ("whole", b"program", 1000)):
        (folder / name).write_bytes(content)
        written = time.time() - age
        os.utime(folder / name, (written, written))
    use_compile_cache()
    assert sorted(path.name for path in folder.iterdir()) == ["whole", "young"]


def test_the_oldest_programs_go_when_the_cache_is_full(folder: Path):
    for number in range(4):
        with (folder / str(number)).open("wb") as file:
            file.truncate(300 << 20)  # sparse: takes no room on the disk
        os.utime(folder / str(number), (1000 + number, 1000 + number))
    use_compile_cache()
    assert sorted(path.name for path in folder.iterdir()) == ["3"]


def test_only_commands_with_a_reason_do_without():
    points = main.commands()
    without = {name for name in points if not getattr(main.load_command(name, points), "COMPILE_CACHE", True)}
    assert without == {"train", "attach", "compile"}
