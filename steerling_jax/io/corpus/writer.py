"""Writes a small corpus store from memory; `steerling prepare` writes large ones shard by shard with `layout.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.corpus.layout import StoreLayout
from steerling_jax.io.corpus.pieces import MemoryPiece
from steerling_jax.io.corpus.store import SPLITS
from steerling_jax.io.storage import StoragePath
from steerling_jax.tokenizer import Tokenizer


class CorpusWriter:
    """Collects the documents of a small store; `corpus_writer` creates and writes it."""

    def __init__(self, tokenizer: Tokenizer):
        self.pieces = {split: MemoryPiece(tokenizer.special, tokenizer.vocab_size) for split in SPLITS}
        self._last_split = SPLITS[0]

    def add(
        self, *, name: str, source: str, sha256: str, split: str, chunks: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> None:
        """Adds a document, given as (token ids, concept labels) of each chunk; labels beyond the first 16 are dropped.

        Raises `ValueError` for a training document after a held-out one.
        """
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
    """Yields a writer for documents; on leaving the context, the store appears at `target` atomically.

    Args:
        target: the store's folder; an existing one is replaced.
        tokenizer: the tokenizer of the token ids.
        concepts: the known concepts, dicts of id, name, group and description.
        source: any JSON value that describes where the corpus comes from.
        vocabulary: the content of the store's `tokenizer.model`; None writes none.
    """
    writer = CorpusWriter(tokenizer)
    yield writer
    layout = StoreLayout({split: [piece.size] for split, piece in writer.pieces.items()}, tokenizer.vocab_size)
    with atomic_path(target, folder=True) as path:
        folder = StoragePath(path)
        layout.create(folder)
        for shard in layout.shards():
            layout.write(folder, shard, list(writer.pieces.values()))
        if vocabulary is not None:
            folder.write("tokenizer.model", vocabulary)
        about = {"source": dict(source), "annotators": ["given"], "concepts": list(concepts)}
        folder.write_json("manifest.json", layout.manifest(tokenizer) | about)
