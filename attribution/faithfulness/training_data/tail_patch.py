"""Tail patch: the change of an answer's log-probability by one training step on the retrieved chunks.

Source: Chang et al., Scalable influence and fact tracing for large language model pretraining (2024).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.attribution.faithfulness.planted.fact_prompts import FactPrompts, target_log_probabilities
from steerling_jax.attribution.faithfulness.planted.training import Params
from steerling_jax.models.steerling.decompose import cross_entropy
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.objectives.training_step import Recipe

STEP = 1e-4  # length of the step, in units of the parameters' norm
_DRAWS = 8  # maskings of each document
_MASKED = 0.4  # share of masked tokens, as in training


def tail_patch(
    params: Params, tokens: np.ndarray, prompts: FactPrompts, chosen: np.ndarray, recipe: Recipe
) -> np.ndarray:
    """Change (Q,) float64 of each prompt's log-probability by a gradient step on its documents `chosen` (Q, k), which
    number rows of tokens (N, T).

    All steps have the same length, so that only their directions are compared: a step along the gradient itself would
    be longer for documents that the model predicts badly.
    """
    before = target_log_probabilities(
        params, prompts.tokens[None], prompts.place, prompts.target, config=recipe.model, compute=recipe.compute
    )[0]
    after = [
        _patched(params, tokens[chunks], prompts.tokens[q], prompts.place[q], prompts.target[q], recipe=recipe)
        for q, chunks in enumerate(chosen)
    ]
    return np.asarray(after, np.float64) - np.asarray(before, np.float64)


@partial(jax.jit, static_argnames="recipe")
def _patched(
    params: Params, tokens: jax.Array, query: jax.Array, place: jax.Array, target: jax.Array, *, recipe: Recipe
) -> jax.Array:
    """Log-probability of one prompt's target after a step on documents (k, T)."""
    model, compute = recipe.model, recipe.compute
    rows = jnp.tile(tokens, (_DRAWS, 1))
    masked = jax.random.uniform(jax.random.key(0), rows.shape) < _MASKED
    noisy = jnp.where(masked, model.mask_token_id, rows)

    def loss(params: Params) -> jax.Array:
        hidden = denoise(params, rows, noisy, config=model, compute=compute, clean_context=False)
        nats = cross_entropy(params, hidden.reshape(-1, model.n_embd), rows.reshape(-1), compute)
        return jnp.sum(nats * masked.reshape(-1)) / jnp.sum(masked)

    gradient = jax.grad(loss)(params)
    scale = STEP * _norm(params) / jnp.maximum(_norm(gradient), 1e-12)
    moved = jax.tree.map(lambda leaf, g: leaf - scale * g, params, gradient)
    after = target_log_probabilities(moved, query[None, None], place[None], target[None], config=model, compute=compute)
    return after[0, 0]


def _norm(tree: Params) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))
