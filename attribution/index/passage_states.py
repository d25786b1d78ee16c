"""Hidden states of passages at their masked positions.

Legend: B passages, m draws, T padded positions, W positions of a window, R rows (masked positions that count), D width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from steerling_jax.attribution.index.passages import PassageBatch
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import embed_tokens, run_backbone
from steerling_jax.models.steerling.config import ModelConfig


def span_hidden(params: Params, batch: PassageBatch, config: ModelConfig, compute: Compute) -> jax.Array:
    """Hidden states (B, R, D) of the batch's rows, as `denoise` gives them with a clean context.

    The model attends from a noisy block to that block and to the clean blocks before it, never to another noisy block.
    So the clean copy is run once for all draws, and of the noisy copies only the window's blocks are run: the cost is
    T + m · W positions instead of m · 2 T.
    """
    B, m, W = batch.noisy.shape
    embeds = embed_tokens(params, batch.clean, compute)
    clean = run_backbone(params, embeds, config=config, compute=compute, keep_cache=True).cache
    # The m windows are one sequence of m · W positions. Each keeps its positions in the text, for the rotary embedding.
    positions = jnp.tile(batch.first[:, None] + jnp.arange(W)[None, :], (1, m))
    block, draw = positions // config.diff_block_size, jnp.arange(m * W) // W
    clean_block = jnp.arange(batch.clean.shape[1]) // config.diff_block_size
    same_block = (block[:, :, None] == block[:, None, :]) & (draw[:, None] == draw[None, :])[None]
    hidden = run_backbone(
        params,
        embed_tokens(params, batch.noisy.reshape(B, m * W), compute),
        config=config,
        compute=compute,
        positions=positions,
        # Keys are the clean copy's (strictly earlier blocks), then the windows' own (same block of the same draw).
        attention=jnp.concatenate([block[:, :, None] > clean_block[None, None, :], same_block], axis=2),
        cache=clean,
    ).hidden
    return jnp.take_along_axis(hidden, batch.rows[:, :, None], axis=1)
