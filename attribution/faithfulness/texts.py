"""Texts to explain: openings of held-out documents, continued by the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.generation import Generation, Prompt, generate_many
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.progress import Progress

_ORDINARY = 1 << 20  # tokens that shuffled ones are drawn from


def heldout_openings(store: CorpusStore, count: int, tokens: int, seed: int) -> list[list[int]]:
    """The first `tokens` ids of `count` held-out documents drawn by `seed`; fewer where there are fewer."""
    fit = [d for d in store.documents if d.split == "heldout" and d.end - d.start >= tokens]
    if not fit:
        raise UserError(
            f"No held-out document of {store.folder} has {tokens} tokens: make the corpus with longer ones."
        )
    chosen = np.random.default_rng(seed).permutation(len(fit))[:count]
    return [store.tokens(fit[i].start, fit[i].start + tokens).astype(int).tolist() for i in chosen]


def shuffled_openings(store: CorpusStore, count: int, tokens: int, seed: int) -> list[list[int]]:
    """`count` openings of `tokens` ids: after the beginning of a document ordinary tokens from anywhere in the training
    split."""
    draw, (start, end) = np.random.default_rng([seed, 2]), store.split("train")
    ordinary = store.tokens(start, min(end, start + _ORDINARY)).astype(int)
    ordinary = ordinary[~np.isin(ordinary, list(store.special.names()))]
    return [[store.special.bos_id, *draw.choice(ordinary, tokens - 1).tolist()] for _ in range(count)]


def continued(
    bundle: Bundle, prompts: Sequence[Sequence[int]], config: GenerationConfig, *, stage: str, tell: Progress
) -> list[Generation]:
    """Each prompt's continuation, with its hidden rows; the seed of prompt i is `config`'s plus i."""
    settings = [
        GenerationConfig(**{**vars(config), "seed": (config.seed or 0) + number}) for number in range(len(prompts))
    ]
    found: dict[int, Generation] = {}
    asked = (Prompt(list(ids), one) for ids, one in zip(prompts, settings))
    for number, made in generate_many(bundle, asked, record_hidden=True):
        found[number] = made
        tell(stage, len(found), len(prompts))
    return [found[number] for number in range(len(prompts))]
