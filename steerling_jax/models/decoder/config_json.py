"""A `DecoderConfig` as the `config.json` of its family: the inverse of `published_config`."""

from __future__ import annotations

from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.models.decoder.config import DecoderConfig, Rope
from steerling_jax.models.decoder.published_config import decoder_config

# Family to its `model_type` and the name of its class in Hugging Face transformers.
_TYPES = {
    "Llama": ("llama", "LlamaForCausalLM"),
    "Qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "Qwen3-MoE": ("qwen3_moe", "Qwen3MoeForCausalLM"),
    "Qwen3.5": ("qwen3_5_text", "Qwen3_5ForCausalLM"),
    "Qwen3.5-MoE": ("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM"),
    "Gemma 2": ("gemma2", "Gemma2ForCausalLM"),
    "Gemma 3": ("gemma3_text", "Gemma3ForCausalLM"),
}
_SAME_NAME = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "attention_bias"),
    *("tie_word_embeddings", "bos_token_id", "pad_token_id"),
)


def decoder_config_to_dict(config: DecoderConfig) -> dict[str, Any]:
    """The fields of `config.json`, as Hugging Face transformers reads them.

    Raises `UserError` for a configuration that its family's file cannot express.
    """
    if config.family not in _TYPES:
        raise UserError(f"The family {config.family!r} has no config.json; choose one of {', '.join(_TYPES)}.")
    model_type, architecture = _TYPES[config.family]
    ends = list(config.eos_token_ids)
    fields: dict[str, Any] = {"model_type": model_type, "architectures": [architecture]}
    fields |= {name: getattr(config, name) for name in _SAME_NAME}
    fields["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    fields["hidden_activation" if config.family.startswith("Gemma") else "hidden_act"] = config.hidden_act
    fields |= _family_fields(config)
    if decoder_config(fields) != config:
        raise UserError(
            f"This configuration has options that the config.json of {config.family} models cannot express; build it "
            "from the published fields with decoder_config()."
        )
    return fields


def _family_fields(config: DecoderConfig) -> dict[str, Any]:
    """The fields that differ between families."""
    if config.family.startswith("Qwen3.5"):
        return _rope_parameters(config.rope) | _qwen3_5_fields(config)
    fields = _flat_rope(config.rope)
    if config.family == "Llama":
        return fields | {"mlp_bias": config.mlp_bias}
    if config.family.startswith("Gemma"):
        return fields | _gemma_fields(config)
    fields |= {"use_sliding_window": config.sliding_window is not None, "sliding_window": config.sliding_window}
    if config.experts is None:
        # The layers below `max_window_layers` are full ones; `layer_types` says the same of each layer.
        full = sum(kind == "full_attention" for kind in config.layer_types)
        return fields | {"layer_types": list(config.layer_types), "max_window_layers": full}
    dense = [layer for layer in range(config.n_layers) if not config.has_experts(layer)]
    return fields | _experts(config) | {"mlp_only_layers": dense, "decoder_sparse_step": 1}


def _qwen3_5_fields(config: DecoderConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {"layer_types": list(config.layer_types)}
    if (linear := config.linear) is not None:
        fields |= {
            "linear_num_key_heads": linear.key_heads,
            "linear_num_value_heads": linear.value_heads,
            "linear_key_head_dim": linear.key_dim,
            "linear_value_head_dim": linear.value_dim,
            "linear_conv_kernel_dim": linear.conv_taps,
        }
    if config.experts is None:
        return fields
    return fields | _experts(config) | {"shared_expert_intermediate_size": config.experts.shared_size}


def _experts(config: DecoderConfig) -> dict[str, Any]:
    moe = config.experts
    assert moe is not None
    return {
        "num_experts": moe.count,
        "num_experts_per_tok": moe.per_token,
        "moe_intermediate_size": moe.intermediate_size,
        "norm_topk_prob": moe.normalise,
    }


def _gemma_fields(config: DecoderConfig) -> dict[str, Any]:
    scalar = config.query_scale**-2
    fields: dict[str, Any] = {
        "layer_types": list(config.layer_types),
        "sliding_window": config.sliding_window,
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
        "attn_logit_softcapping": config.attention_cap,
        "final_logit_softcapping": config.final_cap,
    }
    if config.sliding_rope is not None:
        fields["rope_local_base_freq"] = config.sliding_rope.theta
    return fields


def _flat_rope(rope: Rope) -> dict[str, Any]:
    """The fields `rope_theta` and `rope_scaling`, which versions 4 and 5 of transformers read."""
    fields: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": None}
    if rope.kind != "default":
        fields["rope_scaling"] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "llama3":
        fields["rope_scaling"] |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_length,
        }
    return fields


def _rope_parameters(rope: Rope) -> dict[str, Any]:
    """The field `rope_parameters`, which Qwen3.5 has from its first version on."""
    scaling = _flat_rope(rope)["rope_scaling"] or {"rope_type": "default"}
    return {"rope_parameters": {**scaling, "rope_theta": rope.theta, "partial_rotary_factor": rope.share}}
