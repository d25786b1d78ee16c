"""The rows of whole texts, each position read under a mask: the state in which concept heads are trained.

Each text is read twice, with complementary masks: half of each block is masked in the one pass and the other half in
the other, after unmasked earlier blocks.

Legend: B sequences, T positions, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.denoise import denoise_pass
from steerling_jax.objectives.noise import mask_tokens

_LEVEL = 0.5  # the share of positions that each of the two passes masks


class MaskedRows(NamedTuple):
    """hidden (B, T, D): after the final norm. captured: by block, counted from 0, its outputs (B, T, D)."""

    hidden: jax.Array
    captured: dict[int, jax.Array]


def rows_under_masks(
    params: Params,
    tokens: jax.Array,
    key: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
    capture: tuple[int, ...] = (),
) -> MaskedRows:
    """The rows of tokens (B, T), each from the pass in which its position is masked; `key` draws the masks."""
    B, T = tokens.shape
    levels = jnp.full((B, -(-T // config.diff_block_size)), _LEVEL)
    noisy, masked = mask_tokens(key, tokens, levels, config)
    complement = jnp.where(masked, tokens, config.mask_token_id)
    one, other = (
        denoise_pass(params, tokens, copy, config=config, compute=compute, clean_context=True, capture=capture)
        for copy in (noisy, complement)
    )

    def merge(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(masked[:, :, None], a, b)

    captured = {layer: merge(one.captured[layer], other.captured[layer]) for layer in capture}
    return MaskedRows(merge(one.hidden, other.hidden), captured)
