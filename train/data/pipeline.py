"""Batches from a corpus store: a Grain pipeline with a global shuffle and exact resumption.

An example is a fixed slice of `seq_len` tokens of the split; documents are not padded and continue from one example
into the next. Examples are drawn without replacement over the whole split, in another order each epoch, from one seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import grain
import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import MAX_LABELS, CorpusStore

Example = dict[str, np.ndarray]


def default_max_chunks(seq_len: int) -> int:
    """The number of chunks S per example: one per 16 tokens. Chunks of about 64 tokens use at most two thirds of it."""
    return max(4, -(-seq_len // 16))


class Sequences:
    """The examples of a split, read one at a time; a Grain random-access source.

    Item i is a dict of int32 arrays: `tokens` (T,); `chunk_index` (T,), which of the S chunks a token belongs to, −1
    for none; `chunk_labels` (S, 16), −1 where unused; and `sequence` (), the number i. Tokens of chunks beyond the
    first S have index −1: the model is trained on them, without labels.
    """

    def __init__(self, store: CorpusStore, split: str, seq_len: int, max_chunks: int | None = None):
        """max_chunks: S; default `default_max_chunks`. Raises `UserError` for a split shorter than one example."""
        self._store, self._seq_len = store, seq_len
        self._start, end = store.split(split)
        self._count = (end - self._start) // seq_len
        self._max_chunks = max_chunks or default_max_chunks(seq_len)
        if not self._count:
            raise UserError(
                f"The {split} split of {store.folder} has {end - self._start} tokens, less than a sequence of "
                f"{seq_len}: choose a smaller seq_len, or more text."
            )

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        """Identifies the source in Grain's messages and in saved iterators, so it contains no memory address."""
        return f"Sequences({self._count} of {self._seq_len} tokens from {self._start})"

    def span(self, index: int) -> tuple[int, int]:
        """The tokens [start, end) of the store that are sequence `index`."""
        start = self._start + index * self._seq_len
        return start, start + self._seq_len

    def __getitem__(self, index: Any) -> Example:
        index = int(index)
        start, end = self.span(index)
        first, last = self._store.chunks_between(start, end)
        last = min(last, first + self._max_chunks)
        chunk_index = np.full(self._seq_len, -1, np.int32)
        labels = np.full((self._max_chunks, MAX_LABELS), -1, np.int32)
        if last > first:
            labels[: last - first] = self._store.read("chunk_labels", first, last)
            for number, (a, b) in enumerate(self._store.read("chunk_spans", first, last) - start):
                # The first chunk may begin before the slice. A negative start would count from the array's end.
                chunk_index[max(a, 0) : b] = number
        tokens = self._store.tokens(start, end).astype(np.int32)
        return {
            "tokens": tokens,
            "chunk_index": chunk_index,
            "chunk_labels": labels,
            "sequence": np.array(index, np.int32),
        }


class _Batches:
    """Consecutive examples as batches, of which only `rows` are read; a Grain random-access source."""

    def __init__(self, examples: grain.MapDataset, batch_size: int, rows: Sequence[int]):
        self._examples, self._batch_size, self._rows = examples, batch_size, rows

    def __len__(self) -> int:
        return len(self._examples) // self._batch_size

    def __repr__(self) -> str:
        return f"Batches({len(self._rows)} rows of {self._batch_size})"

    def __getitem__(self, index: Any) -> Example:
        first = int(index) * self._batch_size
        rows = [cast(Example, self._examples[first + row]) for row in self._rows]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def training_examples(
    store: CorpusStore,
    *,
    seq_len: int,
    batch_size: int,
    seed: int,
    max_chunks: int | None = None,
    rows: Sequence[int] | None = None,
    first_batch: int = 0,
) -> grain.IterDataset:
    """`shuffled_batches` of the training split's sequences."""
    source = Sequences(store, "train", seq_len, max_chunks)
    return shuffled_batches(source, batch_size=batch_size, seed=seed, rows=rows, first_batch=first_batch)


def shuffled_batches(
    source: Any, *, batch_size: int, seed: int, rows: Sequence[int] | None = None, first_batch: int = 0
) -> grain.IterDataset:
    """Endless shuffled batches of a random-access source, starting with batch number `first_batch`.

    rows: the rows of each batch to read, when several processes share a batch; default all. Batch n has the same
    content for any `first_batch` and any `rows`.
    """
    # The shuffle is a permutation of indices that is computed per index. So batch n is accessed directly, without
    # reading the ones before, and a step number is the whole state of the pipeline. Repeating after shuffling gives
    # each epoch a new order.
    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    # Batches are a source of their own, not Grain's `.batch()`, so that a process reads its own rows only.
    batches = grain.MapDataset.source(_Batches(examples, batch_size, range(batch_size) if rows is None else rows))
    return batches[first_batch:].to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))
