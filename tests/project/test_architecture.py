"""The rules of the house, read from the source: who may import whom, and what the core never does."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS = {name: REPOSITORY / folder for name, folder in SETUPTOOLS["package-dir"].items()}
CORE = FOLDERS["steerling_jax"]

# The core computes. What reads or writes anything stands in io/ and cli/.
SHELL = {"io", "cli", "bundled"}
MODULES_NOT_IN_CORE = {
    "datetime", "glob", "grain", "huggingface_hub", "io", "logging", "orbax", "os", "random", "requests", "rich",
    "safetensors", "sentencepiece", "shutil", "socket", "subprocess", "sys", "tempfile", "tensorstore", "tiktoken",
    "time", "urllib",
}  # fmt: skip
CALLS_NOT_IN_CORE = {"open", "print", "input", "breakpoint"}
METHODS_NOT_IN_CORE = {
    "breakpoint", "fromfile", "loadtxt", "memmap", "mkdir", "open", "print", "read_bytes", "read_text", "rename",
    "savez", "savez_compressed", "tofile", "unlink", "write_bytes", "write_text",
}  # fmt: skip


def pure_files() -> list[Path]:
    return sorted(path for path in CORE.rglob("*.py") if path.relative_to(CORE).parts[0] not in SHELL)


def violations(tree: ast.AST) -> Iterator[str]:
    """What a file of the core does that it must not, with line numbers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and node.level:
                continue
            for name in names:
                if name.split(".")[0] in MODULES_NOT_IN_CORE:
                    yield f"line {node.lineno}: imports {name}"
                if name == "numpy.random":
                    yield f"line {node.lineno}: imports {name}; randomness comes in as keys"
        elif isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in CALLS_NOT_IN_CORE:
                yield f"line {node.lineno}: calls {function.id}()"
            if isinstance(function, ast.Attribute) and function.attr in METHODS_NOT_IN_CORE:
                yield f"line {node.lineno}: calls .{function.attr}()"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in {"np.random", "numpy.random"}:
            yield f"line {node.lineno}: uses numpy.random; randomness comes in as keys"


@pytest.mark.parametrize("path", pure_files(), ids=lambda path: str(path.relative_to(CORE)))
def test_core_opens_no_file_reads_no_clock_prints_nothing(path: Path):
    assert list(violations(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from os import path",
        "open('x')",
        "print(1)",
        "import pathlib\npathlib.Path('x').read_text()",
        "import jax\njax.debug.print('x')",
        "np.random.default_rng()",
        "from numpy.random import default_rng",
    ],
)
def test_the_check_notices(source: str):
    assert list(violations(ast.parse(source)))


def test_import_contracts(tmp_path: Path):
    """The contracts of pyproject.toml, checked on a tree laid out with the installed names."""
    for name in sorted(FOLDERS):
        target = tmp_path.joinpath(*name.split("."))
        shutil.copytree(FOLDERS[name], target, ignore=shutil.ignore_patterns("bundled", "__pycache__"))
        (target / "__init__.py").touch()
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    script = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as c; c()"
    done = subprocess.run(
        [sys.executable, "-c", script, "--no-cache"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_package_is_listed():
    """setuptools installs what pyproject.toml lists and silently leaves out the rest."""
    found = set()
    for name, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            if "bundled" not in path.relative_to(folder).parts:
                found.add(".".join([name, *path.parent.relative_to(folder).parts]))
    assert found == set(SETUPTOOLS["packages"])


def test_wings_are_packages():
    assert all((folder / "__init__.py").is_file() for folder in FOLDERS.values())


def test_installed_version_is_this_one():
    assert distribution("steerling-jax").version == PROJECT["project"]["version"]
