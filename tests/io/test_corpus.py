"""The corpus store: what is written is read back, whatever the shards; numbers mean the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerling_jax.corpus.reader import Chunk
from steerling_jax.io.corpus import layout as writing
from steerling_jax.io.corpus import store as reading
from steerling_jax.io.corpus.pieces import PieceSize
from steerling_jax.io.corpus.store import ARRAYS, MAX_LABELS, CorpusStore
from steerling_jax.io.corpus.writer import corpus_writer
from steerling_jax.io.index import document_keys
from steerling_jax.io.storage import StoragePath
from steerling_jax.tokenizer import IdsOnlyTokenizer, SpecialIds
from tests.worlds.small_store import CONCEPTS, IDS, write_store


def test_layout(tmp_path: Path):
    store = write_store(tmp_path / "store", [[2, 1], [3]], ["train", "heldout"])
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
    store = write_store(tmp_path_factory.mktemp("c") / "store", sizes)
    total = store.split("train")[1]
    spans = [(store.chunk(i).start, store.chunk(i).end) for i in range(store.chunk_count)]
    for _ in range(10):
        start = data.draw(st.integers(0, total - 1))
        end = data.draw(st.integers(start + 1, total))
        first, last = store.chunks_between(start, end)
        assert list(range(first, last)) == [i for i, (a, b) in enumerate(spans) if b > start and a < end]


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Many shards, the last one partial, hold the same rows as one shard."""
    sizes = [[5, 30, 2], [1], [200], [64] * 9]
    whole = write_store(tmp_path / "whole", sizes)
    small = {name: (tail, dtype, 64, 16) for name, (tail, dtype, _, _) in ARRAYS.items()}
    monkeypatch.setattr(writing, "ARRAYS", small)
    parts = write_store(tmp_path / "parts", sizes)
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
    """Only the layout and the empty arrays: numbers above 2³¹ have a wide dtype, and no shard is listed twice."""
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
        write_store(tmp_path / "store", [[1], [1]], ["heldout", "train"])
    assert list(tmp_path.iterdir()) == []


def test_documents_in_several_files_are_all_read_and_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_store(tmp_path / "whole", [[3]] * 12)
    documents, sha256 = whole.documents, whole.documents_sha256
    for module in (reading, writing):
        monkeypatch.setattr(module, "DOCUMENTS_PER_FILE", 5)
    split = write_store(tmp_path / "split", [[3]] * 12)
    files = sorted(path.name for path in split.folder.glob("documents*"))
    assert files == ["documents-00001.jsonl", "documents-00002.jsonl", "documents.jsonl"]
    assert split.documents == documents
    assert split.documents_sha256 == sha256
    last = split.folder / "documents-00002.jsonl"
    last.write_text(last.read_text().replace("d11", "d12"))
    assert CorpusStore(split.folder).documents_sha256 != sha256


def test_keys_of_repeated_documents(tmp_path: Path):
    """A document keeps its key when the corpus grows, also by a repetition of it."""

    def keys(name: str, documents: str) -> list[str]:
        with corpus_writer(tmp_path / name, IDS, concepts=CONCEPTS, source={}) as writer:
            for sha256 in documents:
                writer.add(name=sha256, source="text", sha256=sha256, split="train", chunks=[([1, 2], [])])
        return document_keys(CorpusStore(tmp_path / name))

    a, b = keys("small", "ab")
    assert {len(a), len(b)} == {32}
    assert keys("grown", "baaba") == [b, a, f"{a}.1", f"{b}.1", f"{a}.2"]
