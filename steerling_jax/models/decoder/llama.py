"""Llama (and models of its architecture, such as SmolLM2): the published configuration.

Source: the `config.json` of Llama 3.1 and 3.2, and `LlamaConfig` of Hugging Face transformers 5.
"""

from __future__ import annotations

from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.decoder.published_fields import Fields, read_rope, shared_fields

LLAMA_DEFAULTS = dict(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    hidden_act="silu",
    max_position_embeddings=2048,
    rms_norm_eps=1e-6,
    bos_token_id=1,
    eos_token_id=2,
    rope_theta=10_000.0,
)


def llama_config(fields: Fields) -> DecoderConfig:
    """The configuration of a Llama model."""
    shared = shared_fields(fields)
    return DecoderConfig(
        family="Llama",
        **shared,
        intermediate_size=fields.integer("intermediate_size"),
        layer_types=("full_attention",) * shared["num_hidden_layers"],
        rope=read_rope(fields),
        mlp_bias=fields.flag("mlp_bias"),
    )
