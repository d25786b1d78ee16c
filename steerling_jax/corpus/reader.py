"""The interface through which the core reads a corpus, and its records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from steerling_jax.tokenizer import SpecialIds


@dataclass(frozen=True)
class DocumentRecord:
    """A document of a corpus: its name, source, hash and split, and its half-open token span."""

    name: str
    source: str
    sha256: str
    split: str
    start: int
    end: int


@dataclass(frozen=True)
class Chunk:
    """A chunk: its half-open token span (without `<|endofchunk|>`), its document's number, its known concepts."""

    start: int
    end: int
    document: int
    labels: tuple[int, ...]


class Corpus(Protocol):
    """A labelled corpus, read a slice at a time; `io.corpus.store.CorpusStore` implements it on disk."""

    folder: Path
    special: SpecialIds

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special ones included."""
        ...

    @property
    def concepts(self) -> list[dict[str, Any]]:
        """The known concepts: id, name, group, description."""
        ...

    @property
    def chunk_count(self) -> int:
        """Number of chunks, M."""
        ...

    @property
    def documents(self) -> list[DocumentRecord]:
        """The records of all documents, in the order of their tokens."""
        ...

    def check_tokenizer(self, sha256: str) -> None:
        """Raises `UserError` unless the corpus was made with the tokenizer of that hash."""
        ...

    def split(self, name: str) -> tuple[int, int]:
        """Token range, half-open, of the split `train` or `heldout`."""
        ...

    def read(self, array: str, start: int, end: int) -> np.ndarray:
        """Rows `start` to `end` of an array: `chunk_spans` (M, 2), `chunk_labels` (M, K) and others."""
        ...

    def tokens(self, start: int, end: int) -> np.ndarray:
        """Tokens `start` to `end`, (end - start,) uint16 or uint32."""
        ...

    def chunk(self, number: int) -> Chunk:
        """Chunk `number`: its token span, its document, its labels."""
        ...

    def chunks_between(self, start: int, end: int) -> tuple[int, int]:
        """Numbers, half-open, of the chunks with a token in `start` to `end`."""
        ...
