"""The middle stages: who is held out, the vocabulary, what annotators need; then each part's tokens, chunks, labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice

import numpy as np

from steerling_jax.io.corpus.pieces import MadePiece, StoredPiece, token_dtype
from steerling_jax.io.corpus.store import SPLITS
from steerling_jax.io.tokenizers.vocabulary import train_sentencepiece
from steerling_jax.train.corpus import examples, label_table
from steerling_jax.train.corpus.annotators import TextChunk, annotate
from steerling_jax.train.corpus.chunking import chunks
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.corpus.split import near_duplicates, side
from steerling_jax.train.corpus.survey import documents
from steerling_jax.train.prepare.job import TOKENIZER, Preparation

_VOCABULARY_CHARACTERS = 50_000_000  # as much text as the vocabulary is made from
_VOCABULARY_PARTS = 256  # it is taken from so many parts, evenly spread
_CLUSTERED_CHARACTERS = 64_000_000  # near-duplicates are looked for in corpora up to this size
_BACKGROUND_CHUNKS, _BACKGROUND_PARTS = 2048, 64


def is_clustered(job: Preparation) -> bool:
    """Whether near-duplicates are looked for: where all text can be held in memory at once."""
    return job.survey["characters"] <= _CLUSTERED_CHARACTERS


def unclustered(job: Preparation) -> list[str]:
    return job.missing(["clusters.json"])


def cluster(job: Preparation, name: str) -> None:
    """Near-duplicates, and documents of one named cluster, get the smallest of their hashes and names as their mark."""
    found: dict[str, str] = {}
    if is_clustered(job):
        hashes, texts, names = [], [], []
        for part in range(len(job.parts)):
            for document in documents(job, part):
                hashes.append(document.sha256)
                texts.append(document.text)
                names.append(document.cluster)
        clusters, mark = near_duplicates(texts, names), {}
        own = [named or sha256 for sha256, named in zip(hashes, names)]
        for cluster, one in zip(clusters, own):
            mark[cluster] = min(mark.get(cluster, one), one)
        found = {s: mark[cluster] for s, cluster, one in zip(hashes, clusters, own) if mark[cluster] != one}
    job.work.write_json(name, found)


def _side(job: Preparation, document: Document) -> str:
    mark = job.clusters.get(document.sha256, document.cluster or document.sha256)
    return side(mark, job.settings.heldout_share)


def without_vocabulary(job: Preparation) -> list[str]:
    return job.missing([TOKENIZER]) if job.vocabulary is None else []


def make_vocabulary(job: Preparation, name: str) -> None:
    parts = range(len(job.parts))
    each = _VOCABULARY_CHARACTERS
    if job.survey["characters"] > _VOCABULARY_CHARACTERS:  # not all can be taken: as much of each of some
        parts = _spread(len(parts), _VOCABULARY_PARTS)
        each //= len(parts)

    def texts() -> Iterator[str]:
        for part in parts:
            left = each
            for document in documents(job, part):
                if left <= 0:
                    break
                if _side(job, document) == "train":
                    yield document.text[:left]
                    left -= len(document.text)

    job.work.write(name, train_sentencepiece(texts(), job.settings.vocab_size))


def unready(job: Preparation) -> list[str]:
    tables = [f"annotators/{number:02}/label_rows" for number in range(len(job.tables))]
    return job.missing([*tables, *(["annotators/examples.npz"] if job.learned else [])])


def make_annotator(job: Preparation, name: str) -> None:
    if name != "annotators/examples.npz":
        number = int(name.split("/")[1])
        label_table.build_table(job.tables[number], job.table_ids[number], job.table_place(number))
        return
    background: list[str] = []
    parts = _spread(len(job.parts), _BACKGROUND_PARTS)
    for part in parts:
        texts = (text for document in documents(job, part) for text, _ in _cut(job, part, document))
        background += islice(texts, -(-_BACKGROUND_CHUNKS // len(parts)))
    job.work.write(name, examples.learn(job.learned, background, job.embed).to_bytes())


# Tokens, chunks, labels --------------------------------------------------------------------------------------------


def unlabelled(job: Preparation) -> list[int]:
    return job.parts_without("parts")


def label_part(job: Preparation, part: int) -> None:
    """Makes the part's two pieces, one of each split."""
    taken = list(documents(job, part))
    by_split: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for document in taken:
        by_split[_side(job, document)].append(document)
    train = by_split["train"]
    by_split["train"] = [train[i] for i in job.document_order(part, len(train))]
    about = {}
    for split, mine in by_split.items():
        piece = MadePiece(job.tokenizer.special, job.tokenizer.vocab_size)
        for document in mine:
            cut = list(_cut(job, part, document))
            labels, origins = annotate(job.annotators, document, _text_chunks([text for text, _ in cut]))
            rows = [(ids, given) for (_, ids), given in zip(cut, labels)]
            piece.add(document.name, document.source, document.sha256, rows, origins)
        kept_piece(job, part, split).keep(piece, piece.size)
        about[split] = asdict(piece.size)
    job.work.write_json(f"parts/{part:06}.json", about)


def _cut(job: Preparation, part: int, document: Document) -> Iterator[tuple[str, list[int]]]:
    """(text, token ids) of each chunk of one of the part's documents."""
    source = job.sources[job.parts[part].source]
    code = source.kind == "code" or document.source == "code"
    return chunks(document.text, job.tokenizer, source.chunk_tokens or job.settings.chunk_tokens, code=code)


def _text_chunks(texts: Sequence[str]) -> list[TextChunk]:
    found, start = [], 0
    for text in texts:
        found.append(TextChunk(text, start))
        start += len(text)
    return found


def kept_piece(job: Preparation, part: int, split: str) -> StoredPiece:
    return StoredPiece(job.work, f"parts/{part:06}-{split}", token_dtype(job.tokenizer.vocab_size))


def _spread(count: int, most: int) -> list[int]:
    """At most so many numbers below `count`, evenly spread."""
    return sorted({int(at) for at in np.linspace(0, count - 1, min(count, most))})
