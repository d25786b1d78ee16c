"""The most likely continuation of a batch of prompts, by the loop that decodes the lanes of autoregressive models.

Legend: B rows, P prompt positions, N new tokens.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.decoding.policies import EndOfText, Greedy, Policies, RepetitionPenalty
from steerling_jax.decoding.token_loop import PIECES, decode_tokens, read_prompt, token_settings
from steerling_jax.decoding.token_rows import empty_rows
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.edits import LayerEdit


def greedy_tokens(
    params: Params, prompt: jax.Array, *, backbone: Backbone, count: int, edits: tuple[LayerEdit, ...] = ()
) -> jax.Array:
    """The most likely continuation, token by token: prompt (B, P) int32 to new tokens (B, count) int32.

    edits: changes to layers' outputs, as in generation; without a `where`, since positions differ between passes.
    """
    tokens = np.asarray(prompt, np.int32)
    B, P = tokens.shape
    policies = Policies(RepetitionPenalty(1.0), None, None, Greedy(), EndOfText(jnp.full(4, -1)))
    settings = token_settings(policies, 0, P, P + count)
    capacity = -(-(P + count) // PIECES[0]) * PIECES[0]  # with room for the padding of the prompt's last piece
    rows = empty_rows(settings, size=B, capacity=capacity, record_hidden=False, backbone=backbone)
    rows = dataclasses.replace(
        rows,
        settings=dataclasses.replace(rows.settings, active=jnp.ones(B, bool)),
        token=jnp.asarray(tokens[:, -1]),
        position=jnp.full(B, P - 1),
        cache=read_prompt(params, rows.cache, tokens[:, :-1], edits=edits, backbone=backbone),
    )
    pieces: list[jax.Array] = []
    while (missing := count - sum(piece.shape[1] for piece in pieces)) > 0:
        rows, passes = decode_tokens(params, rows, jnp.int32(missing), edits, backbone=backbone)
        pieces.append(rows.record.token[:, : int(passes)])
    return jnp.concatenate(pieces, axis=1)
