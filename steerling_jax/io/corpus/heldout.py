"""The held-out split as arrays for evaluation: every token once, in sequences, with the chunks that they belong to."""

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
    """The split in sequences of `seq_len`: all of it, or about `most_tokens` in whole sequences spread evenly over it.

    tokenizer: counts the bytes (default: the one kept in the store).
    """
    start, end = store.split(split)
    count = -(-(end - start) // seq_len)
    if count == 0:
        raise UserError(f"The {split} split of {store.folder} is empty: make the corpus with more documents.")
    chosen = np.arange(count)
    if most_tokens is not None and most_tokens < end - start:
        whole = max((end - start) // seq_len, 1)
        chosen = np.unique(np.linspace(0, whole - 1, max(most_tokens // seq_len, 1)).astype(np.int64))
    tokens = np.full((len(chosen), seq_len), store.special.pad_id, np.int32)
    valid = np.zeros(tokens.shape, bool)
    chunk_index = np.full(tokens.shape, -1, np.int32)
    first_chunk, most_chunks = np.zeros(len(chosen), np.int64), 1
    for row, number in enumerate(chosen):
        a = int(start + number * seq_len)
        b = min(a + seq_len, end)
        tokens[row, : b - a] = store.tokens(a, b)
        valid[row, : b - a] = True
        first, last = store.chunks_between(a, b)
        first_chunk[row], most_chunks = first, max(most_chunks, last - first)
        for index, (p, q) in enumerate(store.read("chunk_spans", first, last) - a):
            chunk_index[row, max(p, 0) : min(q, b - a)] = index
    texts = [tokens[valid]] if len(chosen) == count else list(tokens)
    size = byte_count(tokenizer or store_tokenizer(store), texts)
    return HeldOut(tokens, valid, chunk_index, first_chunk, most_chunks, size)


def byte_count(tokenizer: Tokenizer, parts: list[np.ndarray]) -> int | None:
    """UTF-8 length of the text of these tokens; special tokens have none."""
    if isinstance(tokenizer, IdsOnlyTokenizer):
        return None
    return sum(len(tokenizer.decode(part).encode()) for part in parts)


def store_tokenizer(store: CorpusStore) -> Tokenizer:
    """The tokenizer that is kept in the store, else bare ids."""
    return load_tokenizer(store.folder, store.special, store.vocab_size)
