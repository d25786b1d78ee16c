"""Joins a table of labels with the corpus's documents and chunks: an annotator that looks up a document's rows.

The chunks of a table are not those of the corpus, because they were cut with another tokenizer. A chunk of the corpus
gets the labels of each of the table's chunks with which it shares at least half of the shorter one's characters. The
table's chunks are located by the lengths of their texts, one after the other, scaled to the length of the document:
their texts may have been normalised, so that searching for them in the document would miss some.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.storage import StoragePath
from steerling_jax.train.corpus.annotators import TextChunk
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.label_table import TableSettings, table_rows

_KEY = "S16"
# Files of a joined table. Documents are sorted by key. The rows of document i are rows[i] to rows[i + 1], in order of
# chunk, and the labels of row r are labels[label_rows[r] : label_rows[r + 1]].
_DTYPES = {"keys": _KEY, "rows": "int64", "lengths": "int64", "labels": "int32", "label_rows": "int64"}


def build_table(table: TableSettings, ids: dict[int, int], folder: StoragePath) -> None:
    """Sorts a table by document and writes it to `folder`, for lookup by bisection.

    ids: the corpus's concept id for each of the table's. The table is held in memory while it is built, about 100 bytes
    per row. Raises `UserError` for invalid rows and for ids that the table's concepts do not contain.
    """
    keys, chunks, lengths, labels = [], [], [], []
    for where, row in table_rows(table.files, [table.document, table.chunk, table.text, *table.labels]):
        if row.get(table.document) is None:
            raise UserError(
                f"{where} has no {table.document}, the column with the document's id: name the right column."
            )
        try:
            row_ids = [id for column in table.labels for id in row.get(column) or ()]
            chunk, length = int(row.get(table.chunk) or 0), len(row.get(table.text) or "")
            unknown = [id for id in row_ids if id not in ids]  # fails for an id that is a list or an object
            np.int64(chunk)  # fails for a number beyond 64 bits
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"{where}: {table.chunk} must be an integer, {table.text} a string, and {', '.join(table.labels)} "
                "lists of concept ids."
            ) from None
        if unknown:
            raise UserError(f"{where} has the concept {unknown[0]!r}, which {table.concepts} does not list.")
        keys.append(_key(str(row[table.document]), table.by))
        chunks.append(chunk)
        lengths.append(length)
        labels.append(np.array(list(dict.fromkeys(ids[id] for id in row_ids)), np.int32))
    # Sorted by key and then by chunk: a document's rows are consecutive and in the order of its text, which is what
    # locating them by their lengths relies on.
    order = np.lexsort((np.array(chunks), np.array(keys, _KEY)))
    sizes = np.array([len(labels[i]) for i in order], np.int64)
    # The first row of each document; with the number of all rows behind the last, document i ends at rows[i + 1].
    unique, rows = np.unique(np.array(keys, _KEY)[order], return_index=True)
    arrays = {
        "keys": unique,
        "rows": np.append(rows, len(keys)),
        "lengths": np.array(lengths, np.int64)[order],
        "labels": np.concatenate([np.zeros(0, np.int32), *(labels[i] for i in order)]),
        "label_rows": np.concatenate([[0], np.cumsum(sizes)]),
    }
    for name, dtype in _DTYPES.items():
        folder.write(name, arrays[name].astype(dtype).tobytes())


class TableLabels:
    """An annotator that looks up the rows of a joined table."""

    def __init__(self, table: TableSettings, folder: StoragePath):
        self.name, self._by = table.name, table.by
        contents = folder.read_many(list(_DTYPES))
        self._arrays = {
            name: np.frombuffer(content, dtype) for (name, dtype), content in zip(_DTYPES.items(), contents)
        }

    def annotate(self, document: Document, chunks: Sequence[TextChunk]) -> list[list[int]]:
        spans = self._spans(document)
        by_chunk = []
        for chunk in chunks:
            start, end = chunk.start, chunk.start + len(chunk.text)
            labels: dict[int, None] = {}  # an ordered set
            for first, last, span_labels in spans:
                shared = min(end, last) - max(start, first)
                # Half of the shorter one, so that a short chunk inside a long one is labelled in either direction.
                if 2 * shared >= min(end - start, last - first):
                    labels |= dict.fromkeys(span_labels)
            by_chunk.append(list(labels))
        return by_chunk

    def _spans(self, document: Document) -> list[tuple[float, float, list[int]]]:
        """(first character, end, labels) of each of the document's rows."""
        key = np.array(_key(document.sha256 if self._by == "sha256" else document.id, self._by), _KEY)
        keys, rows = self._arrays["keys"], self._arrays["rows"]
        at = int(np.searchsorted(keys, key))
        if at == len(keys) or keys[at] != key:
            return []
        first, last = int(rows[at]), int(rows[at + 1])
        # Where the table's chunks would end if their texts were the document, then scaled to the document's length: a
        # text that was normalised is shorter or longer, by about the same factor in all chunks.
        ends = np.cumsum(self._arrays["lengths"][first:last])
        # Without texts, all lengths are 0, and each row spans the whole document.
        scale = len(document.text) / ends[-1] if ends[-1] else 0.0
        bounds = self._arrays["label_rows"][first : last + 1]
        spans, start = [], 0.0
        for number, end in enumerate(ends * scale if scale else [float(len(document.text))] * (last - first)):
            labels = self._arrays["labels"][bounds[number] : bounds[number + 1]].tolist()
            spans.append((start, float(end), labels))
            start = float(end) if scale else 0.0
        return spans


def _key(text: str, by: str) -> bytes:
    """16 bytes that identify a document: of the SHA-256 of its text (here `text` is hexadecimal) or of its id."""
    if by == "sha256":
        try:
            return bytes.fromhex(text)[:16]
        except ValueError:
            raise UserError(f"A table of labels has the hash {text[:80]!r}: give SHA-256 in hexadecimal.") from None
    return hashlib.sha256(text.encode("utf-8", errors="replace")).digest()[:16]
