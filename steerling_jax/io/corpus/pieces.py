"""Pieces of a corpus store: documents with their tokens, chunks and labels, numbered from the piece's own start.

A store is its pieces, one after another (`layout.py` says which rows are whose). A piece is made in memory, and can be
written to a few files, so that another process or a later run puts it into the store.
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
from steerling_jax.tokenizer import NO_ID, SpecialIds

NO_ORIGIN = 255  # in `chunk_origins`, where there is no label


@dataclass(frozen=True)
class PieceSize:
    """Numbers of documents, chunks and tokens. last_end: where the piece's last chunk ends, 0 if it has none."""

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
    """A document and the position in the piece where its tokens end; they start where the previous document's end."""

    name: str
    source: str
    sha256: str
    end: int


class CorpusPiece(Protocol):
    """What writing a store requires of a piece."""

    def tokens(self, start: int, end: int) -> np.ndarray: ...
    def chunk_table(self) -> ChunkTable: ...
    def documents(self) -> list[PieceDocument]: ...


class MemoryPiece:
    """A piece in memory, filled document by document."""

    def __init__(self, special: SpecialIds, vocab_size: int):
        self._marks = special.bos_id, special.endofchunk_id, special.eos_id
        self._dtype = token_dtype(vocab_size)
        self._tokens: list[np.ndarray] = []
        self._spans: list[tuple[int, int]] = []
        self._chunk_documents: list[int] = []
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
        """Adds a document, given as (token ids, concept labels) of each chunk; labels beyond the first 16 are dropped.

        origins: for each chunk, the number of the annotator of each label (default: the first annotator).
        """
        # A vocabulary of another model may lack a special id: then nothing stands in its place.
        begin, end_of_chunk, end = ([] if id == NO_ID else [id] for id in self._marks)
        tokens = list(begin)
        for number, (ids, labels) in enumerate(chunks):
            start = self._count + len(tokens)
            self._spans.append((start, start + len(ids)))
            tokens += [*ids, *end_of_chunk]
            label_origins = origins[number] if origins is not None else [0] * len(labels)
            self._labels.append(_padded(labels, -1, np.int32))
            self._origins.append(_padded(label_origins, NO_ORIGIN, np.uint8))
        self._chunk_documents += [len(self._documents)] * len(chunks)
        tokens += end
        self._tokens.append(np.asarray(tokens, self._dtype))
        self._count += len(tokens)
        self._documents.append(PieceDocument(name, source, sha256, self._count))

    @property
    def size(self) -> PieceSize:
        """The piece's size so far."""
        return PieceSize(len(self._documents), len(self._spans), self._count, self._spans[-1][1] if self._spans else 0)

    def tokens(self, start: int, end: int) -> np.ndarray:
        """Tokens `start` to `end` of the piece."""
        self._tokens = [np.concatenate([np.zeros(0, self._dtype), *self._tokens])]
        return self._tokens[0][start:end]

    def chunk_table(self) -> ChunkTable:
        """The piece's chunks."""
        rows = len(self._spans)
        return ChunkTable(
            np.array(self._spans, np.int64).reshape(rows, 2),
            np.array(self._chunk_documents, np.int32),
            np.array(self._labels, np.int32).reshape(rows, MAX_LABELS),
            np.array(self._origins, np.uint8).reshape(rows, MAX_LABELS),
        )

    def documents(self) -> list[PieceDocument]:
        """The piece's documents."""
        return self._documents


@dataclass(frozen=True)
class StoredPiece:
    """A piece in three files of `folder`: NAME.tokens (raw, `dtype`), NAME.chunks.npz and NAME.documents.jsonl."""

    folder: StoragePath
    name: str
    dtype: str

    def write(self, piece: CorpusPiece, size: PieceSize) -> None:
        """Writes a piece into the files."""
        table = io.BytesIO()
        np.savez(table, **piece.chunk_table()._asdict())
        self.folder.write(f"{self.name}.tokens", piece.tokens(0, size.tokens).tobytes())
        self.folder.write(f"{self.name}.chunks.npz", table.getvalue())
        lines = [json.dumps(document, ensure_ascii=False) for document in piece.documents()]
        self.folder.write(f"{self.name}.documents.jsonl", "\n".join(lines).encode("utf-8", errors="replace"))

    def tokens(self, start: int, end: int) -> np.ndarray:
        """Tokens `start` to `end` of the piece; only these are read."""
        width = np.dtype(self.dtype).itemsize
        content = self.folder.read(f"{self.name}.tokens", start * width, end * width) if end > start else b""
        return np.frombuffer(content or b"", self.dtype)

    def chunk_table(self) -> ChunkTable:
        """The piece's chunks."""
        (content,) = self.folder.read_many([f"{self.name}.chunks.npz"])
        with np.load(io.BytesIO(content)) as table:
            return ChunkTable(**table)

    def documents(self) -> list[PieceDocument]:
        """The piece's documents."""
        (content,) = self.folder.read_many([f"{self.name}.documents.jsonl"])
        return [PieceDocument(*json.loads(line)) for line in content.decode().split("\n") if line]


def token_dtype(vocab_size: int) -> str:
    """The smallest dtype that holds all ids of a vocabulary."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def _padded(values: Sequence[int], filler: int, dtype: type[np.generic]) -> np.ndarray:
    row = np.full(MAX_LABELS, filler, dtype)
    row[: len(values)] = list(values)[:MAX_LABELS]
    return row
