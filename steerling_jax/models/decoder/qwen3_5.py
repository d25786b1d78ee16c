"""Qwen3.5 and Qwen3.5-MoE (text): the published configurations.

Source: the `config.json` of the Qwen3.5 models, and `Qwen3_5TextConfig` and `Qwen3_5MoeTextConfig` of Hugging Face
transformers 5.
"""

from __future__ import annotations

from typing import Any

from steerling_jax.models.decoder.config import DecoderConfig, LinearAttention
from steerling_jax.models.decoder.published_fields import Fields, read_rope, shared_fields
from steerling_jax.models.decoder.qwen3 import read_experts

QWEN3_5_DEFAULTS = dict(
    vocab_size=248_320,
    hidden_size=4096,
    intermediate_size=12_288,
    num_hidden_layers=32,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=256,
    hidden_act="silu",
    max_position_embeddings=32_768,
    rms_norm_eps=1e-6,
    rope_theta=10_000_000.0,
    partial_rotary_factor=0.25,
    full_attention_interval=4,
    linear_conv_kernel_dim=4,
    linear_key_head_dim=128,
    linear_value_head_dim=128,
    linear_num_key_heads=16,
    linear_num_value_heads=32,
)
QWEN3_5_MOE_DEFAULTS = dict(
    QWEN3_5_DEFAULTS,
    hidden_size=2048,
    num_hidden_layers=40,
    num_key_value_heads=2,
    moe_intermediate_size=512,
    shared_expert_intermediate_size=512,
    num_experts_per_tok=8,
    num_experts=256,
)


def qwen3_5_config(fields: Fields) -> DecoderConfig:
    """The configuration of a dense Qwen3.5 text model."""
    return DecoderConfig(
        family="Qwen3.5", intermediate_size=fields.integer("intermediate_size"), **_qwen3_5_fields(fields)
    )


def qwen3_5_moe_config(fields: Fields) -> DecoderConfig:
    """The configuration of a Qwen3.5-MoE text model: experts in every layer, and an expert that all tokens share."""
    experts = read_experts(fields, shared_size=fields.integer("shared_expert_intermediate_size"))
    return DecoderConfig(
        family="Qwen3.5-MoE",
        intermediate_size=experts.intermediate_size,
        experts=experts,
        moe_layers=(True,) * fields.integer("num_hidden_layers"),
        **_qwen3_5_fields(fields),
    )


def _qwen3_5_fields(fields: Fields) -> dict[str, Any]:
    interval = max(fields.integer("full_attention_interval"), 1)
    types = fields.list_of("layer_types", str) or tuple(
        "linear_attention" if (layer + 1) % interval else "full_attention"
        for layer in range(fields.integer("num_hidden_layers"))
    )
    return shared_fields(fields) | dict(
        layer_types=types,
        rope=read_rope(fields),
        zero_centred_norms=True,
        qk_norm=True,
        output_gate=True,
        linear=LinearAttention(
            key_heads=fields.integer("linear_num_key_heads"),
            value_heads=fields.integer("linear_num_value_heads"),
            key_dim=fields.integer("linear_key_head_dim"),
            value_dim=fields.integer("linear_value_head_dim"),
            conv_taps=fields.integer("linear_conv_kernel_dim"),
        ),
    )
