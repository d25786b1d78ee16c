"""Labels made elsewhere: a table with the concepts of documents or of their chunks, joined by a document's id or hash.

The columns that are looked for unless others are named are those of FineWeb-Atlas: chunks in `doc_int_id`, `chunk_id`,
`chunk_text`, `content_ids`, `tone_ids`, `document_ids`, `entity_ids`; concepts in `concept_id`, `name`, `description`,
`concept_type`. Source: the data set's card, https://huggingface.co/datasets/guidelabs/fineweb-atlas.

Their chunks are not ours. A chunk of ours gets the labels of every chunk of theirs that it shares at least half of the
shorter one's characters with. Theirs are placed by their texts' lengths, one after the other, scaled to the document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.storage import StoragePath
from steerling_jax.train.corpus.annotators import TextChunk
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.inputs import source_files
from steerling_jax.train.corpus.parts import InputFile
from steerling_jax.train.corpus.reading import column_names, read_rows
from steerling_jax.train.corpus.sources import TextSource, absolute, toml_tables

_KEY = "S16"
_ARRAYS = ("keys", "rows", "lengths", "labels", "label_rows")


@dataclass(frozen=True)
class TableSettings:
    """What a `[[labels]]` table of a TOML file says.

    files, concepts: the labels and the inventory of concepts, Parquet or JSON lines. document: the column with the
    document's id, or with the SHA-256 of its text (by "sha256"). chunk, text: the chunk's number and text; without a
    text column a row is about the whole document. labels: columns with lists of concept ids. named: the fields that
    the table gives itself; their columns must be there, of the others at least one with labels.
    """

    name: str
    files: tuple[str, ...]
    concepts: str
    document: str = "doc_int_id"
    by: str = "id"
    chunk: str = "chunk_id"
    text: str = "chunk_text"
    labels: tuple[str, ...] = ("content_ids", "tone_ids", "document_ids", "entity_ids")
    concept_id: str = "concept_id"
    concept_name: str = "name"
    concept_description: str = "description"
    concept_group: str = "concept_type"
    named: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What decides the labels."""
        return {key: value for key, value in asdict(self).items() if key != "named"}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> TableSettings:
        values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in saved.items()}
        return cls(**values)


def read_table_settings(path: str | Path) -> list[TableSettings]:
    """The `[[labels]]` tables of a TOML file. Raises `UserError` that names file and field."""
    path = Path(path)
    found = []
    for number, table in enumerate(toml_tables(path, "labels"), 1):
        where = f"{path}: labels {table.get('name') or number!r}"
        known = [field.name for field in fields(TableSettings) if field.name != "named"]
        if isinstance(table.get("files"), str):
            table["files"] = [table["files"]]
        for key, value in table.items():
            if key not in known:
                raise UserError(f"{where}: {key} is not a field of a table of labels; they are {', '.join(known)}.")
            if type(value) is not (list if key in ("files", "labels") else str):
                raise UserError(
                    f"{where}: {key} is {value!r}; give a {'list of texts' if key == 'labels' else 'text'}."
                )
            if not value or not all(isinstance(one, str) and one for one in value):
                raise UserError(f"{where}: {key} is {value!r}; give a list of texts.")
        if missing := [key for key in ("name", "files", "concepts") if not table.get(key)]:
            raise UserError(f"{where} has no {missing[0]}: add one.")
        if table.get("by", "id") not in ("id", "sha256"):
            raise UserError(f"{where}: by is {table['by']!r}; give id or sha256.")
        files = [absolute(name, path.parent) for name in table["files"]]
        found.append(
            TableSettings.from_json(
                {"labels": TableSettings.labels}
                | table
                | {"files": files, "concepts": absolute(table["concepts"], path.parent), "named": sorted(table)}
            )
        )
    if not found:
        raise UserError(f"{path} describes no table of labels: add a [[labels]] table with name, files and concepts.")
    return found


def check_table(table: TableSettings) -> None:
    """Raises `UserError` for files that are not there, and for those without a column that the table needs."""
    rows = [table.document, *(getattr(table, key) for key in ("chunk", "text") if key in table.named)]
    rows += table.labels if "labels" in table.named else ()
    concepts = [table.concept_id, table.concept_name]
    concepts += [getattr(table, key) for key in ("concept_description", "concept_group") if key in table.named]
    for files, needed, one_of in ((table.files, rows, table.labels), ((table.concepts,), concepts, concepts)):
        found = source_files(TextSource(files))
        lines = [file for file in found if file.format != "parquet"]  # one may lack a field that another has
        groups = [[file] for file in found if file.format == "parquet"] + [lines] * bool(lines)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda group: _check_columns(group, table.name, needed, one_of), groups))  # noqa: B023


def _check_columns(files: Sequence[InputFile], name: str, needed: Sequence[str], one_of: Sequence[str]) -> None:
    """Raises `UserError` unless all `needed` and at least one of `one_of` are in the files together."""
    there: dict[str, None] = {}
    for column in (column for file in files for column in column_names(file)):
        there[column] = None
        if there.keys() >= {*needed} and not there.keys().isdisjoint(one_of):
            return
    missing = [repr(column) for column in needed if column not in there] or [" or ".join(map(repr, one_of))]
    if there:  # files without rows lack nothing
        where = files[0].address + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        raise UserError(
            f"There is no column {missing[0]} in {where}: say in the table of labels {name!r} what it is called there; "
            f"the columns are {', '.join(there)}."
        )


def table_concepts(table: TableSettings) -> list[dict[str, Any]]:
    """The table's concepts: id (its own), name, group, description."""
    found = []
    for where, row in _rows(
        (table.concepts,), [table.concept_id, table.concept_name, table.concept_description, table.concept_group]
    ):
        id, name = row.get(table.concept_id), row.get(table.concept_name)
        if type(id) is not int or not isinstance(name, str) or not name.strip():
            raise UserError(f"{where} is no concept: {table.concept_id} is {id!r}, {table.concept_name} {name!r}.")
        texts = {"description": row.get(table.concept_description), "group": row.get(table.concept_group)}
        found.append({"id": id, "name": name.strip()} | {key: str(value or "") for key, value in texts.items()})
    return found


def build_table(table: TableSettings, ids: dict[int, int], place: StoragePath) -> None:
    """Keeps the table in `place` so that a document's rows are found by bisection. ids: the table's to the corpus's.

    Held in memory while it is built: about 100 bytes a row. Raises `UserError` for ids that the inventory lacks.
    """
    keys, chunks, lengths, labels = [], [], [], []
    for where, row in _rows(table.files, [table.document, table.chunk, table.text, *table.labels]):
        if row.get(table.document) is None:
            raise UserError(f"{where} has no {table.document}, which says which document it is about: name the column.")
        try:
            given = [id for column in table.labels for id in row.get(column) or ()]
            chunk, length = int(row.get(table.chunk) or 0), len(row.get(table.text) or "")
        except (TypeError, ValueError):
            raise UserError(
                f"{where}: {table.chunk} must be a whole number, {table.text} a text, and {', '.join(table.labels)} "
                "lists of concept ids."
            ) from None
        if unknown := [id for id in given if id not in ids]:
            raise UserError(f"{where} has the concept {unknown[0]!r}, which {table.concepts} does not list.")
        keys.append(_key(str(row[table.document]), table.by))
        chunks.append(chunk)
        lengths.append(length)
        labels.append(np.array(list(dict.fromkeys(ids[id] for id in given)), np.int32))
    order = np.lexsort((np.array(chunks), np.array(keys, _KEY)))
    sizes = np.array([len(labels[i]) for i in order], np.int64)
    unique, rows = np.unique(np.array(keys, _KEY)[order], return_index=True)
    arrays = {
        "keys": unique,
        "rows": np.append(rows, len(keys)).astype(np.int64),
        "lengths": np.array(lengths, np.int64)[order],
        "labels": np.concatenate([np.zeros(0, np.int32), *(labels[i] for i in order)]),
        "label_rows": np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
    }
    for name in _ARRAYS:
        place.write(name, arrays[name].tobytes())


class LabelTable:
    """A table that was built; an annotator."""

    def __init__(self, table: TableSettings, place: StoragePath):
        self.name, self._by = table.name, table.by
        dtypes = {"keys": _KEY, "labels": np.int32}
        content = dict(zip(_ARRAYS, place.read_many(list(_ARRAYS))))
        self._arrays = {name: np.frombuffer(content[name], dtypes.get(name, np.int64)) for name in _ARRAYS}

    def annotate(self, document: Document, chunks: Sequence[TextChunk]) -> list[list[int]]:
        spans = self._spans(_key(document.sha256 if self._by == "sha256" else document.id, self._by), document)
        found = []
        for chunk in chunks:
            start, end = chunk.start, chunk.start + len(chunk.text)
            labels: dict[int, None] = {}
            for first, last, given in spans:
                shared = min(end, last) - max(start, first)
                if 2 * shared >= min(end - start, last - first):
                    labels |= dict.fromkeys(given)
            found.append(list(labels))
        return found

    def _spans(self, key: bytes, document: Document) -> list[tuple[float, float, list[int]]]:
        """First and last character, and labels, of each of the document's rows."""
        keys, rows = self._arrays["keys"], self._arrays["rows"]
        at = int(np.searchsorted(keys, np.array(key, _KEY)))
        if at == len(keys) or keys[at] != np.array(key, _KEY):
            return []
        first, last = int(rows[at]), int(rows[at + 1])
        ends = np.cumsum(self._arrays["lengths"][first:last])
        scale = len(document.text) / ends[-1] if ends[-1] else 0.0
        bounds = self._arrays["label_rows"][first : last + 1]
        found, start = [], 0.0
        for number, end in enumerate(ends * scale if scale else [float(len(document.text))] * (last - first)):
            labels = self._arrays["labels"][bounds[number] : bounds[number + 1]].tolist()
            found.append((start, float(end), labels))
            start = float(end) if scale else 0.0
        return found


def _key(text: str, by: str) -> bytes:
    """16 bytes that stand for a document: of the hash of its text, or of the hash of its id."""
    if by == "sha256":
        try:
            return bytes.fromhex(text)[:16]
        except ValueError:
            raise UserError(f"A table of labels has the hash {text[:80]!r}: give SHA-256 in hexadecimal.") from None
    return hashlib.sha256(text.encode("utf-8", errors="replace")).digest()[:16]


def _rows(files: Sequence[str], columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, fields) of each row of Parquet or JSON lines files."""
    for file in source_files(TextSource(tuple(files))):
        yield from read_rows(file, columns)
