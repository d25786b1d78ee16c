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
    split: int = 0,
) -> Path:
    """Writes metadata and tensors; matrices with rows that fit are quantised as `kind`, the rest is float32.

    split: at most so many tensors a file, in several files beside `path`; 0 for one file.
    """
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split)
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


_ARCHITECTURES = {
    "qwen3_moe": "qwen3moe",
    "qwen3_5_text": "qwen35",
    "qwen3_5_moe_text": "qwen35moe",
    "gemma3_text": "gemma3",
}


def write_gguf_of_folder(
    folder: Path,
    path: Path,
    kind: Kind = Kind.F32,
    fields: Mapping[str, Any] | None = None,
    more: Mapping[str, np.ndarray] | None = None,
    split: int = 0,
) -> Path:
    """Writes a Hugging Face folder as a GGUF file as llama.cpp does, with the package's names of tensors.

    fields, more: further metadata and tensors. split: as in `write_gguf`.
    """
    config = json.loads((folder / "config.json").read_text())
    published: str = config["model_type"]
    architecture = _ARCHITECTURES.get(published, published)
    number = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config["num_hidden_layers"])
    tensors: dict[str, np.ndarray] = {}
    for name, values in sorted(_stacked_experts(load_file(folder / "model.safetensors")).items()):
        if ".linear_attn." in name:
            name, values = _delta_net(name, values, config)
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        if name.endswith("shared_expert_gate.weight"):
            values = values[0]
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            values = values.reshape(heads, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        if (
            architecture.startswith(("gemma", "qwen35"))
            and name.endswith("norm.weight")
            and ".linear_attn." not in name
        ):
            values = values + 1
        tensors[stored] = values
    if config["rope_parameters"].get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = _rope_divisors(config["rope_parameters"], config["head_dim"])
    metadata = {**_fields_of(config, architecture), **(fields or {})}
    return write_gguf(path, architecture, metadata, {**tensors, **(more or {})}, kind, split)


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


def _delta_net(name: str, values: np.ndarray, config: Mapping[str, Any]) -> tuple[str, np.ndarray]:
    """A tensor of a DeltaNet layer as it is stored: value heads one of each key head after another, −e^A for A."""
    keys, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    Dk, Dv = config["linear_key_head_dim"], config["linear_value_head_dim"]
    # Head v of the file is the published head `order[v]`: the first head of each key head, then the second, …
    order = [key * (heads // keys) + number for number in range(heads // keys) for key in range(keys)]
    rows = np.concatenate([np.arange(head * Dv, (head + 1) * Dv) for head in order])
    if name.endswith(".A_log"):
        return name, -np.exp(values[order])
    if name.endswith(".dt_bias"):
        return name.replace(".dt_bias", ".dt_proj.bias"), values[order]
    if ".in_proj_a." in name or ".in_proj_b." in name:
        return name, values[order]
    if ".in_proj_z." in name:
        return name, values[rows]
    if ".out_proj." in name:
        return name, values[:, rows]
    if ".in_proj_qkv." in name or ".conv1d." in name:
        values = values.reshape(values.shape[0], -1)
        return name, np.concatenate([values[: 2 * keys * Dk], values[2 * keys * Dk :][rows]])
    return name, values


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
        "feed_forward_length": config.get("intermediate_size"),
    }
    if full.get("rope_type") == "linear":
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": full["factor"]}
    if architecture.endswith("moe"):
        fields |= {
            "expert_count": config.get("num_experts", config.get("num_local_experts")),
            "expert_used_count": config["num_experts_per_tok"],
            "expert_feed_forward_length": config["moe_intermediate_size"],
        }
    if architecture.startswith("qwen35"):
        fields |= {
            "ssm.conv_kernel": config["linear_conv_kernel_dim"],
            "ssm.state_size": config["linear_key_head_dim"],
            "ssm.group_count": config["linear_num_key_heads"],
            "ssm.time_step_rank": config["linear_num_value_heads"],
            "ssm.inner_size": config["linear_value_head_dim"] * config["linear_num_value_heads"],
            "rope.dimension_count": int(config["head_dim"] * rope["partial_rotary_factor"]),
        }
    if architecture == "qwen35moe":
        fields["expert_shared_feed_forward_length"] = config["shared_expert_intermediate_size"]
    if architecture.startswith("gemma"):
        fields |= {
            "attention.sliding_window": config["sliding_window"],
            # The published models need no such field: their scale follows from the size of a head.
            "attention.scale": config["query_pre_attn_scalar"] ** -0.5,
        }
    if architecture == "gemma2":
        fields |= {name: config[name] for name in ("attn_logit_softcapping", "final_logit_softcapping")}
    return {f"{architecture}.{name}": value for name, value in fields.items() if value is not None}
