"""The data pipeline: slices cover the split, each epoch has a new order, resuming is exact, processes share batches."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.corpus.writer import corpus_writer
from steerling_jax.tokenizer import IdsOnlyTokenizer, SpecialIds
from steerling_jax.train.data.pipeline import Sequences, default_max_chunks, training_examples

T = 32
IDS = IdsOnlyTokenizer(SpecialIds.last_of(1000), 1000)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    """A random store: 60 training documents and 20 held-out ones of a few chunks each."""
    rng = np.random.default_rng(0)
    folder: Path = tmp_path_factory.mktemp("data") / "store"
    with corpus_writer(folder, IDS, concepts=[], source={}) as writer:
        for i in range(80):
            sizes = rng.integers(1, 50, rng.integers(1, 6))
            chunks = [
                (rng.integers(0, 900, n).tolist(), rng.integers(0, 40, rng.integers(0, 5)).tolist()) for n in sizes
            ]
            split = "train" if i < 60 else "heldout"
            writer.add(name=str(i), source="text", sha256=str(i), split=split, chunks=chunks)
    return CorpusStore(folder)


def batches(store: CorpusStore, count: int, **changes) -> list[dict[str, np.ndarray]]:
    settings: dict = {"seq_len": T, "batch_size": 4, "seed": 7} | changes
    return list(islice(training_examples(store, **settings), count))


def assert_same(first: list[dict[str, np.ndarray]], second: list[dict[str, np.ndarray]]):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_sequences_cover_the_split(store: CorpusStore):
    for split in ("train", "heldout"):
        start, end = store.split(split)
        source = Sequences(store, split, T)
        tokens = np.concatenate([source[i]["tokens"] for i in range(len(source))])
        np.testing.assert_array_equal(tokens, store.tokens(start, start + (end - start) // T * T))


def test_examples_point_at_their_chunks(store: CorpusStore):
    """Every token's chunk index and labels agree with the chunks of the store."""
    chunks = [store.chunk(i) for i in range(store.chunk_count)]
    source = Sequences(store, "heldout", T, max_chunks=T)
    start, _ = store.split("heldout")
    for i in range(len(source)):
        example = source[i]
        assert [value.dtype for value in example.values()] == [np.int32] * 4
        used = set()
        for offset, index in enumerate(example["chunk_index"]):
            position = start + i * T + offset
            owner = next((c for c in chunks if c.start <= position < c.end), None)
            assert (index < 0) == (owner is None)
            if owner:
                labels = example["chunk_labels"][index]
                assert tuple(labels[labels >= 0]) == owner.labels
                used.add(int(index))
        assert used == set(range(len(used)))
        assert (example["chunk_labels"][len(used) :] == -1).all()


def test_chunks_that_do_not_fit_have_no_labels(store: CorpusStore):
    full, short = Sequences(store, "train", 256, max_chunks=64), Sequences(store, "train", 256, max_chunks=3)
    for i in range(len(full)):
        expected = np.where(full[i]["chunk_index"] < 3, full[i]["chunk_index"], -1)
        np.testing.assert_array_equal(short[i]["chunk_index"], expected)
        np.testing.assert_array_equal(short[i]["chunk_labels"], full[i]["chunk_labels"][:3])


def test_an_epoch_has_every_sequence_once_and_the_next_another_order(store: CorpusStore):
    count = len(Sequences(store, "train", T))
    drawn = np.concatenate([b["sequence"] for b in batches(store, 2 * count, batch_size=1)])
    first, second = drawn[:count], drawn[count:]
    assert sorted(first) == sorted(second) == list(range(count))
    assert first.tolist() != second.tolist()
    assert first.tolist() != list(range(count))


def test_the_seed_decides_the_order(store: CorpusStore):
    assert_same(batches(store, 5), batches(store, 5))
    assert batches(store, 1)[0]["sequence"].tolist() != batches(store, 1, seed=8)[0]["sequence"].tolist()


def test_shapes(store: CorpusStore):
    (batch,) = batches(store, 1)
    chunks = default_max_chunks(T)
    assert {name: value.shape for name, value in batch.items()} == {
        "tokens": (4, T),
        "chunk_index": (4, T),
        "chunk_labels": (4, chunks, 16),
        "sequence": (4,),
    }


def test_resumes_exactly(store: CorpusStore):
    """Also across the end of an epoch, with a new pipeline."""
    per_epoch = len(Sequences(store, "train", T)) // 4
    for done in (0, 3, per_epoch + 2):
        expected = batches(store, done + 4)[done:]
        assert_same(batches(CorpusStore(store.folder), 4, first_batch=done), expected)


def test_processes_share_each_batch(store: CorpusStore):
    """For any number of processes, the batches are the same, and each process reads its own rows."""
    whole = batches(store, 6)
    for shares in ([[0, 1], [2, 3]], [[0], [1], [2], [3]], [[0, 2], [1, 3]]):
        for rows in shares:
            mine = [{name: value[rows] for name, value in batch.items()} for batch in whole]
            assert_same(batches(store, 6, rows=rows), mine)


def test_split_shorter_than_a_sequence(store: CorpusStore):
    with pytest.raises(UserError, match=r"train split .* choose a smaller seq_len"):
        training_examples(store, seq_len=10**6, batch_size=1, seed=0)
