"""SmolLM2-135M-Instruct, a real model in a quantised GGUF file: tokens, loss and greedy texts of transformers.

`tests/data/smollm2` has a text of this project's own and what transformers made of it, in float32 on a CPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.io.tokenizers.library_tokenizer import LibraryTokenizer
from tests.worlds.paths import REPOSITORY
from tests.worlds.real_models import smollm2_file

DATA = REPOSITORY / "tests" / "data" / "smollm2"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle() -> sj.Bundle:
    return sj.load(smollm2_file())


@pytest.fixture(scope="module")
def tokenizer(bundle: sj.Bundle) -> LibraryTokenizer:
    assert isinstance(bundle.tokenizer, LibraryTokenizer)
    return bundle.tokenizer


def read(name: str) -> dict[str, Any]:
    return json.loads(Path(DATA, name).read_text())


def test_tokens_are_those_of_transformers(tokenizer: LibraryTokenizer):
    expected = read("tokens.json")
    for case in expected["texts"]:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        assert tokenizer.decode(case["ids"]) == case["text"]
    for case in expected["chats"]:
        assert tokenizer.chat_prompt(case["messages"]) == case["ids"]


def test_the_loss_of_a_text_is_that_of_transformers(bundle: sj.Bundle, tokenizer: LibraryTokenizer):
    expected = read("reference.json")
    ids = tokenizer.encode((DATA / "text.txt").read_text())
    assert len(ids) == expected["tokens"]
    logits = np.asarray(sj.forward(bundle, ids).logits, np.float64)[0, :-1]
    log_probabilities = np.asarray(jax.nn.log_softmax(logits.astype(np.float32)))
    loss = -log_probabilities[np.arange(len(ids) - 1), ids[1:]].mean()
    assert loss == pytest.approx(expected["loss"], rel=1e-4)


def test_greedy_texts_are_those_of_transformers(bundle: sj.Bundle, tokenizer: LibraryTokenizer):
    expected = read("reference.json")
    ids = tokenizer.encode((DATA / "text.txt").read_text())[: expected["greedy_after"]]
    chat = read("tokens.json")["chats"][0]["ids"]
    greedy = sj.GenerationConfig(max_new_tokens=24, temperature=0.0)
    for prompt, new in ((ids, expected["greedy"]), (chat, expected["chat_greedy"])):
        assert list(sj.generate(bundle, prompt, greedy).tokens)[len(prompt) :] == new
