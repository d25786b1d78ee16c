"""Stages "learning labels" and "tokens and labels": builds the annotators, then tokenises and labels the parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice

from steerling_jax.io.corpus.pieces import MemoryPiece, StoredPiece, token_dtype
from steerling_jax.io.corpus.store import SPLITS
from steerling_jax.train.corpus.annotators import TextChunk, annotate
from steerling_jax.train.corpus.chunking import chunks
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.label_join import build_table
from steerling_jax.train.corpus.learned_labels import learn
from steerling_jax.train.prepare.duplicates import corpus_documents
from steerling_jax.train.prepare.preparation import LEARNED_FILE, Preparation
from steerling_jax.train.prepare.splitting import split_of
from steerling_jax.train.prepare.vocabulary import evenly_spaced

_BACKGROUND_CHUNKS, _BACKGROUND_PARTS = 2048, 64  # what learned concepts are contrasted with


def annotator_tasks(preparation: Preparation) -> list[str]:
    """The last file of each annotator that is not built yet."""
    # `label_rows` is the last array of a table to be written.
    tables = [f"annotators/{number:02}/label_rows" for number in range(len(preparation.plan.tables))]
    return preparation.missing([*tables, *([LEARNED_FILE] if preparation.learned_concepts else [])])


def build_annotator(preparation: Preparation, name: str) -> None:
    """Joins one table of labels, or fits the classifiers of all learned concepts."""
    if name != LEARNED_FILE:
        number = int(name.split("/")[1])
        plan = preparation.plan
        build_table(plan.tables[number], plan.table_ids[number], preparation.table_folder(number))
        return
    background: list[str] = []
    parts = evenly_spaced(len(preparation.parts), _BACKGROUND_PARTS)
    for part in parts:
        texts = (
            text for document in corpus_documents(preparation, part) for text, _ in _chunks(preparation, part, document)
        )
        background += islice(texts, -(-_BACKGROUND_CHUNKS // len(parts)))
    learned = learn(preparation.learned_concepts, background, preparation.embed)
    preparation.work.write(name, learned.to_bytes())


# Tokens, chunks, labels --------------------------------------------------------------------------------------------


def label_tasks(preparation: Preparation) -> list[int]:
    """The parts whose pieces are not written yet."""
    return preparation.parts_missing_in("parts")


def label_part(preparation: Preparation, part: int) -> None:
    """Writes the part's two pieces, one per split."""
    by_split: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for document in corpus_documents(preparation, part):
        by_split[split_of(preparation, document)].append(document)
    train = by_split["train"]
    by_split["train"] = [train[i] for i in preparation.document_order(part, len(train))]
    sizes = {}
    for split, documents in by_split.items():
        piece = MemoryPiece(preparation.tokenizer.special, preparation.tokenizer.vocab_size)
        for document in documents:
            cut = list(_chunks(preparation, part, document))
            labels, origins = annotate(preparation.annotators, document, _text_chunks([text for text, _ in cut]))
            rows = [(ids, labels_of_chunk) for (_, ids), labels_of_chunk in zip(cut, labels)]
            piece.add(document.name, document.source, document.sha256, rows, origins)
        stored_piece(preparation, part, split).write(piece, piece.size)
        sizes[split] = asdict(piece.size)
    # Written last: a part is complete when this file exists, so a killed worker's half-written part is done again.
    preparation.work.write_json(f"parts/{part:06}.json", sizes)


def _chunks(preparation: Preparation, part: int, document: Document) -> Iterator[tuple[str, list[int]]]:
    """(text, token ids) of each chunk of one of the part's documents."""
    source = preparation.source_of(part)
    code = source.kind == "code" or document.source == "code"
    target = source.chunk_tokens or preparation.config.chunk_tokens
    return chunks(document.text, preparation.tokenizer, target, code=code)


def _text_chunks(texts: Sequence[str]) -> list[TextChunk]:
    located, start = [], 0
    for text in texts:
        located.append(TextChunk(text, start))
        start += len(text)
    return located


def stored_piece(preparation: Preparation, part: int, split: str) -> StoredPiece:
    """The files of a part's piece of one split."""
    return StoredPiece(preparation.work, f"parts/{part:06}-{split}", token_dtype(preparation.tokenizer.vocab_size))
