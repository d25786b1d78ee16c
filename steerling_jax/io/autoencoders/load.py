"""`load_autoencoder`: finds the files of an autoencoder, recognises their format and reads them."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.errors import UserError, require
from steerling_jax.io.autoencoders.readers import FORMATS, Request

_DEPTH = 4  # folders below the given one in which files are looked for
_SHOWN = 4


def load_autoencoder(
    path: str | Path, *, format: str | None = None, k: int | None = None, layer: int | None = None
) -> Autoencoder:
    """Loads a sparse autoencoder in any of the supported formats.

    Args:
        path: its file of arrays, its folder, or a folder with those of several layers.
        format: "qwen-scope", "saelens", "sparsify", "dictionary-learning", "gemma-scope" or "gemma-scope-2"; None
            recognises it by the names of the files.
        k: latents kept of each row, where no file says it (Qwen-Scope) or instead of what it says.
        layer: the block that it reads, counted from 0: chooses among several files, and must agree with what they say.

    Raises:
        UserError: no file or several are found, a file is damaged, has code in it or is of a kind that is not
            supported, or k or the layer is missing or does not fit.
    """
    require(format is None or format in FORMATS, f"There is no format {format!r}; these are: {', '.join(FORMATS)}.",
            "format")  # fmt: skip
    require(k is None or k >= 1, f"k is {k}, but it must be at least 1.", "k")
    path = Path(path).expanduser()
    if path.is_file():
        name = format or _format_of(path)
        require(name is not None, f"{path} is in no format of autoencoders that is known by its name; give format=.")
        return FORMATS[str(name)].read(Request(path, k, layer))
    require(path.is_dir(), f"There is no file or folder {path}; give an autoencoder's.")
    found = [(file, name) for file in _files(path) if (name := _format_of(file)) and format in (None, name)]
    if layer is not None and len(found) > 1:
        found = [(file, name) for file, name in found if _layer_in_name(file.relative_to(path)) in (None, layer)]
    if not found:
        wanted = f"of the format {format}" if format else "that is known"
        about = "" if layer is None else f" for layer {layer}"
        raise UserError(f"{path} holds no autoencoder {wanted}{about}; the formats are: {', '.join(FORMATS)}.")
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(path)) for file, _ in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UserError(f"{path} holds several autoencoders ({names}{more}); give one file, or layer=.")
    ((file, name),) = found
    return FORMATS[name].read(Request(file, k, layer))


def _format_of(file: Path) -> str | None:
    """The format whose file of arrays has this name, with the configuration that belongs to it beside it."""
    for name, format in FORMATS.items():
        if fnmatch.fnmatch(file.name, format.arrays) and (
            format.config is None or (file.parent / format.config).is_file()
        ):
            return name
    return None


def _files(folder: Path, depth: int = 0) -> list[Path]:
    """The files of a folder and, where it holds no autoencoder itself, of the folders below it."""
    entries = sorted(folder.iterdir())
    files = [entry for entry in entries if entry.is_file()]
    if depth == _DEPTH or any(_format_of(file) for file in files):
        return files
    return files + [file for entry in entries if entry.is_dir() for file in _files(entry, depth + 1)]


def _layer_in_name(path: Path) -> int | None:
    """The layer that a path names, as in `layer3.sae.pt`, `layers.3/sae.safetensors` or `layer_3/params.npz`."""
    found = re.findall(r"layers?[._]?(\d+)", str(path))
    return int(found[-1]) if found else None
