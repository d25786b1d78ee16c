"""Documents of a part, in their order: from texts, JSON lines and Parquet, on this machine or in a bucket."""

from __future__ import annotations

import contextlib
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from steerling_jax.errors import UserError, first_line
from steerling_jax.io.storage import open_binary
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.parts import InputFile, Part
from steerling_jax.train.corpus.sources import TextSource

_ROWS = 1024  # of a Parquet file, read at a time


@dataclass
class LineCount:
    """How many lines of a JSON lines file were read; 0 for other formats."""

    lines: int = 0


def read_part(part: Part, source: TextSource, first: int = 1, count: LineCount | None = None) -> Iterator[Document]:
    """The part's documents, those without text left out. first: number of its first line in a JSON lines file, 0
    where it is not known yet: then lines are counted, and documents named, from where the part begins. `count` counts
    the lines.

    Raises `UserError` naming the file, and the line or row, for text that is not UTF-8, broken JSON, missing fields.
    """
    if part.format == "text":
        for file in part.files:
            text = _decoded(_content(file), file.address)
            if text.strip():
                yield Document(file.label, source.name or "text", text)
        return
    rows = _json_rows(part, first, count) if part.format == "jsonl" else _table_rows(part, source)
    for where, name, fields in rows:
        document = _document(where, name, fields, source)
        if document.text.strip():
            yield document


def read_rows(file: InputFile, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, fields) of each row of a Parquet or JSON lines file; of Parquet these columns alone are read."""
    if file.format == "parquet":
        with parquet_file(file) as table:
            rows = _batches(file, table, list(range(table.metadata.num_row_groups)), 0, columns)
            yield from ((where, fields) for where, _, fields in rows)
        return
    for where, _, fields in _json_rows(Part(0, "jsonl", (file,)), 1):
        if not isinstance(fields, dict):
            raise UserError(f"{where} is no JSON object.")
        yield where, fields


def column_names(file: InputFile) -> Iterator[str]:
    """The columns of a Parquet file; of JSON lines, the fields of its lines, each when it is first met."""
    if file.format == "parquet":
        with parquet_file(file) as table:
            yield from table.schema_arrow.names
        return
    met: set[str] = set()
    for _, fields in read_rows(file, ()):
        yield from (name for name in fields if name not in met)
        met |= fields.keys()


@contextlib.contextmanager
def opened(file: InputFile) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked. Raises `UserError` where it cannot be read."""
    try:
        with open_binary(file.address, decompress=file.is_packed) as content:
            yield content
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"Cannot read {file.address}: {reason}.") from error


@contextlib.contextmanager
def parquet_file(file: InputFile) -> Iterator[Any]:
    """The Parquet file, its head read."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{file.address} needs pyarrow to be read: pip install 'steerling-jax[parquet]', or give JSON lines."
        ) from None
    with opened(file) as content:
        try:
            yield parquet.ParquetFile(content)
        except pyarrow.ArrowException as error:
            raise UserError(f"{file.address} is not a Parquet file that can be read: {first_line(error)}.") from error


def _lines(part: Part) -> Iterator[bytes]:
    """The lines that begin in the part's bytes; one that runs over the end is read to its own end."""
    with opened(part.files[0]) as content:
        at = part.start
        if at:
            content.seek(at - 1)
            at += len(content.readline()) - 1
        while part.end < 0 or at < part.end:
            line = content.readline()
            if not line:
                return
            at += len(line)
            yield line


def _json_rows(part: Part, first: int, count: LineCount | None = None) -> Iterator[tuple[str, str, Any]]:
    file = part.files[0]
    after = f" after byte {part.start}" if part.start and not first else ""
    for number, line in enumerate(_lines(part), first or 1):
        if count is not None:
            count.lines += 1
        where = f"{file.address}, line {number}{after}"
        text = _decoded(line, where)
        if text.strip():
            try:
                yield where, f"{file.label}:{number}", json.loads(text)
            except ValueError as error:
                raise UserError(f"{where} is not JSON: {error}.") from error


def _table_rows(part: Part, source: TextSource) -> Iterator[tuple[str, str, Any]]:
    file = part.files[0]
    with parquet_file(file) as table:
        columns = [source.text_field, source.name_field, source.id_field, "source", "labels", "cluster", "module"]
        if source.text_field not in table.schema_arrow.names:
            raise UserError(
                f"{file.address} has no column {source.text_field!r}: name the one with the text as text_field, in a "
                f"file for --source; its columns are {', '.join(table.schema_arrow.names)}."
            )
        first = sum(table.metadata.row_group(i).num_rows for i in range(part.start))
        yield from _batches(file, table, list(range(part.start, part.end)), first, columns)


def _batches(
    file: InputFile, table: Any, groups: list[int], number: int, columns: Sequence[str]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    present = [name for name in columns if name in table.schema_arrow.names]
    for batch in table.iter_batches(batch_size=_ROWS, row_groups=groups, columns=present):
        for row in batch.to_pylist():
            number += 1
            fields = {key: value for key, value in row.items() if value is not None}
            yield f"{file.address}, row {number}", f"{file.label}:{number}", fields


def _document(where: str, name: str, fields: Any, source: TextSource) -> Document:
    if not isinstance(fields, Mapping) or not isinstance(fields.get(source.text_field), str):
        raise UserError(
            f'{where} has no {source.text_field}: it is to be an object such as {{"{source.text_field}": "..."}}.'
        )
    values = {
        "name": fields.get(source.name_field, name),
        "source": source.name or fields.get("source", "text"),
        "module": fields.get("module", ""),
        "cluster": fields.get("cluster", ""),
    }
    for key, value in values.items():
        if not isinstance(value, str):
            raise UserError(f"{where}: {key} is to be a string.")
    labels = fields.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{where}: labels is to be a list of concept names.")
    id = fields.get(source.id_field, "")
    return Document(text=fields[source.text_field], labels=tuple(labels), id=str(id), **values)


def _content(file: InputFile) -> bytes:
    with opened(file) as content:
        return content.read()


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 text (byte {error.start}): convert it, for example with iconv."
        ) from error
