"""Texts with labels from files that users give: CSV and TSV with a header, JSON lines, or plain texts, one a line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from steerling_jax.errors import UserError, require
from steerling_jax.io.text_files import load_json, read_text, replace_surrogates

JSON_LINES = (".jsonl", ".ndjson")
TABLES = {".csv": ",", ".tsv": "\t"}


class TextTable(NamedTuple):
    """texts: a row each. columns: the values of other columns by name, as text."""

    texts: list[str]
    columns: dict[str, list[str]]


def read_text_table(path: str | Path, text: str = "text", others: Sequence[str] = ()) -> TextTable:
    """The texts of column `text` and the values of the columns `others`, of a .csv, .tsv, .jsonl or .ndjson file.

    A file with another ending has a text in each line and no columns. Raises `UserError` that names the file, and the
    row where one is at fault: it cannot be read, lacks a column, or has an empty or missing value.
    """
    content = read_text(path)
    rows: list[tuple[int, dict[str, object]]]
    suffix = PurePosixPath(str(path)).suffix
    if suffix in JSON_LINES:
        rows = _json_rows(content, path)
    elif suffix in TABLES:
        rows = _csv_rows(content, path, TABLES[suffix])
    else:
        require(not others, f"{path} has a text in each line and no column {others[0]!r}; give a .csv or .jsonl file."
                if others else "")  # fmt: skip
        rows = [(number, {text: line}) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    require(bool(rows), f"{path} has no texts.")
    names = list(dict.fromkeys(name for _, row in rows[:1] for name in row))
    for name in (text, *others):
        if name not in names:
            raise UserError(f"{path} has no column {name!r}; its columns are {', '.join(map(repr, names))}.")
    return TextTable(
        [_value(path, number, row, text, strings_only=True) for number, row in rows],
        {name: [_value(path, number, row, name) for number, row in rows] for name in others},
    )


def _value(path: str | Path, number: int, row: dict[str, object], name: str, *, strings_only: bool = False) -> str:
    value = row.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UserError(f"{path}, line {number}: {name!r} is empty; fill it in or remove the line.")
    if not isinstance(value, str | bool | int | float) or (strings_only and not isinstance(value, str)):
        shown = json.dumps(value)[:40]
        raise UserError(f"{path}, line {number}: {name!r} is {shown}, but it must be a text.")
    return value if isinstance(value, str) else json.dumps(value)


def _json_rows(content: str, path: str | Path) -> list[tuple[int, dict[str, object]]]:
    rows = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = load_json(line)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: this is not JSON ({error}); write one object on a line."
            ) from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: this is JSON, but not an object; write one object on a line.")
        rows.append((number, replace_surrogates(row)))
    return rows


def _csv_rows(content: str, path: str | Path, delimiter: str) -> list[tuple[int, dict[str, object]]]:
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, dict[str, object]]] = []
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise UserError(f"{path} names a column twice in its first line; give each a name of its own.")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(cells)} values, but the first line names {len(header)} "
                    "columns; quote values that contain the delimiter."
                )
            rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; correct the quotes.") from error
    return rows
