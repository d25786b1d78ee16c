"""Small GGUF files, written by the `gguf` package as the usual converters write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

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
