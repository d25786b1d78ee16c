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
from steerling_jax.tokenizer import IdsOnlyTokenizer
from tests.worlds.decoders import assert_within, golden_decoder
from tests.worlds.gguf_files import Kind, llama_fields, llama_tensors, write_gguf, write_gguf_of_folder


@pytest.mark.parametrize("name", ["llama", "llama_tied", "qwen3", "qwen3_moe", "gemma2", "gemma3"])
def test_a_golden_model_as_gguf(name: str, tmp_path: Path):
    golden = golden_decoder(name)
    bundle = sj.load(write_gguf_of_folder(golden.folder, tmp_path / "model.gguf"))
    reference = sj.load(golden.folder)
    result = sj.forward(bundle, golden.arrays["input_ids"])
    assert_within(np.asarray(result.logits), golden.arrays["logits"], golden.tolerance)
    for field in ("layer_types", "tie_word_embeddings", "head_dim", "query_scale", "final_cap", "sliding_window"):
        assert getattr(bundle.config, field) == getattr(reference.config, field), field
    assert isinstance(bundle.tokenizer, IdsOnlyTokenizer)


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
