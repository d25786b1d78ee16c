"""Bad model folders: one sentence that names the file, field or tensor."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from steerling_jax.errors import UserError
from steerling_jax.io.weights.published_layout import INDEX, SINGLE
from steerling_jax.io.weights.published_reader import read_published
from steerling_jax.io.weights.published_writer import write_published

EMBEDDING = "transformer.tok_emb.weight"


@pytest.fixture
def model(golden: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", SINGLE):
        shutil.copyfile(golden / "base" / name, folder / name)
    return folder


@pytest.fixture
def shards(model: Path, tmp_path: Path) -> Path:
    config, params, _ = read_published(model)
    write_published(tmp_path / "shards", config, params, max_shard_bytes=200_000)
    return tmp_path / "shards"


def fails(folder: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_published(folder)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text
    assert text.endswith((".", "?"))


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder: Path, edit: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE)


def edit_header(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def test_no_folder(tmp_path: Path):
    fails(tmp_path / "nowhere", "nowhere", "no folder")


def test_no_config(model: Path):
    (model / "config.json").unlink()
    fails(model, "no config.json")


def test_no_weights(model: Path):
    (model / SINGLE).unlink()
    fails(model, "no weights", SINGLE)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[1]", "JSON object"),
        ("\xff", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("{}", "model_type"),
    ],
)
def test_config_that_is_no_config(model: Path, text: str, word: str):
    (model / "config.json").write_bytes(text.encode("latin-1"))
    fails(model, "config.json", word)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c.update(n_heads=4), ("unknown field 'n_heads'", "'n_head'")),
        (lambda c: c["concept"].update(ranks=4), ("unknown field 'concept.ranks'",)),
        (lambda c: c.update(concept=[1]), ("concept",)),
        (lambda c: c.update(block_size=10**400), ("block_size is not a finite number",)),
        (lambda c: c.update(n_embd=10**4200, n_head=10**4200), ("is not a finite number",)),
        (lambda c: c.update(rope_base=float("inf")), ("rope_base is not a finite number",)),
        (lambda c: c.update(norm_eps=float("nan")), ("norm_eps is not a finite number",)),
        (lambda c: c["concept"].update(topk_known=10**4200), ("topk_known is not a finite number",)),
        (lambda c: c.update(n_layers="four"), ("n_layers", "'four'")),
        (lambda c: c.update(n_layers=0), ("n_layers",)),
        (lambda c: c.update(n_head=5), ("n_embd (64)", "n_head (5)")),
        (lambda c: c.update(n_kv_heads=3), ("n_head (4)", "n_kv_heads (3)")),
        (lambda c: c["concept"].update(concept_dim=32), ("concept_dim (32)", "n_embd (64)")),
        (lambda c: c["concept"].update(factorize_rank=8), ("factorize_rank is 8",)),
        (lambda c: c.update(mask_token_id=300), ("mask_token_id is 300",)),
        (lambda c: c.update(mlp_type="moe"), ("mlp_type", "'moe'")),
        (lambda c: c.update(model_type="llama"), ("model_type", "'llama'")),
        (lambda c: c.pop("concept"), ("interpretable",)),
    ],
)
def test_impossible_configs(model: Path, edit: Callable[[dict], Any], words: tuple[str, ...]):
    edit_config(model, edit)
    fails(model, "config.json", *words)


def test_config_of_a_far_larger_model_is_reported_at_once(model: Path):
    edit_config(model, lambda config: config.update(n_layers=10**12))
    fails(model, "transformer.blocks.4.", "missing")


@pytest.mark.parametrize("size", [0, 5, 8, 100, 4031, 5000, -1])
def test_truncated_weights(model: Path, size: int):
    path = model / SINGLE
    path.write_bytes(path.read_bytes()[:size])
    fails(model, SINGLE, "truncated or corrupt")


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: struct.pack("<Q", 2**63) + raw[8:],
        lambda raw: struct.pack("<Q", 0) + raw[8:],
        lambda raw: raw[:8] + b"x" + raw[9:],
        lambda raw: raw[:8] + b"\xff\xfe" + raw[10:],
        lambda raw: struct.pack("<Q", 4) + b"[12]",
        lambda raw: raw + b"more",
        lambda raw: b"<!DOCTYPE html><html>not found</html>",
    ],
)
def test_corrupt_weights(model: Path, damage: Callable[[bytes], bytes]):
    path = model / SINGLE
    path.write_bytes(damage(path.read_bytes()))
    fails(model, SINGLE, "truncated or corrupt")


@pytest.mark.parametrize(
    "edit",
    [
        lambda h: h[EMBEDDING].update(data_offsets=[10**9, 10**9 + 76800]),
        lambda h: h[EMBEDDING].update(data_offsets=[0, 76800]),
        lambda h: h[EMBEDDING].update(data_offsets=[76800, 0]),
        lambda h: h[EMBEDDING].update(data_offsets=[-76800, 0]),
        lambda h: h[EMBEDDING].update(data_offsets="all"),
        lambda h: h[EMBEDDING].update(shape=[300, 65]),
        lambda h: h[EMBEDDING].update(shape=[300, True]),
        lambda h: h[EMBEDDING].update(shape="wide"),
        lambda h: h[EMBEDDING].pop("dtype"),
        lambda h: h.update({EMBEDDING: None}),
        lambda h: h.pop(EMBEDDING),
    ],
)
def test_headers_that_do_not_describe_the_data(model: Path, edit: Callable[[dict], Any]):
    edit_header(model / SINGLE, edit)
    fails(model, SINGLE, "truncated or corrupt")


@pytest.mark.parametrize(
    "name", [EMBEDDING, "transformer.blocks.3.attn.q_norm.weight", "known_head.concept_embedding.weight"]
)
def test_missing_tensor(model: Path, name: str):
    edit_tensors(model, lambda tensors: tensors.pop(name))
    fails(model, repr(name), "missing")


@pytest.mark.parametrize("name", ["transformer.blocks.4.ln_1.weight", "transformer.blocks.0.attn.c_attn.bias", "extra"])
def test_unknown_tensor(model: Path, name: str):
    edit_tensors(model, lambda tensors: tensors.update({name: np.zeros(64, np.float32)}))
    fails(model, repr(name), "unknown")


@pytest.mark.parametrize("shape", [(64, 300), (301, 64), (19200,), (1, 300, 64)])
def test_misshapen_tensor(model: Path, shape: tuple[int, ...]):
    edit_tensors(model, lambda tensors: tensors.update({EMBEDDING: np.zeros(shape, np.float32)}))
    fails(model, repr(EMBEDDING), "shape", "[300, 64]")


@pytest.mark.parametrize("dtype", ["int8", "int64", "float64"])
def test_tensor_of_another_type(model: Path, dtype: str):
    edit_tensors(model, lambda tensors: tensors.update({EMBEDDING: tensors[EMBEDDING].astype(dtype)}))
    fails(model, repr(EMBEDDING), "convert it")


def test_shard_that_is_not_there(shards: Path):
    (shards / "model-00002-of-00004.safetensors").unlink()
    fails(shards, INDEX, "model-00002-of-00004.safetensors", "not in the folder")


def test_shard_that_lacks_what_the_index_places_there(shards: Path):
    index = json.loads((shards / INDEX).read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00004.safetensors"
    (shards / INDEX).write_text(json.dumps(index))
    fails(shards, "'ghost'", "model-00001-of-00004.safetensors")


def test_shard_with_more_than_the_index_places_there(shards: Path):
    index = json.loads((shards / INDEX).read_text())
    del index["weight_map"][EMBEDDING]
    (shards / INDEX).write_text(json.dumps(index))
    fails(shards, repr(EMBEDDING), INDEX)


def test_truncated_shard(shards: Path):
    path = shards / "model-00003-of-00004.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    fails(shards, path.name, "truncated or corrupt")


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../a"}}']
)
def test_index_that_is_no_index(shards: Path, text: str):
    (shards / INDEX).write_text(text)
    fails(shards, INDEX)
