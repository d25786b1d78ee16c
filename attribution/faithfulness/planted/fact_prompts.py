"""Queries of the planted world as prompts of the model, and the probabilities of their answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.attribution.faithfulness.planted.training import Params
from steerling_jax.attribution.faithfulness.planted.world import FactQuery
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import cross_entropy
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.tokenizer import Tokenizer

_DRAWS = 8  # noisy prompts of a query
_MASKED = 0.2  # share of masked tokens of a noisy prompt


class FactPrompts(NamedTuple):
    """Prompts of Q queries.

    Attributes:
        tokens: (Q, T) int32, the tokens before the queried word, then masks.
        place: (Q,) int32, position of the queried word.
        target: (Q,) int32, token id of the queried word.
    """

    tokens: np.ndarray
    place: np.ndarray
    target: np.ndarray


def make_fact_prompts(queries: Sequence[FactQuery], tokenizer: Tokenizer, length: int) -> FactPrompts:
    """Prompts of `length` tokens for the first queried word of each query."""
    special = tokenizer.special
    tokens = np.full((len(queries), length), special.mask_id, np.int32)
    place, target = np.zeros(len(queries), np.int32), np.zeros(len(queries), np.int32)
    for row, query in enumerate(queries):
        ids = [special.bos_id, *tokenizer.encode(" ".join(query.words))]
        place[row], target[row] = query.start + 1, ids[query.start + 1]
        tokens[row, : place[row]] = ids[: place[row]]
    return FactPrompts(tokens, place, target)


def answer_log_probabilities(
    params: Params, prompts: FactPrompts, *, config: ModelConfig, compute: Compute
) -> np.ndarray:
    """Log-probability of each prompt's target, (2, Q) float32: after the prompt, and its mean over noisy prompts."""
    draws = np.random.default_rng(0).random((_DRAWS, *prompts.tokens.shape)) < _MASKED
    draws[:, :, 0] = False  # position 0 is the beginning-of-document token
    canvases = np.concatenate([prompts.tokens[None], np.where(draws, config.mask_token_id, prompts.tokens)])
    values = target_log_probabilities(params, canvases, prompts.place, prompts.target, config=config, compute=compute)
    return np.stack([values[0], np.mean(np.asarray(values[1:]), axis=0)])


@partial(jax.jit, static_argnames=("config", "compute"))
def target_log_probabilities(
    params: Params, canvases: jax.Array, place: jax.Array, target: jax.Array, *, config: ModelConfig, compute: Compute
) -> jax.Array:
    """Log-probabilities (m, Q) of the tokens target (Q,) at positions place (Q,) of canvases (m, Q, T)."""
    m, Q, T = canvases.shape
    rows = canvases.reshape(m * Q, T)
    hidden = denoise(params, rows, rows, config=config, compute=compute, clean_context=False)
    places, targets = jnp.tile(place, m), jnp.tile(target, m)
    return -cross_entropy(params, hidden[jnp.arange(m * Q), places], targets, compute).reshape(m, Q)
