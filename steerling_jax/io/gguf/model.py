"""The model in a GGUF file, in the form of a Hugging Face folder: its config and its tensors under published names.

Every family's config reader and weight map then work on GGUF files as on folders. What the conversion to GGUF changed
is changed back here: the order of the rows of q and k (Llama), `1 + w` in norms (Gemma), RoPE scaling (Llama 3.1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.gguf.header import GgufHeader, read_gguf_header
from steerling_jax.io.gguf.metadata import MetadataReader
from steerling_jax.io.gguf.rope import llama3_scaling
from steerling_jax.io.gguf.tensors import Convert, GgufTensor, gguf_tensors
from steerling_jax.io.gguf.vocabulary import GgufVocabulary

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Gemma has norms before and after the attention and the MLP.
_GEMMA_LAYER = _LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_MOE_LAYER = _LAYER | {"ffn_gate_inp": "mlp.gate"}
# The experts of a layer are one tensor (experts, out, in) in GGUF; the published names number them.
_EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}

_NAMES = {"llama": _LAYER, "qwen3": _LAYER, "qwen3moe": _MOE_LAYER, "gemma2": _GEMMA_LAYER, "gemma3": _GEMMA_LAYER}


@dataclass(frozen=True)
class GgufModel:
    """config: fields as in a Hugging Face `config.json`. tensors: by their published names. header: of the file."""

    config: dict[str, Any]
    tensors: dict[str, GgufTensor]
    header: GgufHeader


def read_gguf_model(path: str | Path) -> GgufModel:
    """Reads the header of a GGUF file; the tensors are read later, one by one.

    Raises `UserError` if the file is damaged, or its architecture, quantisation or RoPE scaling is not read.
    """
    header = read_gguf_header(Path(path))
    fields = MetadataReader(header)
    architecture = fields.text("general.architecture")
    if architecture not in _NAMES:
        raise UserError(
            f"{path} holds a model of the architecture {architecture!r}, which is not read; "
            f"architectures that are read from GGUF: {', '.join(_NAMES)}."
        )
    if fields.optional_number("split.count", 1) > 1:
        raise UserError(f"{path} is one of several parts of a model; merge them with `llama-gguf-split --merge`.")
    stored = gguf_tensors(header)
    rope_factors = stored.pop("rope_freqs.weight", None)
    config = _config(fields, architecture, stored)
    if rope_factors is not None:
        config["rope_parameters"] |= llama3_scaling(path, rope_factors.map(), config)
    return GgufModel(config, _published(architecture, config, stored, header), header)


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
    if architecture in ("llama", "qwen3", "qwen3moe"):
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


def _published(
    architecture: str, config: Mapping[str, Any], stored: Mapping[str, GgufTensor], header: GgufHeader
) -> dict[str, GgufTensor]:
    """The tensors by their published names, with the values as they were published."""
    tensors: dict[str, GgufTensor] = {}
    for name, tensor in stored.items():
        for published, part in _published_names(architecture, name, tensor, header.path).items():
            convert = _conversion(architecture, config, published)
            tensors[published] = part if convert is None else part.converted(convert)
    return tensors


def _published_names(architecture: str, name: str, tensor: GgufTensor, path: Path) -> dict[str, GgufTensor]:
    module, _, kind = name.rpartition(".")
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", module)
    if match is None:
        if module in _TOP:
            return {f"{_TOP[module]}.{kind}": tensor}
    else:
        layer, part = f"model.layers.{int(match[1])}", match[2]
        if part in _NAMES[architecture]:
            return {f"{layer}.{_NAMES[architecture][part]}.{kind}": tensor}
        if architecture == "qwen3moe" and part in _EXPERTS and len(tensor.shape) == 3:
            return {f"{layer}.mlp.experts.{i}.{_EXPERTS[part]}.{kind}": tensor.row(i) for i in range(tensor.shape[0])}
    raise UserError(f"{path}: tensor {name!r} is unknown in a model of the architecture {architecture!r}.")


def _conversion(architecture: str, config: Mapping[str, Any], name: str) -> Convert | None:
    """What restores a tensor's published values; None where the file has them."""
    if architecture == "llama" and ".self_attn.q_proj." in name:
        return lambda rows: _halves(rows, config["num_attention_heads"])
    if architecture == "llama" and ".self_attn.k_proj." in name:
        return lambda rows: _halves(rows, config["num_key_value_heads"])
    if architecture.startswith("gemma") and "norm" in name.split(".")[-2]:
        return lambda weight: (weight.astype(np.float32) - 1).astype(weight.dtype)
    return None


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head as RoPE in halves needs them; in the file the two of a rotation are next to each other."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
