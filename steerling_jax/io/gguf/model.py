"""The model in a GGUF file, in the form of a Hugging Face folder: its config and its tensors under published names.

Every family's config reader and weight map then work on GGUF files as on folders. What the conversion to GGUF changed
is changed back (`restore`): orders of rows and heads, `1 + w` in norms, RoPE scaling (Llama 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError
from steerling_jax.io.gguf.header import GgufHeader
from steerling_jax.io.gguf.metadata import MetadataReader
from steerling_jax.io.gguf.names import ARCHITECTURES, published_tensors
from steerling_jax.io.gguf.parts import read_parts
from steerling_jax.io.gguf.restore import restored
from steerling_jax.io.gguf.rope import llama3_scaling
from steerling_jax.io.gguf.tensors import GgufTensor
from steerling_jax.io.gguf.vocabulary import GgufVocabulary


@dataclass(frozen=True)
class GgufModel:
    """config: fields as in a Hugging Face `config.json`. tensors: by their published names. header: of the
    file, or of the first of several."""

    config: dict[str, Any]
    tensors: dict[str, GgufTensor]
    header: GgufHeader


def read_gguf_model(path: str | Path) -> GgufModel:
    """Reads the headers of a GGUF file and of the other parts of its model; the tensors are read later, one by one.

    Raises `UserError` if a file is damaged or missing, or its architecture, quantisation or RoPE scaling is not read.
    """
    header, stored = read_parts(Path(path))
    fields = MetadataReader(header)
    architecture = fields.text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"{path} holds a model of the architecture {architecture!r}, which is not read; "
            f"architectures that are read from GGUF: {', '.join(ARCHITECTURES)}."
        )
    rope_factors = stored.pop("rope_freqs.weight", None)
    config = _config(fields, architecture, stored)
    if rope_factors is not None:
        config["rope_parameters"] |= llama3_scaling(path, rope_factors.map(), config)
    return GgufModel(config, _published(architecture, config, stored), header)


def _config(fields: MetadataReader, architecture: str, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The fields of `config.json` from the file's metadata."""
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise UserError(f"{fields.path}: tensor 'token_embd.weight' is missing; use the file of a whole model.")
    width, heads = fields.size("embedding_length"), fields.size("attention.head_count")
    head_dim = fields.size("attention.key_length", fields.size("rope.dimension_count", width // heads))
    config: dict[str, Any] = {
        "model_type": architecture,
        "vocab_size": embedding.shape[0],
        "hidden_size": width,
        "intermediate_size": fields.size("feed_forward_length", 0),
        "num_hidden_layers": fields.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": fields.size("context_length"),
        "rms_norm_eps": fields.decimal("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_parameters": {"rope_type": "default", "rope_theta": fields.decimal("rope.freq_base", 10_000.0)},
    }
    scaling = fields.scaling()
    if not architecture.startswith("gemma"):
        config |= {"hidden_act": "silu", "attention_bias": "blk.0.attn_q.bias" in tensors}
        config["rope_parameters"] |= scaling
    if architecture == "qwen3moe":
        config |= {
            "model_type": "qwen3_moe",
            "num_experts": fields.size("expert_count"),
            "num_experts_per_tok": fields.size("expert_used_count"),
            "moe_intermediate_size": fields.size("expert_feed_forward_length"),
            "norm_topk_prob": True,  # of every model that was converted; GGUF has no field for it
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    if architecture.startswith("qwen35"):
        config |= _qwen35_config(fields, architecture, config, tensors)
    vocabulary = GgufVocabulary(fields.header)
    if vocabulary.kind is not None:
        config |= {
            "bos_token_id": vocabulary.id("bos_token_id"),
            "eos_token_id": vocabulary.end_ids(),
            "pad_token_id": vocabulary.id("padding_token_id"),
        }
    else:
        config |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if architecture.startswith("gemma"):
        config |= _gemma_config(fields, architecture, config, scaling)
    return config


def _qwen35_config(
    fields: MetadataReader, architecture: str, config: Mapping[str, Any], tensors: Mapping[str, GgufTensor]
) -> dict[str, Any]:
    """The fields that only Qwen3.5 has."""
    # Layers that predict several tokens at once come after the others and are not read.
    layers = config["num_hidden_layers"] - fields.size("nextn_predict_layers", 0)
    value_heads = fields.size("ssm.time_step_rank")
    rotated = fields.size("rope.dimension_count", config["head_dim"] // 4)
    qwen: dict[str, Any] = {
        "model_type": "qwen3_5_text",
        "num_hidden_layers": layers,
        "layer_types": [
            "linear_attention" if f"blk.{layer}.ssm_a" in tensors else "full_attention" for layer in range(layers)
        ],
        "rope_parameters": config["rope_parameters"] | {"partial_rotary_factor": rotated / config["head_dim"]},
        "linear_conv_kernel_dim": fields.size("ssm.conv_kernel"),
        "linear_num_key_heads": fields.size("ssm.group_count"),
        "linear_num_value_heads": value_heads,
        "linear_key_head_dim": fields.size("ssm.state_size"),
        "linear_value_head_dim": fields.size("ssm.inner_size") // value_heads,
    }
    if architecture == "qwen35moe":
        qwen |= {
            "model_type": "qwen3_5_moe_text",
            "num_experts": fields.size("expert_count"),
            "num_experts_per_tok": fields.size("expert_used_count"),
            "moe_intermediate_size": fields.size("expert_feed_forward_length"),
            "shared_expert_intermediate_size": fields.size("expert_shared_feed_forward_length"),
        }
    return qwen


def _gemma_config(
    fields: MetadataReader, architecture: str, config: Mapping[str, Any], scaling: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields that only Gemma has. llama.cpp computes some of them from the model's size; so does this."""
    layers, head_dim = config["num_hidden_layers"], config["head_dim"]
    every = 2 if architecture == "gemma2" else 6  # one full-attention layer in so many
    # The largest models scale by the width of a head as if the heads shared the model's width.
    largest = {"gemma2": 46, "gemma3": 62}[architecture]
    scalar = config["hidden_size"] // config["num_attention_heads"] if layers == largest else head_dim
    scalar = round(fields.decimal("attention.scale", scalar**-0.5) ** -2)
    gemma: dict[str, Any] = {
        "model_type": "gemma2" if architecture == "gemma2" else "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": scalar,
        "sliding_window": fields.size("attention.sliding_window", 4096 if architecture == "gemma2" else None),
        "layer_types": [
            "full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(layers)
        ],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }
    if architecture == "gemma2":
        return gemma | {
            "attn_logit_softcapping": fields.decimal("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": fields.decimal("final_logit_softcapping", 30.0),
        }
    full = {"rope_type": "default", "rope_theta": fields.decimal("rope.freq_base", 1_000_000.0), **scaling}
    sliding = {"rope_type": "default", "rope_theta": fields.decimal("rope.freq_base_swa", 10_000.0)}
    return gemma | {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


def _published(architecture: str, config: Mapping[str, Any], stored: Mapping[str, GgufTensor]) -> dict[str, GgufTensor]:
    """The tensors by their published names, with the values as they were published."""
    tensors: dict[str, GgufTensor] = {}
    for name, tensor in stored.items():
        parts = published_tensors(architecture, config["num_hidden_layers"], name, tensor, tensor.file)
        tensors |= {published: restored(architecture, config, published, part) for published, part in parts.items()}
    return tensors
