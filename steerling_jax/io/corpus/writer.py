"""Writing a corpus store from pieces: where each piece goes is known beforehand, so that every storage shard of every
array can be written by itself, by any process, in any order, and comes out the same.

A small store is written from memory in one go with `corpus_writer`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from steerling_jax.corpus.reader import DocumentRecord
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.corpus.pieces import CorpusPiece, MadePiece, PieceSize, token_dtype
from steerling_jax.io.corpus.store import (
    ARRAYS,
    DOCUMENTS_A_FILE,
    FORMAT_VERSION,
    SPLITS,
    STRIDE,
    array_spec,
    documents_file,
)
from steerling_jax.io.storage import StoragePath
from steerling_jax.tokenizer import Tokenizer

_OF_CHUNKS = {"chunk_spans": 0, "chunk_documents": 1, "chunk_labels": 2, "chunk_origins": 3}  # place in a ChunkTable


class Shard(NamedTuple):
    """One storage shard of an array, or one file of document records (array `documents`): what one writer owns."""

    array: str
    number: int


class StoreLayout:
    """Where the rows of each piece go: those of the training split in their order, then the held-out ones."""

    def __init__(self, sizes: Mapping[str, Sequence[PieceSize]], vocab_size: int):
        self._vocab_size = vocab_size
        self.splits = [split for split in SPLITS for _ in sizes[split]]
        pieces = [size for split in SPLITS for size in sizes[split]]
        self._first = {
            name: np.concatenate([[0], np.cumsum([getattr(piece, name) for piece in pieces], dtype=np.int64)])
            for name in ("documents", "chunks", "tokens")
        }  # (pieces + 1,): the number of each piece's first row in the store
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
        """All of the store's shards."""
        return [
            Shard(array, number)
            for array in (*ARRAYS, "documents")
            for number in range(-(-self.rows(array) // _shard_rows(array)))
        ]

    def create(self, place: StoragePath) -> None:
        """Makes the empty arrays; again is no harm."""
        for name, (tail, _, shard, inner) in ARRAYS.items():
            metadata = {
                "shape": [self.rows(name), *tail],
                "data_type": self._dtype(name),
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard, *tail]}},
                "codecs": [{"name": "sharding_indexed", "configuration": {"chunk_shape": [inner, *tail]}}],
                "fill_value": 0,
            }
            ts.open(array_spec(place, name) | {"metadata": metadata}, create=True, open=True).result()

    def write(self, place: StoragePath, shard: Shard, pieces: Sequence[CorpusPiece]) -> None:
        """Writes one shard; of the pieces, in the store's order, only those with rows in it are read."""
        start = shard.number * _shard_rows(shard.array)
        end = min(start + _shard_rows(shard.array), self.rows(shard.array))
        if shard.array == "documents":
            records = self._records(start, end, pieces)
            lines = [json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records]
            place.write(documents_file(shard.number), "".join(lines).encode("utf-8", errors="replace"))
            return
        if shard.array == "stride_chunks":
            rows = self._strides(start, end, pieces)
        else:
            rows = self._rows(shard.array, start, end, pieces)
        ts.open(array_spec(place, shard.array), open=True).result()[start:end].write(
            rows.astype(self._dtype(shard.array))
        ).result()

    def manifest(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What the manifest says of tokens and splits."""
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
        """As `ARRAYS` says; numbers of over 2³¹ documents or chunks take eight bytes."""
        numbers = {"chunk_documents": "documents", "stride_chunks": "chunks"}.get(array)
        if numbers is not None and int(self._first[numbers][-1]) >= 1 << 31:
            return "int64"
        return ARRAYS[array][1] or token_dtype(self._vocab_size)

    def _parts(self, unit: str, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(piece, first row, last row), rows counted in the piece, that make up rows start to end of the store."""
        first = self._first[unit]
        for number in range(int(np.searchsorted(first, start, side="right")) - 1, len(first) - 1):
            if first[number] >= end:
                return
            low, high = max(start, int(first[number])), min(end, int(first[number + 1]))
            if high > low:
                yield number, low - int(first[number]), high - int(first[number])

    def _rows(self, array: str, start: int, end: int, pieces: Sequence[CorpusPiece]) -> np.ndarray:
        found = []
        for number, low, high in self._parts(_unit(array), start, end):
            if array == "tokens":
                found.append(pieces[number].tokens(low, high))
                continue
            rows = pieces[number].chunk_table()[_OF_CHUNKS[array]][low:high]
            base = {"chunk_spans": "tokens", "chunk_documents": "documents"}.get(array)
            found.append(rows if base is None else rows + self._first[base][number])
        return np.concatenate(found)

    def _strides(self, start: int, end: int, pieces: Sequence[CorpusPiece]) -> np.ndarray:
        """Entry i is the first chunk that ends after token i · 1024."""
        at = np.arange(start, end) * STRIDE
        owner = np.searchsorted(self._last_ends, at, side="right")
        found = np.zeros(end - start, np.int64)
        for number in np.unique(owner):
            ends = pieces[number].chunk_table().spans[:, 1] + self._first["tokens"][number]
            mine = owner == number
            found[mine] = self._first["chunks"][number] + np.searchsorted(ends, at[mine], side="right")
        return found

    def _records(self, start: int, end: int, pieces: Sequence[CorpusPiece]) -> Iterator[DocumentRecord]:
        for number, low, high in self._parts("documents", start, end):
            base, documents = int(self._first["tokens"][number]), pieces[number].documents()
            for i in range(low, high):
                name, source, sha256, last = documents[i]
                first = documents[i - 1].end if i else 0
                yield DocumentRecord(name, source, sha256, self.splits[number], base + first, base + last)


def _unit(array: str) -> str:
    """What an array has a row for."""
    return array if array in ("tokens", "documents") else "chunks"


def _shard_rows(array: str) -> int:
    return DOCUMENTS_A_FILE if array == "documents" else ARRAYS[array][2]


class CorpusWriter:
    """Collects the documents of a small store; use it through `corpus_writer`."""

    def __init__(self, tokenizer: Tokenizer):
        self.pieces = {split: MadePiece(tokenizer.special, tokenizer.vocab_size) for split in SPLITS}
        self._last_split = SPLITS[0]

    def add(
        self, *, name: str, source: str, sha256: str, split: str, chunks: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> None:
        """One document, as (token ids, concept labels) of each chunk; labels beyond the first 16 are left out."""
        if SPLITS.index(split) < SPLITS.index(self._last_split):
            raise ValueError("write all documents of the training split before the held-out ones")
        self.pieces[split].add(name, source, sha256, chunks)
        self._last_split = split


@contextlib.contextmanager
def corpus_writer(
    target: str | Path,
    tokenizer: Tokenizer,
    *,
    concepts: Sequence[Mapping[str, Any]],
    source: Mapping[str, Any],
    vocabulary: bytes | None = None,
) -> Iterator[CorpusWriter]:
    """Writes a store, from memory, that appears at `target` only when it is complete.

    `concepts` are dicts of id, name, group and description; `source` is whatever the maker wants remembered;
    `vocabulary` becomes the store's `tokenizer.model`.
    """
    writer = CorpusWriter(tokenizer)
    yield writer
    layout = StoreLayout({split: [piece.size] for split, piece in writer.pieces.items()}, tokenizer.vocab_size)
    with atomic_path(target, folder=True) as folder:
        place = StoragePath(folder)
        layout.create(place)
        for shard in layout.shards():
            layout.write(place, shard, list(writer.pieces.values()))
        if vocabulary is not None:
            place.write("tokenizer.model", vocabulary)
        about = {"source": dict(source), "annotators": ["given"], "concepts": list(concepts)}
        place.write_json("manifest.json", layout.manifest(tokenizer) | about)
