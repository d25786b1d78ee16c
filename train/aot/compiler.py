"""The TPU compiler: where it is, its version, and its installation beside the virtual environment.

It is libtpu, a package that JAX would also load to run programs: with it in the environment itself, every start of JAX
looks for a TPU and prints warnings. In a folder of its own, only `steerling compile` uses it.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import distributions, requires
from pathlib import Path

from steerling_jax.errors import UserError, error_summary, require


def compiler_folder() -> Path:
    """The folder for the compiler, beside the packages of this Python."""
    return Path(sys.prefix) / "tpu"


def use_installed_compiler(folder: Path | None = None) -> None:
    """Points JAX to the compiler in `folder` (default: `compiler_folder()`), unless TPU_LIBRARY_PATH names another one
    or it is among this Python's packages. Call it before JAX is loaded."""
    library = (folder or compiler_folder()) / "libtpu" / "libtpu.so"
    if library.is_file() and compiler_version() is None:
        os.environ["TPU_LIBRARY_PATH"] = str(library)


def compiler_version() -> str | None:
    """The version of the TPU compiler that JAX would load; None where it is not installed."""
    library = os.environ.get("TPU_LIBRARY_PATH")
    path = [str(Path(library).parent.parent)] if library and Path(library).is_file() else sys.path
    return next((distribution.version for distribution in distributions(name="libtpu", path=path)), None)


def check_compiler() -> None:
    """Raises `UserError` where the TPU compiler is not installed."""
    require(
        compiler_version() is not None,
        "Compiling for TPUs needs their compiler, which is not installed: run `steerling compile --install-compiler`, "
        "or set TPU_LIBRARY_PATH to its libtpu.so.",
    )


def install_compiler(folder: Path | None = None) -> Path:
    """Installs the compiler that this JAX requires with pip, into `folder` (default: `compiler_folder()`).

    Raises `UserError` on other systems than Linux on x86-64, and where pip fails.
    """
    folder = folder or compiler_folder()
    system = f"{platform.system()} {platform.machine()}"
    require(system == "Linux x86_64", f"The TPU compiler exists for Linux on x86-64 alone, and this is {system}.")
    requirement = next(r.partition(";")[0] for r in requires("jax") or () if r.startswith("libtpu"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    # Without dependencies: it has none, and pip would only warn that the folder is not an environment.
    done = subprocess.run(
        [*pip, "--no-deps", "--upgrade", "--target", str(folder), requirement], capture_output=True, text=True
    )
    if done.returncode:
        reason = error_summary(done.stderr.strip().rpartition("ERROR: ")[2])
        raise UserError(f"pip cannot install {requirement} ({reason}); install it into {folder}, or try again.")
    return folder
