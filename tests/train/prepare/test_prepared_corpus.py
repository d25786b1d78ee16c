"""`prepare` with real text: documents, chunks and labels are those of the text, and a store is made atomically."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from steerling_jax.errors import UserError
from steerling_jax.io.corpus.pieces import NO_ORIGIN
from steerling_jax.io.corpus.store import MAX_LABELS, CorpusStore
from steerling_jax.io.tokenizers.load import load_tokenizer
from steerling_jax.train.corpus.annotators import TextChunk
from steerling_jax.train.corpus.documents import Document, unique
from steerling_jax.train.corpus.ontology import read_concepts
from steerling_jax.train.corpus.python_documents import reference_documents
from steerling_jax.train.corpus.rules import RuleLabels
from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig
from steerling_jax.train.prepare.prepare import prepare

CONFIG = PrepareConfig(vocab_size=600, heldout_share=0.2)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(unique(reference_documents()))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, documents: list[Document]) -> CorpusStore:
    return prepare(tmp_path_factory.mktemp("corpus") / "store", CorpusInputs(documents=documents), CONFIG)


def test_prepared_documents_come_back(store: CorpusStore, documents: list[Document]):
    tokenizer = load_tokenizer(store.folder, store.special, store.vocab_size)
    store.check_tokenizer(tokenizer.sha256)
    originals = {d.sha256: d for d in documents}
    assert {d.sha256 for d in store.documents} == set(originals)
    for record in store.documents:
        original = originals[record.sha256]
        assert (record.name, record.source) == (original.name, "reference")
        assert tokenizer.decode(store.tokens(record.start, record.end).tolist()) == original.text


def test_prepared_chunks_point_at_their_text(store: CorpusStore, documents: list[Document]):
    tokenizer = load_tokenizer(store.folder, store.special, store.vocab_size)
    originals = {d.sha256: d for d in documents}
    rules = RuleLabels(read_concepts())
    for number in range(0, store.chunk_count, 97):
        chunk = store.chunk(number)
        record = store.documents[chunk.document]
        assert record.start < chunk.start <= chunk.end < record.end
        assert store.tokens(chunk.end, chunk.end + 1)[0] == store.special.endofchunk_id
        text = tokenizer.decode(store.tokens(chunk.start, chunk.end).tolist())
        (labels,) = rules.annotate(originals[record.sha256], [TextChunk(text, 0)])
        assert tuple(labels[:MAX_LABELS]) == chunk.labels
        origins = store.read("chunk_origins", number, number + 1)[0]
        assert [store.annotators[i] for i in origins[: len(chunk.labels)]] == ["rules"] * len(chunk.labels)
        assert (origins[len(chunk.labels) :] == NO_ORIGIN).all()


def test_splits_are_token_ranges(store: CorpusStore):
    train, heldout = store.split("train"), store.split("heldout")
    assert train[0] == 0 < train[1] == heldout[0] < heldout[1]
    for document in store.documents:
        start, end = store.split(document.split)
        assert start <= document.start < document.end <= end


def test_prepare_is_deterministic(store: CorpusStore, tmp_path: Path, documents: list[Document]):
    inputs = CorpusInputs(documents=documents)
    again = prepare(tmp_path / "again", inputs, CONFIG)
    other = prepare(tmp_path / "other", inputs, replace(CONFIG, seed=1))
    end = store.split("heldout")[1]
    np.testing.assert_array_equal(again.tokens(0, end), store.tokens(0, end))
    assert again.manifest == store.manifest
    assert {d.sha256: d.split for d in other.documents} == {d.sha256: d.split for d in store.documents}
    assert [d.name for d in other.documents] != [d.name for d in store.documents]


def test_prepare_with_the_users_tokenizer_and_progress(store: CorpusStore, tmp_path: Path, documents: list[Document]):
    tokenizer = load_tokenizer(store.folder, store.special, store.vocab_size)
    events: list[tuple[str, int, int]] = []
    subset = documents[:8]
    inputs = CorpusInputs(documents=subset, tokenizer=tokenizer)
    made = prepare(tmp_path / "s", inputs, progress=lambda *event: events.append(event))
    made.check_tokenizer(tokenizer.sha256)
    assert (made.folder / "tokenizer.model").read_bytes() == (store.folder / "tokenizer.model").read_bytes()
    assert ("tokens and labels", 1, 1) in events
    assert events[-1] == ("finishing", 1, 1)
    assert made.concepts == [concept.about() for concept in read_concepts()]


def test_prepare_samples_sources(tmp_path: Path, documents: list[Document], store: CorpusStore):
    tokenizer = load_tokenizer(store.folder, store.special, store.vocab_size)
    inputs = CorpusInputs(documents=documents, tokenizer=tokenizer)
    made = prepare(tmp_path / "s", inputs, PrepareConfig(shares={"reference": 0.3}))
    assert 5 < len(made.documents) < 40
    with pytest.raises(UserError, match="'poems'"):
        prepare(tmp_path / "t", inputs, PrepareConfig(shares={"poems": 0.3}))
    with pytest.raises(UserError, match="No documents are left"):
        prepare(tmp_path / "t", inputs, PrepareConfig(shares={"reference": 0.0}))
    assert not (tmp_path / "t").exists()


def test_nothing_half_written(tmp_path: Path, documents: list[Document]):
    labelled = [*documents[:3], Document("mine", "text", "Some text of my own to be read.", labels=("Knitting",))]
    with pytest.raises(UserError, match="mine is labelled with the unknown concept 'Knitting'"):
        prepare(tmp_path / "store", CorpusInputs(documents=labelled), PrepareConfig(vocab_size=500))
    assert list(tmp_path.iterdir()) == []
