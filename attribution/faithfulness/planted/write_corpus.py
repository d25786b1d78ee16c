"""Writes a planted world as a corpus store, with a vocabulary of whole words, topics as labels and books as sources."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from steerling_jax.attribution.faithfulness.planted.world import World
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.corpus.writer import corpus_writer
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.io.tokenizers.vocabulary import train_word_vocabulary


def write_world(world: World, folder: Path) -> CorpusStore:
    """Writes the store in the format of `steerling prepare`. Each word is one token, each chunk one document."""
    tokenizer = SentencePieceTokenizer(train_word_vocabulary(_texts(world)))
    concepts = [
        {"id": i, "name": name, "group": "planted", "description": " ".join(words)}
        for i, (name, words) in enumerate(zip(world.names, world.lifted))
    ]
    with corpus_writer(
        folder, tokenizer, concepts=concepts, source={"kind": "planted"}, vocabulary=tokenizer.proto
    ) as writer:
        books = {f"book {number}": chunks for number, chunks in enumerate(world.books)}
        for split, shelf in (("train", books), ("heldout", {"heldout": world.heldout})):
            for book, chunks in shelf.items():
                for number, chunk in enumerate(chunks):
                    text = " ".join(chunk.words)
                    writer.add(
                        name=f"{book}, {number}",
                        source=book,
                        sha256=hashlib.sha256(text.encode()).hexdigest(),
                        split=split,
                        chunks=[(tokenizer.encode(text), [chunk.topic])],
                    )
    return CorpusStore(folder)


def _texts(world: World) -> Iterator[str]:
    return (" ".join(chunk.words) for chunk in (*world.chunks, *world.heldout))
