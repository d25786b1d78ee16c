"""The pass of a likelihood bound: cross-entropies of masked tokens, with guidance and steering as in decoding."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from steerling_jax.decoding.window import steering_edits
from steerling_jax.evaluation.row_sums import sum_by_row
from steerling_jax.models.backbone import Params
from steerling_jax.models.batching import padding_mask
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import embed_tokens, lm_logits, run_backbone
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import RowClamps, logit_features
from steerling_jax.steering.plan import SteeringPlan


class RowSteering(NamedTuple):
    """A plan as it acts on the rows of a batch: at_masks, at_prompt (B, L, D), suppression (V,) and clamps."""

    at_masks: np.ndarray
    at_prompt: np.ndarray
    suppression: jax.Array
    clamps: RowClamps | None


def steer_rows(plan: SteeringPlan, masks: list[np.ndarray], rows: int, config: ModelConfig) -> RowSteering:
    """masks: of each row's continuation; what is not masked counts as written, for injections that end."""
    written = [mask.size - int(mask.sum()) for mask in masks]
    tables = [plan.tables(count, config.n_layers) for count in [*written, *[0] * (rows - len(masks))]]
    at_masks, at_prompt = (np.stack(each) for each in zip(*tables, strict=True))
    return RowSteering(at_masks, at_prompt, plan.suppression, None if plan.clamps is None else plan.clamps.rows())


@partial(jax.jit, static_argnames=("config", "compute", "guided"))
def masked_losses(
    params: Params,
    canvas: jax.Array,
    lengths: jax.Array,
    starts: jax.Array,
    chosen: jax.Array,
    cfg_scale: jax.Array,
    steering: RowSteering | None,
    *,
    config: ModelConfig,
    compute: Compute,
    guided: bool,
) -> jax.Array:
    """Cross-entropies (B,) of the canvas (B, T), summed over the positions `chosen` (B, T) bool, which are masked.

    lengths (B,): where padding begins; starts (B,): where the continuation begins.
    """
    B, T = canvas.shape
    tokens = jnp.where(chosen, config.mask_token_id, canvas)
    mask = padding_mask(lengths, T, config.diff_block_size)
    if guided:
        in_context = jnp.arange(T)[None, :] < starts[:, None]
        tokens = jnp.concatenate([tokens, jnp.where(in_context, config.mask_token_id, tokens)])
        mask = jnp.concatenate([mask, mask])
    edits, clamps = (), None
    if steering is not None:
        clamps = steering.clamps
        # An edit's rows are those of the pass; with guidance the second half repeats the first.
        tables = (jnp.concatenate([table] * (len(tokens) // B)) for table in steering[:2])
        prompt = jnp.concatenate([starts] * (len(tokens) // B))
        edits = steering_edits(tokens, jnp.arange(T)[None, :] < prompt[:, None], config.mask_token_id, *tables)
    x = embed_tokens(params, tokens, compute)
    hidden = run_backbone(params, x, config=config, compute=compute, attention=mask, edits=edits).hidden
    offsets = (jnp.arange(T)[None, :] - starts[:, None]).reshape(-1)  # from the continuation's first token
    passes = hidden.reshape(-1, B * T, hidden.shape[-1])  # with the context and, if guided, without it

    def score(at: jax.Array) -> jax.Array:
        cond, *uncond = (
            lm_logits(params, logit_features(params, rows[at], config, compute, clamps, offsets[at]), compute)
            for rows in passes
        )
        logits = uncond[0] + (cfg_scale + 1) * (cond - uncond[0]) if guided else cond
        if steering is not None:
            logits = logits - steering.suppression[None, :]
        return optax.softmax_cross_entropy_with_integer_labels(logits, canvas.reshape(-1)[at])[:, None]

    return sum_by_row(chosen, score, 1)[:, 0]
