"""Divides the files of all sources into parts of about equal size.

The parts follow from the files' names and sizes alone, not from the number of workers. A part is what one worker reads
at a time, and the unit in which an interrupted preparation resumes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from steerling_jax.train.corpus.input_files import FORMATS, InputFile, source_files
from steerling_jax.train.corpus.parts import Part
from steerling_jax.train.corpus.reading import parquet_file
from steerling_jax.train.corpus.sources import TextSource

_MIN_PART, _MAX_PART, _PARTS = 4 << 20, 64 << 20, 4096  # bytes, bytes, and the number of parts to aim at
_THREADS = 16  # that read the metadata of Parquet files, which may be remote


def plan_parts(sources: Sequence[TextSource], part_bytes: int = 0) -> list[Part]:
    """The parts of all sources, ordered by source, format and address.

    part_bytes: approximate size of a part; 0 chooses 4 to 64 MiB by the total size. Raises `UserError` for a source
    without files.
    """
    files = [source_files(source) for source in sources]
    total = sum(file.size for of_source in files for file in of_source)
    part_bytes = part_bytes or min(max(total // _PARTS, _MIN_PART), _MAX_PART)
    parts: list[Part] = []
    for number, of_source in enumerate(files):
        by_format = {name: [file for file in of_source if file.format == name] for name in FORMATS.values()}
        parts += _text_parts(number, by_format["text"], part_bytes)
        for file in by_format["jsonl"]:
            parts += _line_parts(number, file, part_bytes)
        with ThreadPoolExecutor(_THREADS) as pool:
            split = partial(_row_group_parts, number, part_bytes=part_bytes)
            for of_file in pool.map(split, by_format["parquet"]):
                parts += of_file
    return parts


def _text_parts(source: int, files: Sequence[InputFile], part_bytes: int) -> Iterator[Part]:
    """Consecutive text files, up to `part_bytes` together."""
    group: list[InputFile] = []
    for file in files:
        if group and sum(member.size for member in group) + file.size > part_bytes:
            yield Part(source, "text", tuple(group))
            group = []
        group.append(file)
    if group:
        yield Part(source, "text", tuple(group))


def _line_parts(source: int, file: InputFile, part_bytes: int) -> list[Part]:
    """Ranges of a JSON lines file's bytes; a compressed file cannot be read from the middle and is one part."""
    if file.is_compressed:
        return [Part(source, "jsonl", (file,))]
    starts = range(0, max(file.size, 1), part_bytes)
    return [Part(source, "jsonl", (file,), start, min(start + part_bytes, file.size)) for start in starts]


def _row_group_parts(source: int, file: InputFile, part_bytes: int) -> list[Part]:
    """Consecutive row groups of a Parquet file, up to `part_bytes` uncompressed bytes together."""
    with parquet_file(file) as table:
        sizes = [table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups)]
    parts, first, group_bytes = [], 0, 0
    for number, size in enumerate(sizes):
        if group_bytes and group_bytes + size > part_bytes:
            parts.append(Part(source, "parquet", (file,), first, number))
            first, group_bytes = number, 0
        group_bytes += size
    return [*parts, Part(source, "parquet", (file,), first, len(sizes))]
