"""GGUF files of the golden models give the published residuals, logits and greedy texts through `sj.load`."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import pre_tokenizers

import steerling_jax as sj
from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.io.gguf.model import read_gguf_model
from steerling_jax.tokenizer import IdsOnlyTokenizer
from tests.worlds.decoders import DECODERS, assert_within, golden_decoder
from tests.worlds.gguf_files import Kind, llama_fields, llama_tensors, write_gguf, write_gguf_of_folder


@pytest.mark.parametrize("name", DECODERS)
def test_a_golden_model_as_gguf(name: str, tmp_path: Path):
    golden = golden_decoder(name)
    bundle = sj.load(write_gguf_of_folder(golden.folder, tmp_path / "model.gguf"))
    reference = sj.load(golden.folder)
    result = sj.forward(bundle, golden.arrays["input_ids"])
    assert_within(np.asarray(result.logits), golden.arrays["logits"], golden.tolerance)
    for field in ("layer_types", "tie_word_embeddings", "head_dim", "query_scale", "final_cap", "linear"):
        assert getattr(bundle.config, field) == getattr(reference.config, field), field
    assert isinstance(bundle.tokenizer, IdsOnlyTokenizer)


def test_qwen3_5_with_layers_that_predict_several_tokens(tmp_path: Path):
    """They are counted as blocks and come last; gate and up of the experts may be one tensor."""
    golden = golden_decoder("qwen3_5_moe")
    folder = golden.folder
    model = read_gguf_model(write_gguf_of_folder(folder, tmp_path / "model.gguf"))
    fields = {"qwen35moe.block_count": 5, "qwen35moe.nextn_predict_layers": 1}
    more = {"blk.4.nextn.eh_proj.weight": np.ones((32, 64), np.float32), "blk.4.ssm_a": np.ones(4, np.float32)}
    again = read_gguf_model(write_gguf_of_folder(folder, tmp_path / "mtp.gguf", fields=fields, more=more))
    assert again.config == model.config
    assert again.tensors.keys() == model.tensors.keys()

    def stacked(part: str) -> np.ndarray:
        return np.stack([model.tensors[f"model.layers.0.mlp.experts.{i}.{part}_proj.weight"].map() for i in range(8)])

    both = {"blk.4.ffn_gate_up_exps.weight": np.concatenate([stacked("gate"), stacked("up")], axis=1)}
    five = {"qwen35moe.block_count": 5}
    fused = read_gguf_model(write_gguf_of_folder(folder, tmp_path / "fused.gguf", fields=five, more=both)).tensors
    for expert in range(8):
        for part in ("gate", "up"):
            name = f"mlp.experts.{expert}.{part}_proj.weight"
            copy, original = (tensors[f"model.layers.{n}.{name}"] for tensors, n in ((fused, 4), (model.tensors, 0)))
            assert copy.shape == original.shape
            np.testing.assert_array_equal(copy.map(), original.map())


def test_a_model_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    golden = golden_decoder("llama")
    whole = sj.load(write_gguf_of_folder(golden.folder, tmp_path / "whole.gguf", Kind.Q8_0))
    write_gguf_of_folder(golden.folder, tmp_path / "m.gguf", Kind.Q8_0, split=15)
    parts = sorted(tmp_path.glob("m-*"))
    assert [part.name for part in parts] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    ids = golden.arrays["input_ids"]
    for part in (parts[0], parts[2]):
        np.testing.assert_array_equal(sj.forward(sj.load(part), ids).logits, sj.forward(whole, ids).logits)

    requests: list[tuple[str, str]] = []

    def fetch(repo: str, name: str) -> str:
        requests.append((repo, name))
        return str(tmp_path / Path(name).name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    bundle = sj.load("owner/model/Q8_0/m-00001-of-00003.gguf")
    assert requests == [("owner/model", f"Q8_0/{part.name}") for part in parts]
    assert bundle.config == whole.config


def test_parts_that_do_not_make_a_model(tmp_path: Path):
    folder, other = golden_decoder("llama").folder, tmp_path / "other"
    other.mkdir()
    for path, split in ((tmp_path, 15), (other, 14)):
        write_gguf_of_folder(folder, path / "m.gguf", split=split)
    parts, others = sorted(tmp_path.glob("m-*")), sorted(other.glob("m-*"))
    content = parts[1].read_bytes()

    def refused(words: str, path: Path = parts[0]) -> None:
        with pytest.raises(UserError, match=words):
            read_gguf_model(path)

    parts[1].unlink()
    refused(r"m-00002-of-00003\.gguf is missing: the model has 3 parts; copy all into one folder")
    parts[1].write_bytes(parts[2].read_bytes())
    refused(r"m-00002-of-00003\.gguf has split\.no 2 and split\.count 3, but as part 2 of 3 it must have 1 and 3")
    parts[1].write_bytes(others[1].read_bytes())
    refused(r"m-00002-of-00003\.gguf: tensor '.*' is in m-00001-of-00003\.gguf as well")
    parts[1].write_bytes(content)
    parts[0].write_bytes(others[0].read_bytes())
    refused(r"the parts have 39 tensors, but split\.tensors\.count is 40")
    (tmp_path / "one.gguf").write_bytes(content)
    refused(r"one\.gguf is one of 3 parts of a model; give the parts their names NAME-00001", tmp_path / "one.gguf")


def test_dtype_and_stored_dtype(tmp_path: Path):
    for kind, stored in ((Kind.BF16, "bfloat16"), (Kind.F16, "float32"), (Kind.Q8_0, "float32")):
        path = write_gguf(tmp_path / f"{kind.name}.gguf", "llama", llama_fields(), llama_tensors(), kind)
        bundle = sj.load(path)
        assert bundle.compute.dtype == stored
        assert bundle.params["norm"]["weight"].dtype == jnp.float32, "norms are stored in float32"
    bundle = sj.load(path, dtype="bfloat16")
    assert bundle.params["embed_tokens"]["weight"].dtype == jnp.bfloat16
    assert sj.hidden_states(bundle, [1, 2, 3], layers=[1])[1].shape == (1, 3, 32)


def test_a_tensor_that_is_missing_or_has_another_shape(tmp_path: Path):
    tensors = llama_tensors()
    del tensors["blk.1.ffn_up.weight"]
    with pytest.raises(UserError, match=r"model\.gguf: tensor 'layers\.1\.mlp\.up_proj\.weight' is missing"):
        sj.load(write_gguf(tmp_path / "model.gguf", "llama", llama_fields(), tensors))
    tensors = llama_tensors() | {"blk.1.ffn_up.weight": np.zeros((32, 32), np.float32)}
    with pytest.raises(UserError, match=r"model\.gguf: tensor '.*up_proj.weight' has shape \[32, 32\]"):
        sj.load(write_gguf(tmp_path / "model.gguf", "llama", llama_fields(), tensors))


def test_files_that_are_no_gguf(tmp_path: Path):
    (tmp_path / "model.txt").write_text("hello")
    with pytest.raises(UserError, match=r"model\.txt is a file; give a GGUF file or the folder of a model"):
        sj.load(tmp_path / "model.txt")
    (tmp_path / "model.gguf").write_text("hello")
    with pytest.raises(UserError, match=r"model\.gguf is not a GGUF file"):
        sj.load(tmp_path / "model.gguf")


def chat_model(path: Path, **fields: object) -> Path:
    """A random Llama with bytes as its vocabulary and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*alphabet, "he", "<|end|>"],
        "tokenizer.ggml.token_type": [1] * 257 + [3],
        "tokenizer.ggml.merges": ["h e"],
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.chat_template": "{{ messages[0].content }}<|end|>{{ 'he' * add_generation_prompt }}",
    }
    return write_gguf(path, "llama", llama_fields() | vocabulary | fields, llama_tensors(258))


def test_generate_applies_the_chat_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = str(chat_model(tmp_path / "chat.gguf"))
    line = ["generate", "--model", model, "--chat", "he <|end|>", "--greedy", "--max-new-tokens", "2", "--json"]
    assert main(line) in (None, 0)
    report = json.loads(capsys.readouterr().out)
    bundle = sj.load(model)
    message = bundle.tokenizer.encode("he <|end|>")
    assert report["tokens"][: report["prompt_tokens"]] == [*message, 257, 256]
    assert main([*line[:3], "--chat", "--prompt-ids", "1 2"]) == 2
    assert "--chat needs a message" in capsys.readouterr().err
    bare = chat_model(tmp_path / "bare.gguf", **{"tokenizer.chat_template": 0})
    assert main(["generate", "--model", str(bare), "--chat", "he"]) == 2
    assert "has no chat template" in capsys.readouterr().err
    endless = "{% for i in range(9999) %}{{ 'a' * 99999 }}{% endfor %}"
    bad = chat_model(tmp_path / "bad.gguf", **{"tokenizer.chat_template": endless})
    assert main(["generate", "--model", str(bad), "--chat", "he"]) == 2
    assert "The chat template of" in capsys.readouterr().err
