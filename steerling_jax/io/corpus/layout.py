"""Which rows of a corpus store come from which piece, and the writing of one storage shard.

The sizes of all pieces are known before anything is written. So each storage shard of each array can be written on its
own, by any process and in any order, with the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from steerling_jax.corpus.reader import DocumentRecord
from steerling_jax.io.corpus.pieces import CorpusPiece, PieceSize, token_dtype
from steerling_jax.io.corpus.store import (
    ARRAYS,
    DOCUMENTS_PER_FILE,
    FORMAT_VERSION,
    SPLITS,
    STRIDE,
    array_spec,
    documents_file,
)
from steerling_jax.io.storage import StoragePath
from steerling_jax.tokenizer import Tokenizer

_CHUNK_FIELDS = {  # the field of a ChunkTable that each array is made of
    "chunk_spans": "spans",
    "chunk_documents": "documents",
    "chunk_labels": "labels",
    "chunk_origins": "origins",
}


class Shard(NamedTuple):
    """One storage shard of an array, or one file of document records (array `documents`)."""

    array: str
    number: int


class StoreLayout:
    """The rows of each piece in the store: the training split's pieces in their order, then the held-out ones."""

    def __init__(self, sizes: Mapping[str, Sequence[PieceSize]], vocab_size: int):
        """sizes: of the pieces of each split, in their order."""
        self._vocab_size = vocab_size
        self.splits = [split for split in SPLITS for _ in sizes[split]]
        pieces = [size for split in SPLITS for size in sizes[split]]
        # The store's number of each piece's first document, chunk and token, (pieces + 1,). A piece counts its rows
        # from its own start; adding these to what it stores gives the store's numbers.
        self._first = {
            name: np.concatenate([[0], np.cumsum([getattr(piece, name) for piece in pieces], dtype=np.int64)])
            for name in ("documents", "chunks", "tokens")
        }
        # Where the last chunk ends of all pieces up to each one, (pieces,); a piece may have no chunk.
        last_ends = [base + piece.last_end if piece.chunks else 0 for base, piece in zip(self._first["tokens"], pieces)]
        self._last_ends = np.maximum.accumulate(np.array([0, *last_ends], np.int64))[1:]
        self.counts = {
            split: {name: sum(getattr(size, name) for size in sizes[split]) for name in self._first} for split in SPLITS
        }

    def rows(self, array: str) -> int:
        """Number of rows of an array, or of documents."""
        if array == "stride_chunks":
            return -(-int(self._last_ends[-1]) // STRIDE) if len(self._last_ends) else 0
        return int(self._first[_unit(array)][-1])

    def shards(self) -> list[Shard]:
        """All shards of the store."""
        return [
            Shard(array, number)
            for array in (*ARRAYS, "documents")
            for number in range(-(-self.rows(array) // _shard_rows(array)))
        ]

    def create(self, folder: StoragePath) -> None:
        """Creates the empty arrays. Arrays that exist, from an interrupted run, are left as they are."""
        for name, (tail, _, shard, inner) in ARRAYS.items():
            metadata = {
                "shape": [self.rows(name), *tail],
                "data_type": self._dtype(name),
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard, *tail]}},
                "codecs": [{"name": "sharding_indexed", "configuration": {"chunk_shape": [inner, *tail]}}],
                "fill_value": 0,
            }
            ts.open(array_spec(folder, name) | {"metadata": metadata}, create=True, open=True).result()

    def write(self, folder: StoragePath, shard: Shard, pieces: Sequence[CorpusPiece]) -> None:
        """Writes one shard. Of the pieces, all of them in the store's order, only those with rows in it are read."""
        start = shard.number * _shard_rows(shard.array)
        end = min(start + _shard_rows(shard.array), self.rows(shard.array))
        if shard.array == "documents":
            records = self._records(start, end, pieces)
            lines = [json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records]
            folder.write(documents_file(shard.number), "".join(lines).encode("utf-8", errors="replace"))
            return
        if shard.array == "stride_chunks":
            rows = self._strides(start, end, pieces)
        else:
            rows = self._rows(shard.array, start, end, pieces)
        # The range is exactly one storage shard, so TensorStore writes one new file and reads none. Writers of a part
        # of a shard would have to read and rewrite it, and two at once would lose rows.
        array = ts.open(array_spec(folder, shard.array), open=True).result()
        array[start:end].write(rows.astype(self._dtype(shard.array))).result()

    def manifest(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """The manifest's fields on tokens and splits."""
        boundary = self.counts["train"]["tokens"]
        return {
            "format_version": FORMAT_VERSION,
            "tokenizer_sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "special_ids": asdict(tokenizer.special),
            "splits": {"train": [0, boundary], "heldout": [boundary, self.rows("tokens")]},
            "counts": self.counts,
        }

    def _dtype(self, array: str) -> str:
        """The dtype in `ARRAYS`; int64 for numbers of documents or chunks that exceed int32."""
        numbers = {"chunk_documents": "documents", "stride_chunks": "chunks"}.get(array)
        if numbers is not None and int(self._first[numbers][-1]) >= 1 << 31:
            return "int64"
        return ARRAYS[array][1] or token_dtype(self._vocab_size)

    def _piece_ranges(self, unit: str, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(piece, first row, last row) of the pieces that make up rows `start` to `end` of the store.

        Rows are counted from the piece's start; pieces without such rows are left out.
        """
        first = self._first[unit]
        for number in range(int(np.searchsorted(first, start, side="right")) - 1, len(first) - 1):
            if first[number] >= end:
                return
            low, high = max(start, int(first[number])), min(end, int(first[number + 1]))
            if high > low:
                yield number, low - int(first[number]), high - int(first[number])

    def _rows(self, array: str, start: int, end: int, pieces: Sequence[CorpusPiece]) -> np.ndarray:
        parts = []
        for number, low, high in self._piece_ranges(_unit(array), start, end):
            if array == "tokens":
                parts.append(pieces[number].tokens(low, high))
                continue
            rows = getattr(pieces[number].chunk_table(), _CHUNK_FIELDS[array])[low:high]
            # Spans hold token numbers and `chunk_documents` document numbers, both the piece's own.
            base = {"chunk_spans": "tokens", "chunk_documents": "documents"}.get(array)
            parts.append(rows if base is None else rows + self._first[base][number])
        return np.concatenate(parts)

    def _strides(self, start: int, end: int, pieces: Sequence[CorpusPiece]) -> np.ndarray:
        """Rows of `stride_chunks`: entry i is the first chunk that ends after token 1024 · i.

        That chunk is in the first piece whose last chunk ends after the token, so that one piece alone is read for it.
        """
        at = np.arange(start, end) * STRIDE
        owner = np.searchsorted(self._last_ends, at, side="right")
        rows = np.zeros(end - start, np.int64)
        for number in np.unique(owner):
            ends = pieces[number].chunk_table().spans[:, 1] + self._first["tokens"][number]
            own = owner == number
            rows[own] = self._first["chunks"][number] + np.searchsorted(ends, at[own], side="right")
        return rows

    def _records(self, start: int, end: int, pieces: Sequence[CorpusPiece]) -> Iterator[DocumentRecord]:
        for number, low, high in self._piece_ranges("documents", start, end):
            base, documents = int(self._first["tokens"][number]), pieces[number].documents()
            for i in range(low, high):
                name, source, sha256, last = documents[i]
                first = documents[i - 1].end if i else 0
                yield DocumentRecord(name, source, sha256, self.splits[number], base + first, base + last)


def _unit(array: str) -> str:
    """What an array has one row for each of."""
    return array if array in ("tokens", "documents") else "chunks"


def _shard_rows(array: str) -> int:
    return DOCUMENTS_PER_FILE if array == "documents" else ARRAYS[array][2]
