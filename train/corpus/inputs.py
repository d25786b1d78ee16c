"""Which files a source has, and how they are shared out: parts of about the same size, whatever reads them.

The parts follow from names and sizes alone. A part is what one worker reads at a time, and what is kept of a
preparation that was stopped.
"""

from __future__ import annotations

import glob
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.io.storage import file_system
from steerling_jax.train.corpus.parts import FORMATS, InputFile, Part
from steerling_jax.train.corpus.reading import parquet_file
from steerling_jax.train.corpus.sources import TextSource

_LEAST_PART, _MOST_PART, _PARTS = 4 << 20, 64 << 20, 4096


def plan_parts(sources: Sequence[TextSource], part_bytes: int = 0) -> list[Part]:
    """The parts of all sources, in order of source and name. part_bytes: about so large; 0: by the size of it all."""
    files = [source_files(source) for source in sources]
    total = sum(file.size for found in files for file in found)
    part_bytes = part_bytes or min(max(total // _PARTS, _LEAST_PART), _MOST_PART)
    parts: list[Part] = []
    for number, found in enumerate(files):
        by_format = {name: [f for f in found if f.format == name] for name in FORMATS.values()}
        parts += _text_parts(number, by_format["text"], part_bytes)
        for file in by_format["jsonl"]:
            if file.is_packed:
                parts.append(Part(number, "jsonl", (file,)))
            else:
                starts = range(0, max(file.size, 1), part_bytes)
                parts += [Part(number, "jsonl", (file,), at, min(at + part_bytes, file.size)) for at in starts]
        with ThreadPoolExecutor(16) as pool:
            for groups in pool.map(lambda f: list(_row_groups(number, f, part_bytes)), by_format["parquet"]):  # noqa: B023
                parts += groups
    return parts


def source_files(source: TextSource) -> list[InputFile]:
    """The files of a source that can be read, in order of name. Raises `UserError` where there are none."""
    found: dict[str, InputFile] = {}
    for name in source.files:
        for file in _expand(name):
            found.setdefault(file.address, file)
    readable = [file for file in sorted(found.values(), key=lambda f: f.address) if file.format]
    if not readable:
        raise UserError(
            f"{', '.join(source.files)} holds no documents: put .txt, .jsonl (also packed, .jsonl.gz) or .parquet "
            "files there."
        )
    return readable


def _expand(name: str) -> list[InputFile]:
    if "://" not in name:
        name = str(Path(name).absolute())
    try:
        system, path = file_system(name)
        if glob.has_magic(path):
            base = path[: path.rindex("/", 0, _first_magic(path)) + 1] if "/" in path else ""
            entries = system.glob(path, detail=True)
        elif system.isdir(path):
            base, entries = path.rstrip("/") + "/", system.find(path, detail=True)
        elif system.exists(path):
            base, entries = path[: path.rindex("/") + 1], {path: system.info(path)}
        else:
            raise UserError(f"{name} is not a folder or a file: give one that holds .txt, .jsonl or .parquet files.")
    except (ImportError, ValueError) as error:
        raise UserError(f"{name} cannot be read: {error}.") from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}.") from error
    local = "://" not in name
    files = []
    for found, info in entries.items():
        info = _linked(found) if info.get("islink") else info
        if info["type"] == "file":
            address = found if local else system.unstrip_protocol(found)
            files.append(InputFile(address, found.removeprefix(base), info["size"], _stamp(info)))
    return files


def _linked(path: str) -> dict[str, Any]:
    """What a link on this machine stands for. Raises `UserError` for folders, which may hold themselves."""
    try:
        about = Path(path).stat()
    except OSError as error:
        if InputFile(path, path, 0, "").format is None:
            return {"type": "other"}
        raise UserError(f"{path} is a link that leads nowhere, {error.strerror}: mend it, or remove it.") from error
    if stat.S_ISDIR(about.st_mode):
        raise UserError(
            f"{path} is a link to a folder, and such are not followed: name the folder itself, and remove the link."
        )
    kind = "file" if stat.S_ISREG(about.st_mode) else "other"
    return {"type": kind, "size": about.st_size, "mtime": about.st_mtime}


def _first_magic(path: str) -> int:
    return min(at for at in map(path.find, "*?[") if at >= 0)


def _stamp(info: dict[str, Any]) -> str:
    return str(next((info[key] for key in ("ETag", "etag", "md5Hash", "mtime", "created") if info.get(key)), ""))


def _text_parts(source: int, files: Sequence[InputFile], part_bytes: int) -> Iterator[Part]:
    group: list[InputFile] = []
    for file in files:
        if group and sum(f.size for f in group) + file.size > part_bytes:
            yield Part(source, "text", tuple(group))
            group = []
        group.append(file)
    if group:
        yield Part(source, "text", tuple(group))


def _row_groups(source: int, file: InputFile, part_bytes: int) -> Iterator[Part]:
    """Row groups in a row of about `part_bytes` together, by what the file says of itself."""

    with parquet_file(file) as table:
        sizes = [table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups)]
    first, held = 0, 0
    for number, size in enumerate(sizes):
        if held and held + size > part_bytes:
            yield Part(source, "parquet", (file,), first, number)
            first, held = number, 0
        held += size
    yield Part(source, "parquet", (file,), first, len(sizes))
