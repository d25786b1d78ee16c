"""Adds the embeddings of the three turn tokens to a text model, for instruction tuning."""

from __future__ import annotations

import jax.numpy as jnp

from steerling_jax.models.backbone import Params
from steerling_jax.models.steerling.config import ModelConfig


def add_turn_tokens(params: Params, config: ModelConfig) -> Params:
    """Parameters of a text model, with rows for `<|start_header_id|>`, `<|end_header_id|>` and `<|eot_id|>`.

    config: of the text model; the new ids follow its vocabulary. Each row is initialised with that of the token of
    nearest function in texts: the one that starts a document, that ends a chunk, and that ends a document.
    """
    ids = jnp.array([config.bos_token_id, config.endofchunk_token_id, config.eos_token_id])

    def extend(table: Params) -> Params:
        return {"weight": jnp.concatenate([table["weight"], table["weight"][ids]])}

    return {**params, **{name: extend(params[name]) for name in ("tok_emb", "lm_head") if name in params}}
