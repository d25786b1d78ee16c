"""Small GGUF files, written by the `gguf` package as the usual converters write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

Kind = gguf.GGMLQuantizationType


def write_gguf(
    path: Path,
    architecture: str,
    fields: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kind: Kind = Kind.F32,
) -> Path:
    """Writes metadata and tensors; matrices with rows that fit are quantised as `kind`, the rest is float32."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in fields.items():
        add_field(writer, key, value)
    for name, values in tensors.items():
        block = gguf.GGML_QUANT_SIZES[kind][0]
        fits = values.ndim > 1 and values.shape[-1] % block == 0
        stored = kind if fits else Kind.F32
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Adds a metadata field with the type that converters use for such a value."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def llama_fields(**changes: Any) -> dict[str, Any]:
    """The metadata of a Llama with 2 layers of width 32."""
    fields = {
        "llama.block_count": 2,
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10_000.0,
    }
    return {name: value for name, value in (fields | changes).items() if value is not None}


def llama_tensors(vocab_size: int = 64) -> dict[str, np.ndarray]:
    """The tensors of that Llama, with random values."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab_size, 32), "output_norm.weight": (32,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (32,),
            f"blk.{layer}.attn_q.weight": (32, 32),
            f"blk.{layer}.attn_k.weight": (16, 32),
            f"blk.{layer}.attn_v.weight": (16, 32),
            f"blk.{layer}.attn_output.weight": (32, 32),
            f"blk.{layer}.ffn_norm.weight": (32,),
            f"blk.{layer}.ffn_gate.weight": (64, 32),
            f"blk.{layer}.ffn_up.weight": (64, 32),
            f"blk.{layer}.ffn_down.weight": (32, 64),
        }
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf_of_folder(folder: Path, path: Path, kind: Kind = Kind.F32) -> Path:
    """Writes a Hugging Face folder as a GGUF file as llama.cpp does, with the package's names of tensors."""
    config = json.loads((folder / "config.json").read_text())
    published: str = config["model_type"]
    architecture = {"qwen3_moe": "qwen3moe", "gemma3_text": "gemma3"}.get(published, published)
    number = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config["num_hidden_layers"])
    tensors: dict[str, np.ndarray] = {}
    for name, values in sorted(_stacked_experts(load_file(folder / "model.safetensors")).items()):
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            values = values.reshape(heads, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        tensors[stored] = values
    if config["rope_parameters"].get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = _rope_divisors(config["rope_parameters"], config["head_dim"])
    return write_gguf(path, architecture, _fields_of(config, architecture), tensors, kind)


def _stacked_experts(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors, with those of single or fused experts stacked to (experts, out, in) as in GGUF."""
    result = {name: values for name, values in tensors.items() if ".experts." not in name}
    for name, values in tensors.items():
        module, _, projection = name.partition(".experts.")
        if projection == "gate_up_proj":
            gate, up = np.split(values, 2, axis=1)
            result |= {f"{module}.experts.gate_proj.weight": gate, f"{module}.experts.up_proj.weight": up}
        elif projection == "down_proj":
            result[f"{module}.experts.down_proj.weight"] = values
        elif projection.startswith("0."):
            part = projection.removeprefix("0.")
            count = sum(other.startswith(f"{module}.experts.") and other.endswith(part) for other in tensors)
            experts = [tensors[f"{module}.experts.{i}.{part}"] for i in range(count)]
            result[f"{module}.experts.{part}"] = np.stack(experts)
    return result


def _rope_divisors(rope: Mapping[str, Any], head_dim: int) -> np.ndarray:
    """What the frequencies are divided by, one after another as Llama's reference code has it."""
    divisors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (i / head_dim)
        low, high = (rope["original_max_position_embeddings"] / rope[f"{end}_freq_factor"] for end in ("low", "high"))
        if wavelength < high:
            divisors.append(1.0)
        elif wavelength > low:
            divisors.append(rope["factor"])
        else:
            span = rope["high_freq_factor"] - rope["low_freq_factor"]
            smooth = (rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]) / span
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(divisors, np.float32)


def _fields_of(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    rope = config["rope_parameters"]
    full = rope.get("full_attention", rope)
    fields: dict[str, Any] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": full["rope_theta"],
        "feed_forward_length": config["intermediate_size"],
    }
    if full.get("rope_type") == "linear":
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": full["factor"]}
    if architecture == "qwen3moe":
        fields |= {
            "expert_count": config.get("num_experts", config.get("num_local_experts")),
            "expert_used_count": config["num_experts_per_tok"],
            "expert_feed_forward_length": config["moe_intermediate_size"],
        }
    if architecture.startswith("gemma"):
        fields |= {
            "attention.sliding_window": config["sliding_window"],
            # The published models need no such field: their scale follows from the size of a head.
            "attention.scale": config["query_pre_attn_scalar"] ** -0.5,
        }
    if architecture == "gemma2":
        fields |= {name: config[name] for name in ("attn_logit_softcapping", "final_logit_softcapping")}
    return {f"{architecture}.{name}": value for name, value in fields.items()}
