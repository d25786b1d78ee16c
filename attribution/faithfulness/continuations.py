"""Texts to explain: openings of documents, continued by the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.generation import Generation, Prompt, stream_many
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.progress import Progress

_SHUFFLE_POOL = 1 << 20  # tokens from which the tokens of shuffled openings are drawn


def heldout_openings(store: CorpusStore, count: int, tokens: int, seed: int) -> list[list[int]]:
    """The first `tokens` ids of `count` held-out documents drawn by `seed`, or of all if there are fewer.

    Raises `UserError` if no held-out document is long enough.
    """
    documents = [d for d in store.documents if d.split == "heldout" and d.end - d.start >= tokens]
    if not documents:
        raise UserError(
            f"No held-out document of {store.folder} has {tokens} tokens: make the corpus with longer ones."
        )
    chosen = np.random.default_rng(seed).permutation(len(documents))[:count]
    return [store.tokens(documents[i].start, documents[i].start + tokens).astype(int).tolist() for i in chosen]


def shuffled_openings(store: CorpusStore, count: int, tokens: int, seed: int) -> list[list[int]]:
    """`count` openings of `tokens` ids: the beginning-of-document token, then random tokens of the training split."""
    draw, (start, end) = np.random.default_rng([seed, 2]), store.split("train")
    pool = store.tokens(start, min(end, start + _SHUFFLE_POOL)).astype(int)
    pool = pool[~np.isin(pool, list(store.special.names()))]
    return [[store.special.bos_id, *draw.choice(pool, tokens - 1).tolist()] for _ in range(count)]


def generate_continuations(
    bundle: Bundle, prompts: Sequence[Sequence[int]], config: GenerationConfig, *, stage: str, progress: Progress
) -> list[Generation]:
    """Each prompt's continuation with its hidden states; prompt i has the seed of `config` plus i."""
    requests = (
        Prompt(list(ids), replace(config, seed=(config.seed or 0) + number)) for number, ids in enumerate(prompts)
    )
    generations: dict[int, Generation] = {}
    for number, generation in stream_many(bundle, requests, record_hidden=True):
        generations[number] = generation
        progress(stage, len(generations), len(prompts))
    return [generations[number] for number in range(len(prompts))]
