"""`load_autoencoder`: finds the files of an autoencoder, recognises their format and reads them."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.errors import UserError, require
from steerling_jax.io import hub
from steerling_jax.io.autoencoders.readers import FORMATS, Request
from steerling_jax.io.catalogue import features_file, read_features

_DEPTH = 4  # folders below the given one in which files are looked for
_SHOWN = 4


def load_autoencoder(
    path: str | Path, *, format: str | None = None, k: int | None = None, layer: int | None = None
) -> Autoencoder:
    """Loads a sparse autoencoder in any of the supported formats.

    Args:
        path: its file of arrays, its folder, or a folder with those of several layers; or a Hub id, `owner/name` or
            `owner/name/path`, of which the files of one autoencoder are downloaded through `huggingface_hub` and its
            cache. A file or folder takes precedence. What `features.json` beside the arrays says of single features
            (`layerN.features.json` for Qwen-Scope) is in `.features`.
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
    place = Path(path).expanduser()
    if place.is_file():
        name = format or _format_of(place.name, [other.name for other in place.parent.iterdir()])
        require(name is not None, f"{place} is in no format of autoencoders that is known by its name; give format=.")
        return _read(str(name), Request(place, k, layer))
    if place.is_dir():
        file, name = _choose(_files(place), str(path), format, layer)
        return _read(name, Request(place / file, k, layer))
    hub_id = hub.hub_path(str(path))
    if hub_id is None:
        raise UserError(f"There is no file or folder {path}; give an autoencoder's, or a Hub id.")
    repo, under = hub_id
    # Only the files of the chosen one are downloaded: a repository may have one for each of 30 layers.
    files = hub.list_files(repo)
    file, name = _choose(files, str(path), format, layer, under)
    for other in (FORMATS[name].config, features_file(Path(file)).name):
        if other is not None and (beside := str(PurePosixPath(file).with_name(other))) in files:
            hub.download(repo, beside)
    return _read(name, Request(hub.download(repo, file), k, layer))


def _read(format: str, request: Request) -> Autoencoder:
    """The autoencoder, with what a file beside it says of its features."""
    autoencoder, about = FORMATS[format].read(request), features_file(request.file)
    if not about.is_file():
        return autoencoder
    return dataclasses.replace(autoencoder, features=read_features(about, autoencoder.n_latents))


def _choose(
    files: Sequence[str], source: str, format: str | None, layer: int | None, under: str = ""
) -> tuple[str, str]:
    """The one autoencoder among the files of a folder: its file of arrays, and its format.

    files: paths relative to the folder. under: the file or the folder in it that was given. source: for messages.
    """
    beside: dict[PurePosixPath, list[str]] = {}
    for file in files:
        beside.setdefault(PurePosixPath(file).parent, []).append(PurePosixPath(file).name)
    found = []
    for file in files:
        if under and file != under and not file.startswith(f"{under}/"):
            continue
        name = _format_of(PurePosixPath(file).name, beside[PurePosixPath(file).parent])
        if name is not None and format in (None, name):
            found.append((file, name))
    if layer is not None and len(found) > 1:
        found = [(file, name) for file, name in found if _layer_in_name(file) in (None, layer)]
    if not found:
        kind = f"of the format {format}" if format else "that is known"
        about = "" if layer is None else f" for layer {layer}"
        raise UserError(f"{source} holds no autoencoder {kind}{about}; the formats are: {', '.join(FORMATS)}.")
    if len(found) > 1:
        names = ", ".join(file for file, _ in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UserError(f"{source} holds several autoencoders ({names}{more}); give one file, or layer=.")
    return found[0]


def load_autoencoders(
    path: str | Path, *, k: int | None = None, layers: Sequence[int] | None = None
) -> list[Autoencoder]:
    """The autoencoders of a folder that holds those of several layers of a model, in the order of the layers.

    path: that folder, or a single autoencoder as for `load_autoencoder`. layers: those to load; None for all.
    Raises `UserError` as `load_autoencoder` does, and for a layer that is not there or is there twice.
    """
    place = Path(path).expanduser()
    files = _autoencoders_in(place) if place.is_dir() else []
    if len(files) < 2:
        return [load_autoencoder(path, k=k, layer=layers[0] if layers and len(layers) == 1 else None)]
    named = [_layer_in_name(file) for file in files]
    for layer in layers or ():
        known = ", ".join(str(one) for one in sorted({one for one in named if one is not None}))
        require(layer in named or None in named, f"{path} holds no autoencoder of layer {layer}, but of {known}.",
                "layers")  # fmt: skip
    loaded = [load_autoencoder(place / file, k=k) for file, layer in zip(files, named, strict=True)
              if not layers or layer is None or layer in layers]  # fmt: skip
    selected = [one for one in loaded if not layers or one.layer in layers]
    require(bool(selected), f"{path} holds no autoencoder of the layers {layers}.", "layers")
    twice = len({one.layer for one in selected}) < len(selected)
    require(not twice, f"{path} holds several autoencoders of one layer; give one of its folders.")
    return sorted(selected, key=lambda one: -1 if one.layer is None else one.layer)


def _autoencoders_in(folder: Path) -> list[str]:
    """The files of arrays of a folder's autoencoders, relative to it."""
    files = [folder / file for file in _files(folder)]
    return [
        str(file.relative_to(folder))
        for file in files
        if _format_of(file.name, [other.name for other in files if other.parent == file.parent])
    ]


def _format_of(file: str, beside: Sequence[str]) -> str | None:
    """The format whose file of arrays has this name, with the configuration that belongs to it among the names
    `beside` it."""
    for name, format in FORMATS.items():
        if fnmatch.fnmatch(file, format.arrays) and (format.config is None or format.config in beside):
            return name
    return None


def _files(folder: Path) -> list[str]:
    """The files of a folder and, where it holds no autoencoder itself, of the folders below it, as relative paths."""

    def below(part: Path, depth: int) -> list[Path]:
        entries = sorted(part.iterdir())
        files = [entry for entry in entries if entry.is_file()]
        names = [file.name for file in files]
        if depth == _DEPTH or any(_format_of(name, names) for name in names):
            return files
        return files + [file for entry in entries if entry.is_dir() for file in below(entry, depth + 1)]

    return [file.relative_to(folder).as_posix() for file in below(folder, 0)]


def _layer_in_name(path: str) -> int | None:
    """The layer that a path names, as in `layer3.sae.pt`, `layers.3/sae.safetensors` or `layer_3/params.npz`."""
    found = re.findall(r"layers?[._]?(\d+)", path)
    return int(found[-1]) if found else None
