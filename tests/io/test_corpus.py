"""The corpus store and `prepare`: what goes in comes out, numbers mean the same everywhere, bad stores are told."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerling_jax.corpus.reader import Chunk
from steerling_jax.errors import UserError
from steerling_jax.io.corpus import layout as writing
from steerling_jax.io.corpus import store as reading
from steerling_jax.io.corpus.pieces import NO_ORIGIN, PieceSize
from steerling_jax.io.corpus.store import ARRAYS, MAX_LABELS, CorpusStore
from steerling_jax.io.corpus.writer import corpus_writer
from steerling_jax.io.storage import StoragePath
from steerling_jax.io.tokenizers.load import load_tokenizer
from steerling_jax.tokenizer import IdsOnlyTokenizer, SpecialIds
from steerling_jax.train.corpus.annotators import TextChunk
from steerling_jax.train.corpus.documents import Document, unique
from steerling_jax.train.corpus.ontology import read_concepts
from steerling_jax.train.corpus.python_documents import reference_documents
from steerling_jax.train.corpus.rules import RuleLabels
from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig
from steerling_jax.train.prepare.prepare import prepare

IDS = IdsOnlyTokenizer(SpecialIds.last_of(100), 100)
CONFIG = PrepareConfig(vocab_size=600, heldout_share=0.2)
CONCEPTS = [{"id": 0, "name": "A", "group": "topic", "description": "About a."}]


def write(target: Path, sizes: list[list[int]], splits: list[str] | None = None) -> CorpusStore:
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


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(unique(reference_documents()))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, documents: list[Document]) -> CorpusStore:
    return prepare(tmp_path_factory.mktemp("corpus") / "store", CorpusInputs(documents=documents), CONFIG)


def test_layout(tmp_path: Path):
    store = write(tmp_path / "store", [[2, 1], [3]], ["train", "heldout"])
    s = IDS.special
    assert store.tokens(0, 13).tolist() == [
        s.bos_id, 0, 1, s.endofchunk_id, 1, s.endofchunk_id, s.eos_id, s.bos_id, 2, 3, 4, s.endofchunk_id, s.eos_id,
    ]  # fmt: skip
    assert (store.split("train"), store.split("heldout")) == ((0, 7), (7, 13))
    assert store.manifest["counts"]["heldout"] == {"documents": 1, "chunks": 1, "tokens": 6}
    assert [store.chunk(i) for i in range(3)] == [
        Chunk(1, 3, 0, (0,)), Chunk(4, 5, 0, (1,)), Chunk(8, 11, 1, (2,)),
    ]  # fmt: skip
    assert [(d.name, d.split, d.start, d.end) for d in store.documents] == [
        ("d0", "train", 0, 7), ("d1", "heldout", 7, 13),
    ]  # fmt: skip
    assert store.tokens(0, 1).dtype == np.uint16
    assert store.special == IDS.special
    assert store.concepts == CONCEPTS


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(1, 700), min_size=0, max_size=6), min_size=1, max_size=12), st.data())
def test_chunks_between(tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], data: st.DataObject):
    store = write(tmp_path_factory.mktemp("c") / "store", sizes)
    total = store.split("train")[1]
    spans = [(store.chunk(i).start, store.chunk(i).end) for i in range(store.chunk_count)]
    for _ in range(10):
        start = data.draw(st.integers(0, total - 1))
        end = data.draw(st.integers(start + 1, total))
        first, last = store.chunks_between(start, end)
        assert list(range(first, last)) == [i for i, (a, b) in enumerate(spans) if b > start and a < end]


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Many shards and a partial one hold the same as one."""
    sizes = [[5, 30, 2], [1], [200], [64] * 9]
    whole = write(tmp_path / "whole", sizes)
    small = {name: (tail, dtype, 64, 16) for name, (tail, dtype, _, _) in ARRAYS.items()}
    monkeypatch.setattr(writing, "ARRAYS", small)
    parts = write(tmp_path / "parts", sizes)
    assert len(list((tmp_path / "parts" / "tokens" / "c").iterdir())) > 5
    for name in ARRAYS:
        count = whole.chunk_count if name.startswith("chunk") else whole.split("train")[1]
        count = 1 if name == "stride_chunks" else count
        np.testing.assert_array_equal(whole.read(name, 0, count), parts.read(name, 0, count))


def test_large_vocabularies_take_four_bytes(tmp_path: Path):
    tokenizer = IdsOnlyTokenizer(SpecialIds.last_of(100_281), 100_281)
    with corpus_writer(tmp_path / "store", tokenizer, concepts=[], source={}) as writer:
        writer.add(name="d", source="text", sha256="0", split="train", chunks=[([70_000], list(range(20)))])
    store = CorpusStore(tmp_path / "store")
    assert store.tokens(0, 4).tolist() == [100_278, 70_000, 100_279, 100_276]
    assert store.chunk(0).labels == tuple(range(MAX_LABELS))


def test_a_trillion_tokens(tmp_path: Path):
    """Made as far as it needs no data: numbers of over 2³¹ chunks have room, and every row one shard."""
    part = PieceSize(documents=100_000, chunks=1_000_000, tokens=100_000_000, last_end=99_999_999)
    layout = writing.StoreLayout({"train": [part] * 13_000, "heldout": [part] * 500}, 100_281)
    layout.create(StoragePath(tmp_path))
    dtypes = {name: json.loads((tmp_path / name / "zarr.json").read_text())["data_type"] for name in ARRAYS}
    assert (dtypes["tokens"], dtypes["stride_chunks"], dtypes["chunk_documents"]) == ("uint32", "int64", "int32")
    shards = layout.shards()
    assert len(shards) == len(set(shards)) < 150_000
    assert layout.rows("tokens") == 1_350_000_000_000
    assert layout.counts["heldout"]["chunks"] == 500_000_000


def test_splits_come_in_order(tmp_path: Path):
    with pytest.raises(ValueError, match="before the held-out"):
        write(tmp_path / "store", [[1], [1]], ["heldout", "train"])
    assert list(tmp_path.iterdir()) == []


# Prepared from real text


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


# Bad stores


@pytest.fixture
def copied(store: CorpusStore, tmp_path: Path) -> Path:
    return shutil.copytree(store.folder, tmp_path / "copy")


def test_missing_store(tmp_path: Path):
    with pytest.raises(UserError, match="There is no corpus at"):
        CorpusStore(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"text"', "7"])
def test_damaged_manifest(copied: Path, content: str):
    (copied / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        CorpusStore(copied)


def test_incomplete_manifest(copied: Path):
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest["special_ids"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json"):
        CorpusStore(copied)


def test_unknown_format(copied: Path):
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(UserError, match="format 99"):
        CorpusStore(copied)


def test_stores_made_before_labels_had_origins(copied: Path):
    shutil.rmtree(copied / "chunk_origins")
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest["annotators"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    old = CorpusStore(copied)
    assert old.annotators == []
    assert (old.read("chunk_labels", 0, 9) >= 0).any()


@pytest.mark.parametrize("array", list(ARRAYS))
def test_missing_array(copied: Path, array: str):
    shutil.rmtree(copied / array)
    with pytest.raises(UserError, match="damaged or incomplete"):
        CorpusStore(copied)


def test_damaged_tokens(copied: Path):
    for path in (copied / "tokens" / "c").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="Cannot read tokens"):
        CorpusStore(copied).tokens(0, 100)


def test_damaged_documents(copied: Path):
    with (copied / "documents.jsonl").open("a") as lines:
        lines.write("{half a li")
    with pytest.raises(UserError, match=r"documents\.jsonl, line \d+"):
        _ = CorpusStore(copied).documents


def test_beyond_the_end(store: CorpusStore):
    with pytest.raises(UserError, match="shorter than that"):
        store.tokens(0, 10**9)


def test_another_tokenizer(store: CorpusStore):
    with pytest.raises(UserError, match="was made with another tokenizer"):
        store.check_tokenizer(IDS.sha256)


def test_documents_of_many_are_in_many_files_and_all_say_what_the_corpus_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write(tmp_path / "whole", [[3]] * 12)
    documents, sha256 = whole.documents, whole.documents_sha256
    for module in (reading, writing):
        monkeypatch.setattr(module, "DOCUMENTS_PER_FILE", 5)
    split = write(tmp_path / "split", [[3]] * 12)
    files = sorted(path.name for path in split.folder.glob("documents*"))
    assert files == ["documents-00001.jsonl", "documents-00002.jsonl", "documents.jsonl"]
    assert split.documents == documents
    assert split.documents_sha256 == sha256
    last = split.folder / "documents-00002.jsonl"
    last.write_text(last.read_text().replace("d11", "d12"))
    assert CorpusStore(split.folder).documents_sha256 != sha256
