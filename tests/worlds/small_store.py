"""Small corpus stores for tests: documents given by the sizes of their chunks."""

from __future__ import annotations

from pathlib import Path

from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.corpus.writer import corpus_writer
from steerling_jax.tokenizer import IdsOnlyTokenizer, SpecialIds

IDS = IdsOnlyTokenizer(SpecialIds.last_of(100), 100)
CONCEPTS = [{"id": 0, "name": "A", "group": "topic", "description": "About a."}]


def write_store(target: Path, sizes: list[list[int]], splits: list[str] | None = None) -> CorpusStore:
    """A store with a document for each list of chunk sizes; tokens count up, labels are the chunk's number."""
    number = 0
    with corpus_writer(target, IDS, concepts=CONCEPTS, source={}) as writer:
        for i, document in enumerate(sizes):
            content = []
            for size in document:
                content.append(([(number + k) % 90 for k in range(size)], [number % 7]))
                number += 1
            split = splits[i] if splits else "train"
            writer.add(name=f"d{i}", source="text", sha256=str(i), split=split, chunks=content)
    return CorpusStore(target)
