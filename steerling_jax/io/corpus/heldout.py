"""Reads a split of the corpus as arrays for evaluation: each token once, in sequences, with its chunk."""

from __future__ import annotations

import numpy as np

from steerling_jax.corpus.heldout import HeldOut
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.tokenizers.load import load_tokenizer
from steerling_jax.tokenizer import IdsOnlyTokenizer, Tokenizer


def read_heldout(
    store: CorpusStore,
    seq_len: int,
    *,
    most_tokens: int | None = None,
    tokenizer: Tokenizer | None = None,
    split: str = "heldout",
) -> HeldOut:
    """Reads a split in sequences of `seq_len` tokens, the last one padded.

    Args:
        store: the corpus.
        seq_len: tokens per sequence.
        most_tokens: reads about so many tokens, in whole sequences spread evenly over the split; None reads all.
        tokenizer: counts the bytes of the text; None takes the store's own.
        split: "heldout" or "train".

    Raises:
        UserError: the split is empty.
    """
    start, end = store.split(split)
    count = -(-(end - start) // seq_len)
    if count == 0:
        raise UserError(f"The {split} split of {store.folder} is empty: make the corpus with more documents.")
    selected = np.arange(count)
    if most_tokens is not None and most_tokens < end - start:
        whole = max((end - start) // seq_len, 1)
        selected = np.unique(np.linspace(0, whole - 1, max(most_tokens // seq_len, 1)).astype(np.int64))
    tokens = np.full((len(selected), seq_len), max(store.special.pad_id, 0), np.int32)  # any id, where there is none
    valid = np.zeros(tokens.shape, bool)
    chunk_index = np.full(tokens.shape, -1, np.int32)
    first_chunk, most_chunks = np.zeros(len(selected), np.int64), 1
    for row, number in enumerate(selected):
        a = int(start + number * seq_len)
        b = min(a + seq_len, end)
        tokens[row, : b - a] = store.tokens(a, b)
        valid[row, : b - a] = True
        first, last = store.chunks_between(a, b)
        first_chunk[row], most_chunks = first, max(most_chunks, last - first)
        for index, (p, q) in enumerate(store.read("chunk_spans", first, last) - a):
            chunk_index[row, max(p, 0) : min(q, b - a)] = index
    texts = [tokens[valid]] if len(selected) == count else list(tokens)
    size = byte_count(tokenizer or store_tokenizer(store), texts)
    return HeldOut(tokens, valid, chunk_index, first_chunk, most_chunks, size)


def byte_count(tokenizer: Tokenizer, parts: list[np.ndarray]) -> int | None:
    """UTF-8 length of the text of the tokens, special ones excluded; None if the tokenizer has no vocabulary."""
    if isinstance(tokenizer, IdsOnlyTokenizer):
        return None
    return sum(len(tokenizer.decode(part).encode()) for part in parts)


def store_tokenizer(store: CorpusStore) -> Tokenizer:
    """The tokenizer in the store; ids without text if it has none."""
    return load_tokenizer(store.folder, store.special, store.vocab_size)
