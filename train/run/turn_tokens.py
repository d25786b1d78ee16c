"""The three ids that a model of conversations has after all others: their embeddings, where a model gets them late."""

from __future__ import annotations

import jax.numpy as jnp

from steerling_jax.models.backbone import Params
from steerling_jax.models.steerling.config import ModelConfig


def add_turn_tokens(params: Params, config: ModelConfig) -> Params:
    """Parameters of a text model `config`, with rows for `<|start_header_id|>`, `<|end_header_id|>` and `<|eot_id|>`.

    A row begins as a copy of the token that does most nearly the same in texts: what opens a document, what ends a
    chunk, what ends a document.
    """
    ids = jnp.array([config.bos_token_id, config.endofchunk_token_id, config.eos_token_id])

    def longer(table: Params) -> Params:
        return {"weight": jnp.concatenate([table["weight"], table["weight"][ids]])}

    return {**params, **{name: longer(params[name]) for name in ("tok_emb", "lm_head") if name in params}}
