"""Reads documents and rows from text, JSON lines and Parquet files, local or remote."""

from __future__ import annotations

import contextlib
import lzma
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from steerling_jax.errors import UserError, error_summary
from steerling_jax.io.storage import open_binary
from steerling_jax.io.text_files import decode_text, load_json, replace_surrogates
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.input_files import InputFile
from steerling_jax.train.corpus.parts import Part
from steerling_jax.train.corpus.sources import TextSource

_BATCH_ROWS = 1024  # rows of a Parquet file in memory
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escaped one; decoded text has no other


@dataclass
class LineCount:
    """A counter for `read_part`: the number of lines read from a JSON lines file; 0 for other formats."""

    lines: int = 0


class _Row(NamedTuple):
    """where: file and line or row, for error messages. name: the default name of the document. fields: a JSON value."""

    where: str
    name: str
    fields: Any


def read_part(
    part: Part, source: TextSource, first_line_number: int = 1, count: LineCount | None = None
) -> Iterator[Document]:
    """The documents of a part in input order, without those that have no text.

    first_line_number: the number, in its file, of the part's first line, for JSON lines. 0 if unknown: then lines are
    numbered from the start of the part, and so are documents that are named by their line. count: incremented for each
    line.

    Raises `UserError` that names the file and the line or row for text that is not UTF-8, invalid JSON, and missing
    fields.
    """
    if part.format == "text":
        for file in part.files:
            text = decode_text(_content(file), file.address)
            if text.strip():
                yield Document(file.label, source.name or "text", text)
        return
    rows = _json_rows(part, first_line_number, count) if part.format == "jsonl" else _parquet_rows(part, source)
    for row in rows:
        document = _document(row, source)
        if document.text.strip():
            yield document


def read_rows(file: InputFile, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, fields) of each row of a Parquet or JSON lines file; of Parquet only `columns` are read.

    `where` names the file and the row or line, for error messages. Raises `UserError` for a line that is not an object.
    """
    if file.format == "parquet":
        with parquet_file(file) as table:
            rows = _batched_rows(file, table, list(range(table.metadata.num_row_groups)), 0, columns)
            yield from ((row.where, row.fields) for row in rows)
        return
    for row in _json_rows(Part(0, "jsonl", (file,)), 1):
        if not isinstance(row.fields, dict):
            raise UserError(f"{row.where} is not a JSON object.")
        yield row.where, row.fields


def column_names(file: InputFile) -> Iterator[str]:
    """The columns of a Parquet file; of JSON lines, the fields of its objects as they first occur."""
    if file.format == "parquet":
        with parquet_file(file) as table:
            yield from table.schema_arrow.names
        return
    seen: set[str] = set()
    for _, fields in read_rows(file, ()):
        yield from (name for name in fields if name not in seen)
        seen |= fields.keys()


@contextlib.contextmanager
def opened(file: InputFile) -> Iterator[IO[bytes]]:
    """Opens a file for reading, decompressed. Raises `UserError` if it cannot be read."""
    try:
        with open_binary(file.address, decompress=file.is_compressed) as content:
            yield content
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or error_summary(error)
        raise UserError(f"Cannot read {file.address}: {reason}.") from error


@contextlib.contextmanager
def parquet_file(file: InputFile) -> Iterator[Any]:
    """Opens a Parquet file and reads its metadata. Raises `UserError` if it is invalid or pyarrow is not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"Reading {file.address} needs pyarrow: pip install 'steerling-jax[parquet]', or give JSON lines."
        ) from None
    with opened(file) as content:
        try:
            yield parquet.ParquetFile(content)
        except pyarrow.ArrowException as error:
            raise UserError(
                f"{file.address} is not a Parquet file that can be read: {error_summary(error)}."
            ) from error


def _lines(part: Part) -> Iterator[bytes]:
    """The lines that begin in the part's bytes; the last one is read to its end, also beyond the part."""
    with opened(part.files[0]) as content:
        at = part.start
        if at:
            # A line belongs to the part in which it begins. Reading starts one byte early: if that byte ends a line,
            # readline() returns just it, and the line that begins at `start` is this part's. Otherwise it returns the
            # rest of a line of the part before.
            content.seek(at - 1)
            at += len(content.readline()) - 1
        while part.end < 0 or at < part.end:
            line = content.readline()
            if not line:
                return
            at += len(line)
            yield line


def _json_rows(part: Part, first_line_number: int, count: LineCount | None = None) -> Iterator[_Row]:
    file = part.files[0]
    after = f" after byte {part.start}" if part.start and not first_line_number else ""
    for number, line in enumerate(_lines(part), first_line_number or 1):
        if count is not None:
            count.lines += 1
        where = f"{file.address}, line {number}{after}"
        text = decode_text(line, where)
        if text.strip():
            try:
                fields = load_json(text)
            except ValueError as error:
                raise UserError(f"{where} is not JSON: {error}.") from error
            if _SURROGATE.search(text):
                fields = replace_surrogates(fields)
            yield _Row(where, f"{file.label}:{number}", fields)


def _parquet_rows(part: Part, source: TextSource) -> Iterator[_Row]:
    file = part.files[0]
    with parquet_file(file) as table:
        columns = [source.text_field, source.name_field, source.id_field, "source", "labels", "cluster", "module"]
        if source.text_field not in table.schema_arrow.names:
            raise UserError(
                f"{file.address} has no column {source.text_field!r}: name the one with the text as text_field, in a "
                f"file for --source; its columns are {', '.join(table.schema_arrow.names)}."
            )
        rows_before = sum(table.metadata.row_group(i).num_rows for i in range(part.start))
        yield from _batched_rows(file, table, list(range(part.start, part.end)), rows_before, columns)


def _batched_rows(
    file: InputFile, table: Any, groups: list[int], rows_before: int, columns: Sequence[str]
) -> Iterator[_Row]:
    """The rows of some row groups; columns that the file lacks and null values are left out."""
    number = rows_before
    present = [name for name in columns if name in table.schema_arrow.names]
    for batch in table.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups, columns=present):
        for row in _python_rows(file, batch, number):
            number += 1
            fields = {key: value for key, value in row.items() if value is not None}
            yield _Row(f"{file.address}, row {number}", f"{file.label}:{number}", fields)


def _python_rows(file: InputFile, batch: Any, rows_before: int) -> list[dict[str, Any]]:
    """The rows of an Arrow batch. Raises `UserError` that names the first row with text that is not UTF-8."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:  # Arrow does not validate text when it reads a file
        for number in range(batch.num_rows):
            try:
                batch.slice(number, 1).to_pylist()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{file.address}, row {rows_before + number + 1} has text that is not UTF-8 (byte {error.start}): "
                    "write the file again."
                ) from error
        raise


def _document(row: _Row, source: TextSource) -> Document:
    """The document of a row. Raises `UserError` for a missing text and for fields of another type."""
    fields = row.fields
    if not isinstance(fields, Mapping) or not isinstance(fields.get(source.text_field), str):
        raise UserError(
            f'{row.where} has no {source.text_field}: give an object such as {{"{source.text_field}": "..."}}.'
        )
    values = {
        "name": fields.get(source.name_field, row.name),
        "source": source.name or fields.get("source", "text"),
        "module": fields.get("module", ""),
        "cluster": fields.get("cluster", ""),
    }
    for key, value in values.items():
        if not isinstance(value, str):
            raise UserError(f"{row.where}: {key} must be a string.")
    labels = fields.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{row.where}: labels must be a list of concept names.")
    id = fields.get(source.id_field, "")
    return Document(text=fields[source.text_field], labels=tuple(labels), id=str(id), **values)


def _content(file: InputFile) -> bytes:
    with opened(file) as content:
        return content.read()
