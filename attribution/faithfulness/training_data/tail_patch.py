"""One step on what was retrieved: does it raise the answer's probability?

Source: Chang et al., Scalable influence and fact tracing (2024), who call it the tail patch.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.attribution.faithfulness.planted.fit import Params
from steerling_jax.attribution.faithfulness.planted.model import FactPrompt, log_probabilities
from steerling_jax.models.steerling.decompose import cross_entropy
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.objectives.training_step import Recipe

STEP = 0.1  # length of the step, in units of the parameters' norm times 1/1000
_DRAWS = 8
_MASKED = 0.4  # as in training


def tail_patch(params: Params, tokens: np.ndarray, asked: FactPrompt, chosen: np.ndarray, recipe: Recipe) -> np.ndarray:
    """The change of each query's log p, (Q,) float64, by a step of gradient descent on its documents `chosen` (Q, k),
    out of tokens (N, T).

    All steps have one length, so that what is compared is the direction: easy and hard documents move the model alike.
    """
    before = log_probabilities(
        params, asked.tokens[None], asked.place, asked.target, config=recipe.model, compute=recipe.compute
    )[0]
    after = [
        _patched(params, tokens[chunks], asked.tokens[q], asked.place[q], asked.target[q], recipe=recipe)
        for q, chunks in enumerate(chosen)
    ]
    return np.asarray(after, np.float64) - np.asarray(before, np.float64)


@partial(jax.jit, static_argnames="recipe")
def _patched(
    params: Params, tokens: jax.Array, query: jax.Array, place: jax.Array, target: jax.Array, *, recipe: Recipe
) -> jax.Array:
    """log p of one query's target after a step on documents (k, T)."""
    model, compute = recipe.model, recipe.compute
    rows = jnp.tile(tokens, (_DRAWS, 1))
    masked = jax.random.uniform(jax.random.key(0), rows.shape) < _MASKED
    noisy = jnp.where(masked, model.mask_token_id, rows)

    def loss(params: Params) -> jax.Array:
        hidden = denoise(params, rows, noisy, config=model, compute=compute, clean_context=False)
        nats = cross_entropy(params, hidden.reshape(-1, model.n_embd), rows.reshape(-1), compute)
        return jnp.sum(nats * masked.reshape(-1)) / jnp.sum(masked)

    gradient = jax.grad(loss)(params)
    scale = STEP * 1e-3 * _norm(params) / jnp.maximum(_norm(gradient), 1e-12)
    moved = jax.tree.map(lambda leaf, g: leaf - scale * g, params, gradient)
    found = log_probabilities(moved, query[None, None], place[None], target[None], config=model, compute=compute)
    return found[0, 0]


def _norm(tree: Params) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))
