"""Qwen3 and Qwen3-MoE: the published configurations.

Source: the `config.json` of Qwen3-8B and Qwen3-30B-A3B, and `Qwen3Config` and `Qwen3MoeConfig` of Hugging Face
transformers 5.
"""

from __future__ import annotations

from typing import Any

from steerling_jax.models.decoder.config import DecoderConfig, Experts
from steerling_jax.models.decoder.published_fields import Fields, read_rope, shared_fields

QWEN3_DEFAULTS = dict(
    vocab_size=151_936,
    hidden_size=4096,
    intermediate_size=22_016,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    hidden_act="silu",
    max_position_embeddings=32_768,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    sliding_window=4096,
    max_window_layers=28,
)
QWEN3_MOE_DEFAULTS = dict(
    vocab_size=151_936,
    hidden_size=2048,
    intermediate_size=6144,
    num_hidden_layers=24,
    num_attention_heads=32,
    num_key_value_heads=4,
    hidden_act="silu",
    max_position_embeddings=32_768,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    sliding_window=4096,
    decoder_sparse_step=1,
    moe_intermediate_size=768,
    num_experts_per_tok=8,
    num_experts=128,
)


def qwen3_config(fields: Fields) -> DecoderConfig:
    """The configuration of a dense Qwen3 model."""
    shared = shared_fields(fields)
    L = shared["num_hidden_layers"]
    window = fields.integer("sliding_window", optional=True) if fields.flag("use_sliding_window") else None
    types = fields.list_of("layer_types", str)
    if types is None:
        first = L if window is None else fields.integer("max_window_layers")
        types = tuple("sliding_attention" if layer >= first else "full_attention" for layer in range(L))
    return DecoderConfig(
        family="Qwen3",
        **shared,
        intermediate_size=fields.integer("intermediate_size"),
        layer_types=types,
        sliding_window=window,
        rope=read_rope(fields),
        qk_norm=True,
    )


def qwen3_moe_config(fields: Fields) -> DecoderConfig:
    """The configuration of a Qwen3-MoE model; with `use_sliding_window`, every layer is a sliding one."""
    shared = shared_fields(fields)
    L = shared["num_hidden_layers"]
    window = fields.integer("sliding_window", optional=True) if fields.flag("use_sliding_window") else None
    dense, step = fields.list_of("mlp_only_layers", int) or (), fields.integer("decoder_sparse_step")
    return DecoderConfig(
        family="Qwen3-MoE",
        **shared,
        intermediate_size=fields.integer("intermediate_size"),
        layer_types=("full_attention" if window is None else "sliding_attention",) * L,
        sliding_window=window,
        rope=read_rope(fields),
        qk_norm=True,
        experts=read_experts(fields, normalise=fields.flag("norm_topk_prob")),
        moe_layers=tuple(step > 0 and layer not in dense and (layer + 1) % step == 0 for layer in range(L)),
    )


def read_experts(fields: Fields, **options: Any) -> Experts:
    """The mixture of experts that the published fields describe."""
    return Experts(
        count=fields.integer("num_local_experts", "num_experts"),
        per_token=fields.integer("num_experts_per_tok"),
        intermediate_size=fields.integer("moe_intermediate_size"),
        **options,
    )
