"""One pass of the layers over whole attention blocks of a canvas, with the keys and values of earlier blocks cached.

Legend: B rows of a batch (requests), X rows of a pass (B, times branches N under guidance, times drafts K, in that
order), T positions, W the diffusion block, S cached positions, L layers, G key/value heads, d head size, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from steerling_jax.decoding.request_edits import place_edits
from steerling_jax.models.attention import attend_parts
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.steerling.backbone import KeyValueCache, embed_tokens, heads_first, run_backbone
from steerling_jax.models.steerling.config import ModelConfig


class CachedPart(NamedTuple):
    """Keys and values of positions before the pass: cache, each (B·N, G, S, d) or (X, G, S, d), and which positions may
    be seen, (B·N or X, S) bool. Where a part has fewer rows than the pass, drafts share them."""

    cache: KeyValueCache
    visible: jax.Array


def steering_edits(
    canvases: jax.typing.ArrayLike,
    in_prompt: jax.typing.ArrayLike,
    mask_id: jax.typing.ArrayLike,
    at_masks: jax.typing.ArrayLike,
    at_prompt: jax.typing.ArrayLike,
) -> tuple[LayerEdit, LayerEdit]:
    """Steering of canvases (X, T), as layer edits: injections at their masked positions, and at those of the prompt.

    in_prompt: (X, T) bool. at_masks, at_prompt: (B, L, D) float32, what is added after each layer; a masked position of
    the prompt is steered as a mask.
    """
    masked = jnp.asarray(canvases) == mask_id
    in_prompt = jnp.broadcast_to(jnp.asarray(in_prompt), masked.shape) & ~masked
    masks, prompt = (jnp.moveaxis(jnp.asarray(table), 1, 0)[:, :, None, :] for table in (at_masks, at_prompt))
    return LayerEdit(push=masks, where=masked), LayerEdit(push=prompt, where=in_prompt)


def edits_of_canvases(
    canvases: jax.typing.ArrayLike,
    prompt: jax.typing.ArrayLike,
    mask_id: jax.typing.ArrayLike,
    at_masks: jax.typing.ArrayLike,
    at_prompt: jax.typing.ArrayLike,
    edits: Sequence[LayerEdit] = (),
) -> tuple[LayerEdit, ...]:
    """The edits of passes over whole canvases (X, T) whose first `prompt` () positions are the prompt: `steering_edits`
    and then the request's own `edits`."""
    in_prompt = (jnp.arange(jnp.shape(canvases)[1]) < prompt)[None, :]
    steering = steering_edits(canvases, in_prompt, mask_id, at_masks, at_prompt)
    return *steering, *place_edits(edits, jnp.broadcast_to(~in_prompt, jnp.shape(canvases)))


def run_window(
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    total: jax.Array,
    earlier: Sequence[CachedPart],
    edits: Sequence[LayerEdit],
    *,
    config: ModelConfig,
    compute: Compute,
) -> tuple[jax.Array, KeyValueCache]:
    """Tokens (X, T) of whole attention blocks at absolute `positions` (X, T), to hidden (X, T, D) and their keys and
    values, each (X, G, T, d).

    total (X,): length of each canvas; positions past it are not seen. Layers are unstacked (`unstack_layers`).
    """
    numbers = positions // config.diff_block_size
    own = (numbers[:, :, None] >= numbers[:, None, :]) & (positions < total[:, None])[:, None, :]
    result = run_backbone(
        params,
        embed_tokens(params, tokens, compute),
        config=config,
        compute=compute,
        positions=positions,
        attention=jax.tree_util.Partial(attend_parts, own=own, visible=[part.visible for part in earlier]),
        # By layer: each entry has the layer's keys and values of every part.
        cache=tuple(zip(*(part.cache for part in earlier), strict=True)),
        edits=edits,
        keep_cache=True,
    )
    return result.hidden, heads_first(result.cache)
