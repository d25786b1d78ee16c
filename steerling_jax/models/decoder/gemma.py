"""Gemma 2 and Gemma 3 (text): the published configurations.

Source: the `config.json` of Gemma 2 and Gemma 3, and `Gemma2Config` and `Gemma3TextConfig` of Hugging Face
transformers 5.
"""

from __future__ import annotations

from typing import Any

from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.decoder.published_fields import Fields, read_rope, shared_fields

GEMMA2_DEFAULTS = dict(
    vocab_size=256_000,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    hidden_activation="gelu_pytorch_tanh",
    max_position_embeddings=8192,
    rms_norm_eps=1e-6,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=2,
    tie_word_embeddings=True,
    rope_theta=10_000.0,
    query_pre_attn_scalar=256,
    sliding_window=4096,
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
)
GEMMA3_DEFAULTS = dict(
    GEMMA2_DEFAULTS,
    vocab_size=262_208,
    max_position_embeddings=131_072,
    rope_theta=1_000_000.0,
    rope_local_base_freq=10_000.0,
    sliding_window_pattern=6,
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
)


def gemma2_config(fields: Fields) -> DecoderConfig:
    """The configuration of a Gemma 2 model: sliding and full layers in turn, and capped scores and logits."""
    layers = fields.integer("num_hidden_layers")
    types = fields.list_of("layer_types", str) or tuple(
        "full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)
    )
    return DecoderConfig(family="Gemma 2", layer_types=types, rope=read_rope(fields), **_gemma_fields(fields))


def gemma3_config(fields: Fields) -> DecoderConfig:
    """The configuration of a Gemma 3 text model: five sliding layers to one full one, each kind with its own RoPE."""
    pattern = fields.integer("sliding_window_pattern", "_sliding_window_pattern")
    layers = fields.integer("num_hidden_layers")
    types = fields.list_of("layer_types", str) or tuple(
        "sliding_attention" if (layer + 1) % max(pattern, 1) else "full_attention" for layer in range(layers)
    )
    full, sliding = read_rope(fields, "full_attention"), read_rope(fields, "sliding_attention")
    if "sliding_attention" not in (fields.get("rope_parameters") or {}):
        # The older flat fields scale the full layers alone, and give the sliding ones a base of their own.
        sliding = type(sliding)(theta=fields.number("rope_local_base_freq"), share=sliding.share)
    return DecoderConfig(
        family="Gemma 3", layer_types=types, rope=full, sliding_rope=sliding, qk_norm=True, **_gemma_fields(fields)
    )


def _gemma_fields(fields: Fields) -> dict[str, Any]:
    fields.refuse("use_bidirectional_attention", "only causal text models are read")
    scalar = fields.number("query_pre_attn_scalar")
    if scalar <= 0:
        raise fields.error("query_pre_attn_scalar", scalar, "a positive number")
    return shared_fields(fields) | dict(
        intermediate_size=fields.integer("intermediate_size"),
        sliding_window=fields.integer("sliding_window", optional=True),
        query_scale=scalar**-0.5,
        attention_cap=fields.number("attn_logit_softcapping", optional=True),
        final_cap=fields.number("final_logit_softcapping", optional=True),
        zero_centred_norms=True,
        output_norms=True,
        scale_embeddings=True,
    )
