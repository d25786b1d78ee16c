"""Autoregressive decoding through the `Backbone` interface: the prompt in one pass, then one token a pass.

Legend: B rows, P prompt positions, N new tokens, D width.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.edits import LayerEdit


@partial(jax.jit, static_argnames=("backbone", "count"))
def greedy_tokens(
    params: Params, prompt: jax.Array, *, backbone: Backbone, count: int, edits: tuple[LayerEdit, ...] = ()
) -> jax.Array:
    """The most likely continuation, token by token: prompt (B, P) int32 to new tokens (B, count) int32.

    edits: changes to layers' outputs in every pass, the prompt's included; at all positions (their `where` is None).
    """
    B, P = prompt.shape
    # The cache is a value that the loop carries, so its shapes are final from the first pass on: keys and values of
    # attention layers have room for all positions, a recurrent state needs none.
    first = backbone.run(params, backbone.embed(params, prompt), cache=backbone.empty_cache(B, P + count), edits=edits)

    def step(carry: tuple, position: jax.Array) -> tuple[tuple, jax.Array]:
        cache, hidden = carry
        token = jnp.argmax(backbone.logits(params, hidden), axis=-1).astype(jnp.int32)
        x = backbone.embed(params, token[:, None])
        result = backbone.run(params, x, start=position, cache=cache, edits=edits)
        return (result.cache, result.hidden[:, -1]), token

    _, tokens = jax.lax.scan(step, (first.cache, first.hidden[:, -1]), P + jnp.arange(count))
    return tokens.T
