"""Pieces of a corpus store: documents with their tokens, chunks and labels, numbered from the piece's own beginning.

A store is pieces one after another (`corpus_writer.py` says where each goes). A piece is made in memory and may be kept
as a few files, so that another process, or a later run, can place it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from steerling_jax.io.corpus.store import MAX_LABELS
from steerling_jax.io.storage import StoragePath
from steerling_jax.tokenizer import SpecialIds

NO_ORIGIN = 255  # in `chunk_origins`, where there is no label


@dataclass(frozen=True)
class PieceSize:
    """last_end: where the piece's last chunk ends, 0 if it has none."""

    documents: int
    chunks: int
    tokens: int
    last_end: int


class ChunkTable(NamedTuple):
    """m chunks: spans (m, 2) int64, documents (m,) int32, labels (m, 16) int32, origins (m, 16) uint8."""

    spans: np.ndarray
    documents: np.ndarray
    labels: np.ndarray
    origins: np.ndarray


class PieceDocument(NamedTuple):
    """A document and where its tokens end in the piece; they begin where those of the one before end."""

    name: str
    source: str
    sha256: str
    end: int


class CorpusPiece(Protocol):
    """What the writer of a store asks of a piece."""

    def tokens(self, start: int, end: int) -> np.ndarray: ...
    def chunk_table(self) -> ChunkTable: ...
    def documents(self) -> list[PieceDocument]: ...


class MadePiece:
    """A piece in memory, filled document by document."""

    def __init__(self, special: SpecialIds, vocab_size: int):
        self._special, self._dtype = special, token_dtype(vocab_size)
        self._tokens: list[np.ndarray] = []
        self._spans: list[tuple[int, int]] = []
        self._owners: list[int] = []
        self._labels: list[np.ndarray] = []
        self._origins: list[np.ndarray] = []
        self._documents: list[PieceDocument] = []
        self._count = 0

    def add(
        self,
        name: str,
        source: str,
        sha256: str,
        chunks: Sequence[tuple[Sequence[int], Sequence[int]]],
        origins: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """One document, as (token ids, concept labels) of each chunk; labels beyond the first 16 are left out.

        origins: of each chunk's labels, which annotator gave them (default: the first).
        """
        tokens = [self._special.bos_id]
        for number, (ids, labels) in enumerate(chunks):
            start = self._count + len(tokens)
            self._spans.append((start, start + len(ids)))
            tokens += [*ids, self._special.endofchunk_id]
            given = origins[number] if origins is not None else [0] * len(labels)
            self._labels.append(_row(labels, -1, np.int32))
            self._origins.append(_row(given, NO_ORIGIN, np.uint8))
        self._owners += [len(self._documents)] * len(chunks)
        tokens.append(self._special.eos_id)
        self._tokens.append(np.asarray(tokens, self._dtype))
        self._count += len(tokens)
        self._documents.append(PieceDocument(name, source, sha256, self._count))

    @property
    def size(self) -> PieceSize:
        return PieceSize(len(self._documents), len(self._spans), self._count, self._spans[-1][1] if self._spans else 0)

    def tokens(self, start: int, end: int) -> np.ndarray:
        self._tokens = [np.concatenate([np.zeros(0, self._dtype), *self._tokens])]
        return self._tokens[0][start:end]

    def chunk_table(self) -> ChunkTable:
        rows = len(self._spans)
        return ChunkTable(
            np.array(self._spans, np.int64).reshape(rows, 2),
            np.array(self._owners, np.int32),
            np.array(self._labels, np.int32).reshape(rows, MAX_LABELS),
            np.array(self._origins, np.uint8).reshape(rows, MAX_LABELS),
        )

    def documents(self) -> list[PieceDocument]:
        return self._documents


@dataclass(frozen=True)
class StoredPiece:
    """A piece in files whose names begin with `name`."""

    place: StoragePath
    name: str
    dtype: str

    def keep(self, piece: CorpusPiece, size: PieceSize) -> None:
        table = io.BytesIO()
        np.savez(table, **piece.chunk_table()._asdict())
        self.place.write(f"{self.name}.tokens", piece.tokens(0, size.tokens).tobytes())
        self.place.write(f"{self.name}.chunks.npz", table.getvalue())
        lines = [json.dumps(document, ensure_ascii=False) for document in piece.documents()]
        self.place.write(f"{self.name}.documents.jsonl", "\n".join(lines).encode("utf-8", errors="replace"))

    def tokens(self, start: int, end: int) -> np.ndarray:
        width = np.dtype(self.dtype).itemsize
        content = self.place.read(f"{self.name}.tokens", start * width, end * width) if end > start else b""
        return np.frombuffer(content or b"", self.dtype)

    def chunk_table(self) -> ChunkTable:
        (content,) = self.place.read_many([f"{self.name}.chunks.npz"])
        with np.load(io.BytesIO(content)) as table:
            return ChunkTable(**table)

    def documents(self) -> list[PieceDocument]:
        (content,) = self.place.read_many([f"{self.name}.documents.jsonl"])
        return [PieceDocument(*json.loads(line)) for line in content.decode().split("\n") if line]


def token_dtype(vocab_size: int) -> str:
    """The smallest dtype that holds the vocabulary."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def _row(values: Sequence[int], filler: int, dtype: type[np.generic]) -> np.ndarray:
    row = np.full(MAX_LABELS, filler, dtype)
    row[: len(values)] = list(values)[:MAX_LABELS]
    return row
