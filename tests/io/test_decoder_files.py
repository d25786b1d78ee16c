"""Hugging Face folders of decoders: layouts that are read, and one sentence for those that are not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.io.weights.safetensors_format import TensorToWrite, read_header, write_file
from steerling_jax.models.decoder.published_config import decoder_config
from steerling_jax.models.edits import inject
from tests.worlds.decoders import GOLDEN_DECODERS

Tensors = dict[str, np.ndarray]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN_DECODERS / "llama", tmp_path / "model"))


@pytest.fixture
def moe(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN_DECODERS / "qwen3_5_moe", tmp_path / "model"))


def tensors_of(folder: Path) -> Tensors:
    return {name: np.array(tensor.map()) for name, tensor in read_header(folder / "model.safetensors").items()}


def write(path: Path, tensors: Tensors) -> None:
    write_file(path, [TensorToWrite(n, value.dtype, value.shape, lambda v=value: v) for n, value in tensors.items()])


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    write(folder / "model.safetensors", change(tensors_of(folder)))


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def same_params(folder: Path, name: str) -> None:
    found, expected = sj.load(folder).params, sj.load(GOLDEN_DECODERS / name).params
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def fails(folder: Path, *words: str) -> None:
    with pytest.raises(sj.UserError) as caught:
        sj.load(folder)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert len(str(caught.value)) < 700


def test_shards_with_an_index(llama: Path):
    tensors = tensors_of(llama)
    (llama / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        write(llama / file, {name: tensors[name] for name in names if files[name] == file})
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    same_params(llama, "llama")


def test_a_nested_configuration_with_other_prefixes_and_layers_that_are_not_the_text_model_s(moe: Path):
    def change(tensors: Tensors) -> Tensors:
        renamed = {name.replace("model.", "model.language_model."): value for name, value in tensors.items()}
        extra = np.zeros((2, 2), np.float32)
        return renamed | {"mtp.layers.0.x.weight": extra, "model.visual.blocks.0.attn.qkv.weight": extra}

    rewrite(moe, change)
    text = json.loads((moe / "config.json").read_text())
    text.pop("architectures")
    text.pop("tie_word_embeddings")
    outer = {"architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe", "text_config": text}
    (moe / "config.json").write_text(json.dumps(outer | {"tie_word_embeddings": False, "eos_token_id": [3, 5]}))
    same_params(moe, "qwen3_5_moe")
    assert sj.load(moe).config.rope.share == 0.25


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe", "gemma2"])
def test_the_base_of_the_rotation_that_transformers_takes_where_the_file_names_none(name: str):
    raw = json.loads((GOLDEN_DECODERS / name / "config.json").read_text())
    raw.pop("rope_parameters")
    assert decoder_config(raw).rope.theta == 10_000.0


def test_kinds_of_layers_are_those_of_the_file_or_follow_the_interval():
    raw = json.loads((GOLDEN_DECODERS / "qwen3_5" / "config.json").read_text())
    given = ["full_attention", "linear_attention", "linear_attention", "full_attention"]
    assert list(decoder_config(raw | {"layer_types": given}).layer_types) == given
    raw.pop("layer_types")
    for interval, kinds in ((2, "lflf"), (3, "llfl")):
        found = decoder_config(raw | {"full_attention_interval": interval}).layer_types
        assert [kind[0] for kind in found] == list(kinds)


def test_fused_experts(moe: Path):
    def change(tensors: Tensors) -> Tensors:
        fused = {name: value for name, value in tensors.items() if ".experts." not in name}
        for layer in range(4):
            stem = f"model.layers.{layer}.mlp.experts"
            stacks = {
                part: np.stack([tensors[f"{stem}.{e}.{part}.weight"] for e in range(8)])
                for part in ("gate_proj", "up_proj", "down_proj")
            }
            fused[f"{stem}.gate_up_proj"] = np.concatenate([stacks["gate_proj"], stacks["up_proj"]], axis=1)
            fused[f"{stem}.down_proj"] = stacks["down_proj"]
        return fused

    rewrite(moe, change)
    same_params(moe, "qwen3_5_moe")


def test_the_stored_dtype_is_the_default_and_a_copy_of_a_tied_embedding_is_accepted(tmp_path: Path):
    folder = Path(shutil.copytree(GOLDEN_DECODERS / "llama_tied", tmp_path / "model"))

    def change(tensors: Tensors) -> Tensors:
        halved = {name: value.astype(jnp.bfloat16) for name, value in tensors.items()}
        return halved | {"lm_head.weight": halved["model.embed_tokens.weight"]}

    rewrite(folder, change)
    bundle = sj.load(folder)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(bundle.params)} == {"bfloat16"}
    assert "lm_head" not in bundle.params
    logits = sj.forward(bundle, [1, 2, 3]).logits
    np.testing.assert_allclose(logits, sj.forward(sj.load(folder, dtype="float32"), [1, 2, 3]).logits, atol=0.3)
    rewrite(folder, lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"] + 1})
    fails(folder, "lm_head.weight", "tie_word_embeddings")


def test_older_flat_fields_of_rotary_embeddings():
    """`rope_theta` with `rope_scaling`, and Gemma 3's base of the sliding layers, are the newer `rope_parameters`."""
    from steerling_jax.models.decoder.published_config import decoder_config

    def config(name: str, **fields: Any) -> Any:
        raw = json.loads((GOLDEN_DECODERS / name / "config.json").read_text())
        return decoder_config(raw | fields)

    raw = json.loads((GOLDEN_DECODERS / "llama" / "config.json").read_text())["rope_parameters"]
    scaling = {key: value for key, value in raw.items() if key != "rope_theta"}
    flat = dict(rope_parameters=None, rope_theta=raw["rope_theta"], rope_scaling=scaling)
    assert config("llama", **flat) == config("llama")
    flat = dict(rope_parameters=None, rope_theta=1e6, rope_local_base_freq=1e4, layer_types=None)
    assert config("gemma3", **flat) == config("gemma3")
    scaled = config("gemma3", **flat, rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert (scaled.rope.factor, scaled.sliding_rope.factor) == (8.0, 1.0)


def test_all_ids_that_end_a_text(llama: Path):
    edit_config(llama, eos_token_id=7)
    (llama / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7]}))
    assert sj.load(llama).config.eos_token_ids == (7, 9)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(model_type="mamba", architectures=["MambaForCausalLM"]), ("'mamba'", "MambaForCausalLM", "qwen3_5_moe")),
        (dict(model_type=None, architectures=["XForCausalLM"]), ("XForCausalLM", "llama")),
        (dict(hidden_act="relu"), ("'relu'", "silu")),
        (dict(num_key_value_heads=3), ("num_attention_heads (4)", "num_key_value_heads (3)")),
        (dict(hidden_size="32"), ("hidden_size", "'32'")),
        (dict(hidden_size=10**400), ("hidden_size", "an integer")),
        (dict(rms_norm_eps=float("nan")), ("rms_norm_eps",)),
        (dict(rope_parameters={"rope_type": "yarn", "factor": 4.0}), ("'yarn'", "llama3")),
        (dict(rope_parameters={"rope_type": "linear"}), ("factor",)),
        (dict(rope_parameters=[1]), ("rope_parameters",)),
        (dict(quantization_config={"bits": 4}), ("quantization_config",)),
        (dict(text_config=3), ("text_config",)),
        (dict(num_hidden_layers=3), ("layers.3.", "unknown")),
        (dict(num_hidden_layers=5), ("layers.4.", "missing")),
        (dict(intermediate_size=47), ("layers.0.mlp", "[32, 48]", "[32, 47]")),
        (dict(attention_bias=True), ("self_attn", "bias", "missing")),
        (dict(head_dim=15), ("15", "even")),
        (dict(num_hidden_layers=0), ("num_hidden_layers",)),
        (dict(eos_token_id="x"), ("eos_token_id",)),
    ],
)
def test_configurations_that_are_refused(llama: Path, fields: dict[str, Any], words: tuple[str, ...]):
    edit_config(llama, **fields)
    fails(llama, str(llama), *words)


def test_layer_types_that_are_refused(tmp_path: Path):
    folder = Path(shutil.copytree(GOLDEN_DECODERS / "gemma3", tmp_path / "model"))
    for kinds, words in (
        (["full_attention"] * 3, ("layer_types has 3 entries for 7 layers",)),
        (["chunked_attention"] * 7, ("'chunked_attention'",)),
        (["linear_attention"] * 7, ("Gemma 3", "linear_attention")),
        (3, ("layer_types", "list")),
    ):
        edit_config(folder, layer_types=kinds)
        fails(folder, "config.json", *words)
    edit_config(folder, layer_types=["sliding_attention"] * 7, sliding_window=None)
    fails(folder, "sliding_window")
    edit_config(folder, use_bidirectional_attention=True)
    fails(folder, "use_bidirectional_attention")


def test_tensors_that_are_refused(llama: Path):
    tensors = tensors_of(llama)
    name = "model.layers.1.self_attn.q_proj.weight"
    for change, words in (
        ({key: value for key, value in tensors.items() if key != name}, (name.removeprefix("model."), "missing")),
        (tensors | {"model.layers.1.extra.weight": tensors[name]}, ("model.layers.1.extra.weight", "unknown")),
        (tensors | {name: tensors[name].T.copy()}, (name, "[32, 64]", "[64, 32]")),
        (tensors | {name.removeprefix("model."): tensors[name]}, (name, "twice")),
        ({key: value for key, value in tensors.items() if key != "lm_head.weight"}, ("lm_head.weight", "missing")),
    ):
        write(llama / "model.safetensors", change)
        fails(llama, *words)


def test_a_missing_expert_is_refused(moe: Path):
    name = "model.layers.2.mlp.experts.5.up_proj.weight"
    rewrite(moe, lambda tensors: {key: value for key, value in tensors.items() if key != name})
    fails(moe, "layers.2.mlp.experts.5.up_proj.weight", "missing")


def test_functions_that_need_concepts_refuse_a_decoder_and_name_its_family():
    bundle = sj.load(GOLDEN_DECODERS / "llama")
    assert bundle.config.n_layers == 4
    with pytest.raises(sj.UserError, match="Llama model has no concept"):
        _ = bundle.concepts
    with pytest.raises(sj.UserError, match="'known' needs a model with concepts"):
        sj.embed(bundle, "1 2 3", kind="known")
    with pytest.raises(sj.UserError, match="known concepts"):
        sj.forward(bundle, [1, 2], intervene_known={0: 1.0})
    with pytest.raises(sj.UserError, match="numbers of blocks from 0 to 3"):
        sj.hidden_states(bundle, [1, 2], [4])
    for layers in (3, "attn.3"):
        with pytest.raises(sj.UserError, match=f"layers is {layers!r}; give a list of blocks"):
            sj.hidden_states(bundle, [1, 2], cast(Any, layers))
    for edit, words in (
        (
            inject(jnp.ones((1, 1, 32)), layers=jnp.arange(8) == 7),
            r"edits\[0\].layers has 8 entries, but the model has 4",
        ),
        (inject(jnp.ones((1, 1, 16))), "the model's width is 32"),
        ("heron", "give a LayerEdit"),
    ):
        with pytest.raises(sj.UserError, match=words):
            sj.forward(bundle, [1, 2], edits=[cast(Any, edit)])
    with pytest.raises(sj.UserError, match="context of 256"):
        sj.forward(bundle, [1] * 257)
