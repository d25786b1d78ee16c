"""The contracts of pyproject.toml: which module may import which, and what is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS = {name: REPOSITORY / folder for name, folder in SETUPTOOLS["package-dir"].items()}


def test_import_contracts(tmp_path: Path):
    """The contracts of pyproject.toml, checked on a tree laid out with the installed names."""
    for name in sorted(FOLDERS):
        target = tmp_path.joinpath(*name.split("."))
        shutil.copytree(FOLDERS[name], target, ignore=shutil.ignore_patterns("bundled", "__pycache__", "node_modules"))
        (target / "__init__.py").touch()
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    script = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as c; c()"
    done = subprocess.run(
        [sys.executable, "-c", script, "--no-cache"], cwd=tmp_path, capture_output=True, text=True, timeout=600
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
