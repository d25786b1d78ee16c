"""GGUF files: values as the `gguf` package reads them, published names and order of rows; bad files are reported."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from steerling_jax.errors import UserError
from steerling_jax.io.gguf.header import read_gguf_header
from steerling_jax.io.gguf.model import read_gguf_model
from steerling_jax.io.gguf.tensors import READABLE, gguf_tensors
from tests.worlds.gguf_files import Kind, llama_fields, llama_tensors, write_gguf


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    return write_gguf(folder / "llama.gguf", "llama", llama_fields(), llama_tensors(), Kind.Q8_0)


@pytest.mark.parametrize("name", READABLE)
def test_each_type_is_read_as_the_package_reads_it(name: str, tmp_path: Path):
    """Random blocks, since the package cannot quantise all types; three rows, so that rows and offsets matter."""
    kind = Kind[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    raw = np.random.default_rng(0).integers(0, 50, (2, 3, 512 // block * size), np.uint8)
    for i, values in enumerate(raw):
        writer.add_tensor(f"t{i}", values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    tensors = gguf_tensors(read_gguf_header(tmp_path / "x.gguf"))
    for i, values in enumerate(raw):
        tensor = tensors[f"t{i}"]
        assert tensor.shape == (3, 512)
        result = tensor.map()
        assert result.dtype == tensor.dtype
        np.testing.assert_array_equal(np.asarray(result, np.float32), gguf.quants.dequantize(values, kind))
        np.testing.assert_array_equal(np.asarray(tensor.row(1).map(), np.float32), np.asarray(result[1], np.float32))


def test_metadata_of_each_kind(tmp_path: Path):
    fields: dict[str, Any] = {
        "a": 3,
        "b": 0.5,
        "c": "tëxt",
        "d": True,
        "e": ["x", "", "yz"],
        "f": [1, -2, 3],
        "g": [0.5],
    }
    header = read_gguf_header(write_gguf(tmp_path / "x.gguf", "llama", fields, {}))
    for key, value in fields.items():
        stored = header.metadata[key]
        assert (stored.tolist() if isinstance(stored, np.ndarray) else stored) == value


def test_a_llamas_config_and_names(llama: Path):
    model = read_gguf_model(llama)
    expected = {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    assert {name: model.config[name] for name in expected} == expected
    assert {name for name in model.tensors if ".1." not in name} == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        *(f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkvo"),
        *(f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }


def test_rows_of_q_and_k_are_put_back_in_order(tmp_path: Path):
    """A row of a head in halves, 0 … 7, is stored as the pairs (0, 4), (1, 5), …; v is stored as it is."""
    tensors = llama_tensors()
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    published = {name: tensors[f"blk.0.attn_{name}.weight"].copy() for name in "qkv"}
    for name, heads in (("q", 4), ("k", 2)):
        stored = published[name].reshape(heads, 8, 32)[:, order].reshape(-1, 32)
        tensors[f"blk.0.attn_{name}.weight"] = stored
    model = read_gguf_model(write_gguf(tmp_path / "x.gguf", "llama", llama_fields(), tensors))
    for name, values in published.items():
        np.testing.assert_array_equal(model.tensors[f"model.layers.0.self_attn.{name}_proj.weight"].map(), values)


def changed(path: Path, tmp_path: Path, start: int, content: bytes) -> Path:
    data = path.read_bytes()
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(data[:start] + content + data[start + len(content) :])
    return damaged


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        [tensor.map() for tensor in read_gguf_model(path).tensors.values()]
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_truncated_files(llama: Path, tmp_path: Path):
    data = llama.read_bytes()
    for length in (*range(4, 4000, 61), len(data) - 1):
        path = tmp_path / "short.gguf"
        path.write_bytes(data[:length])
        assert "is truncated or corrupt" in refusal(path), length


def test_lengths_beyond_the_file_take_neither_time_nor_memory(llama: Path, tmp_path: Path):
    huge = struct.pack("<Q", 1 << 60)
    assert "is truncated or corrupt" in refusal(changed(llama, tmp_path, 8, huge)), "number of tensors"
    assert "is truncated or corrupt" in refusal(changed(llama, tmp_path, 16, huge)), "number of fields"
    assert "is truncated or corrupt" in refusal(changed(llama, tmp_path, 24, huge)), "length of a key"
    array = struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 0, 1 << 60)
    path = tmp_path / "array.gguf"
    path.write_bytes(b"GGUF" + array + bytes(100))
    assert "is truncated or corrupt" in refusal(path), "an array of bytes"


def test_files_of_other_formats(llama: Path, tmp_path: Path):
    assert "is not a GGUF file" in refusal(changed(llama, tmp_path, 0, b"PK\x03\x04"))
    assert "is version 1 of the format" in refusal(changed(llama, tmp_path, 4, struct.pack("<I", 1)))
    assert "is big-endian" in refusal(changed(llama, tmp_path, 4, struct.pack(">I", 3)))
    with pytest.raises(UserError, match="Cannot read"):
        read_gguf_model(tmp_path / "missing.gguf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"llama.block_count": None}, "has no field llama.block_count"),
        ({"llama.block_count": "two"}, "the field llama.block_count is not a positive whole number"),
        ({"llama.attention.head_count_kv": [2, 1]}, "the same for all layers"),
        ({"llama.rope.scaling.type": "yarn"}, "has the RoPE scaling 'yarn', which is not read"),
        ({"llama.rope.freq_base": float("nan")}, "the field llama.rope.freq_base is not a positive number"),
        ({"split.count": 3}, "is one of 3 parts of a model; give the parts their names"),
        ({"split.count": "x"}, "the field split.count is 'x'"),
    ],
)
def test_metadata_that_is_not_read(changes: dict[str, Any], words: str, tmp_path: Path):
    path = write_gguf(tmp_path / "x.gguf", "llama", llama_fields(**changes), llama_tensors())
    assert words in refusal(path)


def test_architectures_quantisations_and_tensors_that_are_not_read(tmp_path: Path):
    path = write_gguf(tmp_path / "mamba.gguf", "mamba", {}, llama_tensors())
    assert "the architecture 'mamba', which is not read; architectures that are read from GGUF: llama" in refusal(path)

    extra = llama_tensors() | {"blk.0.ssm_a.weight": np.ones((2, 32), np.float32)}
    assert "tensor 'blk.0.ssm_a.weight' is unknown" in refusal(
        write_gguf(tmp_path / "extra.gguf", "llama", llama_fields(), extra)
    )
    tensors = llama_tensors() | {"rope_freqs.weight": np.array([1, 2, 1, 3], np.float32)}
    path = write_gguf(tmp_path / "rope.gguf", "llama", llama_fields(), tensors)
    assert "'rope_freqs.weight' is not the scaling of Llama 3.1" in refusal(path)

    writer = gguf.GGUFWriter(tmp_path / "iq1.gguf", "llama")
    for key, value in llama_fields().items():
        writer.add_uint32(key, value) if isinstance(value, int) else writer.add_float32(key, value)
    writer.add_tensor("token_embd.weight", np.zeros((2, 50), np.uint8), raw_dtype=Kind.IQ1_S)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = refusal(tmp_path / "iq1.gguf")
    assert "tensor 'token_embd.weight' is quantised as IQ1_S, which is not read" in message
    assert "Q4_K" in message
