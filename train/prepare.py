"""From documents to a corpus store: split, vocabulary, chunks and labels, written as one folder."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from steerling_jax.errors import UserError
from steerling_jax.io.corpus import SPLITS, CorpusStore
from steerling_jax.io.corpus_writer import corpus_writer
from steerling_jax.io.tokenizer import SentencePieceTokenizer, Tokenizer, train_sentencepiece

from .chunking import chunks
from .documents import Document, unique
from .ontology import Ontology, bundled_ontology
from .split import keep, split_documents

_VOCABULARY_CHARACTERS = 50_000_000  # as much text as the vocabulary is made from


@dataclass(frozen=True)
class Progress:
    """What `prepare` is at, and how many of its documents are done."""

    stage: str
    done: int
    total: int


def prepare(
    out_folder: str | Path,
    *,
    documents: Iterable[Document],
    vocab_size: int = 4096,
    chunk_tokens: int = 64,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    sources: Mapping[str, float] | None = None,
    ontology: Ontology | None = None,
    heldout_share: float = 0.04,
    progress: Callable[[Progress], None] = lambda _: None,
) -> CorpusStore:
    """Makes the store at `out_folder`, all or nothing, and opens it. Texts are held in memory, tokens are not.

    A SentencePiece vocabulary of `vocab_size` is made from the training split and kept in the store as
    `tokenizer.model`, unless a `tokenizer` is given. `sources` maps a source to the share of its documents to keep, all
    of them where it is not named. The same documents, settings and seed give the same store. Raises `UserError` for
    unknown sources, unknown concept names and a vocabulary that the text cannot fill.
    """
    ontology = ontology or bundled_ontology()
    kept = _sample(unique(documents), sources or {})
    progress(Progress("splitting", 0, len(kept)))
    splits = _ordered_splits(kept, heldout_share, seed)
    progress(Progress("making the vocabulary", 0, len(kept)))
    tokenizer = tokenizer or _new_tokenizer(splits["train"], vocab_size)
    source = {
        "sources": dict(sources or {}),
        "chunk_tokens": chunk_tokens,
        "seed": seed,
        "heldout_share": heldout_share,
    }
    vocabulary = tokenizer.proto if isinstance(tokenizer, SentencePieceTokenizer) else None
    with corpus_writer(
        out_folder, tokenizer, concepts=ontology.manifest(), source=source, vocabulary=vocabulary
    ) as writer:
        for done, (split, document) in enumerate((side, text) for side in SPLITS for text in splits[side]):
            labelled = _labelled_chunks(document, tokenizer, chunk_tokens, ontology)
            writer.add(
                name=document.name, source=document.source, sha256=document.sha256, split=split, chunks=list(labelled)
            )
            progress(Progress("tokens and labels", done + 1, len(kept)))
    return CorpusStore(out_folder)


def _sample(documents: Iterable[Document], sources: Mapping[str, float]) -> list[Document]:
    found, kept = set(), []
    for document in documents:
        found.add(document.source)
        if keep(document, sources.get(document.source, 1.0)):
            kept.append(document)
    if missing := sorted(set(sources) - found):
        raise UserError(f"No document has the source {missing[0]!r}: use {', '.join(sorted(found))}.")
    if not kept:
        raise UserError("No documents are left to make a corpus from: keep a larger share of the sources.")
    return kept


def _ordered_splits(documents: Sequence[Document], heldout_share: float, seed: int) -> dict[str, list[Document]]:
    """Documents of each split, the training ones in a seeded order."""
    splits: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for document, split in zip(documents, split_documents(documents, heldout_share), strict=True):
        splits[split].append(document)
    random.Random(seed).shuffle(splits["train"])
    return splits


def _new_tokenizer(documents: Iterable[Document], vocab_size: int) -> SentencePieceTokenizer:
    def texts() -> Iterator[str]:
        left = _VOCABULARY_CHARACTERS
        for document in documents:
            yield document.text[:left]
            left -= len(document.text)
            if left <= 0:
                return

    return SentencePieceTokenizer(train_sentencepiece(texts(), vocab_size))


def _labelled_chunks(
    document: Document, tokenizer: Tokenizer, target: int, ontology: Ontology
) -> Iterator[tuple[list[int], list[int]]]:
    for text, ids in chunks(document.text, tokenizer, target, code=document.source == "code"):
        yield ids, ontology.label_chunk(text, document)
