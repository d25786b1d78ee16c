"""Losses of passages and their projected gradients, which influence compares.

A passage is read at a fixed noise (`Masking`), so equal passages have equal gradients. With independent noise,
gradients of equal texts would differ, and comparing two texts would compare two random masks as well.

Legend: B passages, R rows (masked positions that count), F features, N passages in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.attribution.index.passage_states import span_hidden
from steerling_jax.attribution.index.passages import Masking, Passage, PassageBatch, passage_batches
from steerling_jax.attribution.index.projection import (
    Projection,
    Signs,
    feature_blocks,
    project_gradients,
    projection_signs,
)
from steerling_jax.errors import UserError
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import cross_entropy, logit_features
from steerling_jax.progress import Progress, no_progress

_FLOAT32 = Compute()
_MASKING = Masking()
_PROJECTION = Projection()


def _losses(params: Params, batch: PassageBatch, config: ModelConfig, compute: Compute) -> jax.Array:
    """Nats (B,) of each passage, a sum over its span in which every token counts once."""
    hidden = span_hidden(params, batch, config, compute)
    B, R, D = hidden.shape
    features = logit_features(params, hidden.reshape(B * R, D), config, compute)
    place = batch.first[:, None] + batch.rows % batch.noisy.shape[2]
    target = jnp.take_along_axis(batch.clean, place, axis=1)
    nats = cross_entropy(params, features, target.reshape(-1), compute)
    return jnp.sum(nats.reshape(B, R) * batch.weight, axis=1)


_compiled_losses = partial(jax.jit, static_argnames=("config", "compute"))(_losses)


def passage_losses(
    params: Params,
    passages: Sequence[Passage],
    *,
    config: ModelConfig,
    compute: Compute = _FLOAT32,
    masking: Masking = _MASKING,
    batch_size: int = 32,
    progress: Progress = no_progress,
) -> np.ndarray:
    """Cross-entropy (N,) float32 of each passage in nats, summed over its span [start, end), at the masking's noise."""
    losses = np.zeros(len(passages), np.float32)
    done = 0
    for numbers, batch in passage_batches(passages, config, masking, batch_size):
        losses[numbers] = np.asarray(_compiled_losses(params, batch, config=config, compute=compute))[: len(numbers)]
        done += len(numbers)
        progress("losses", done, len(passages))
    return losses


def gradient_features(
    params: Params,
    passages: Sequence[Passage],
    *,
    config: ModelConfig,
    compute: Compute = _FLOAT32,
    masking: Masking = _MASKING,
    projection: Projection = _PROJECTION,
    batch_size: int = 8,
    progress: Progress = no_progress,
) -> np.ndarray:
    """The projected gradient of each passage's loss (`passage_losses`), (N, F) float32, for chunks and queries alike.

    `batch_size` gradients of the model's size are in memory at a time. Raises `UserError` for an empty span and for a
    gradient that is not finite.
    """
    blocks, signs = feature_blocks(config, projection), projection_signs(config, projection)
    features = np.zeros((len(passages), blocks[-1].end), np.float32)
    done = 0
    for numbers, batch in passage_batches(passages, config, masking, batch_size):
        rows = _batch_features(params, batch, signs, config=config, compute=compute)
        features[numbers] = np.asarray(rows)[: len(numbers)]
        done += len(numbers)
        progress("gradients", done, len(passages))
    if not np.isfinite(features).all():
        raise UserError("The model's gradients are not finite: check its weights for NaN and infinity.")
    return features


@partial(jax.jit, static_argnames=("config", "compute"))
def _batch_features(
    params: Params, batch: PassageBatch, signs: Signs, *, config: ModelConfig, compute: Compute
) -> jax.Array:
    """(B, F) float32."""

    def loss(params: Params, passage: PassageBatch) -> jax.Array:
        return _losses(params, jax.tree.map(lambda a: a[None], passage), config, compute)[0]

    # One gradient per passage, not of the batch's sum: influence compares single chunks.
    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, batch)
    return project_gradients(gradients, signs, config)
