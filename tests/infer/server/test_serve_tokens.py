"""`steerling serve` with an autoregressive model, as a real process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import steerling_jax as sj
from tests.worlds.decoders import GOLDEN_DECODERS
from tests.worlds.serving_world import Server, ask, events, serving, text

LLAMA = GOLDEN_DECODERS / "llama"
PROMPT = [5, 6, 7]  # the folder has no tokenizer, so texts are ids in decimal


@pytest.fixture(scope="module")
def server(child_environment: dict[str, str]) -> Iterator[Server]:
    with serving(LLAMA, child_environment, "--rows", "2") as server:
        yield server


def test_texts_served_together_are_those_of_generate(server: Server):
    bundle = sj.load(LLAMA)
    drawn = {"seed": 4, "temperature": 0.7, "top_k": 30, "top_p": 0.9}
    bodies = [
        {"prompt": PROMPT, "max_tokens": 11, "temperature": 0.0},
        {"prompt": "5 6 7", "max_tokens": 9, "seed": 3},
        {"prompt": PROMPT * 9, "max_tokens": 5, "trace": True, **drawn},
    ]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda body: ask(server, **body), bodies))
    configs = [
        sj.GenerationConfig(max_new_tokens=11, temperature=0.0),
        sj.GenerationConfig(max_new_tokens=9, seed=3),
        sj.GenerationConfig(max_new_tokens=5, **drawn),
    ]
    for body, config, answer in zip(bodies, configs, answers, strict=True):
        expected = sj.generate(bundle, body["prompt"], config)
        assert text(answer) == expected.text
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == config.max_new_tokens
    commits = answers[2]["trace"]["commits"]
    assert [(one["step"], one["positions"]) for one in commits] == [(i, [27 + i]) for i in range(5)]


def test_streamed_is_unstreamed_and_stop_texts_end_it(server: Server):
    whole = text(ask(server, prompt=PROMPT, max_tokens=24, seed=8))
    chunks = events(server.post({"prompt": PROMPT, "max_tokens": 24, "seed": 8, "stream": True}))
    assert chunks.pop() == "[DONE]"
    parts = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert "".join(part["text"] for part in parts) == whole
    assert sum(bool(part["text"]) for part in parts) > 1
    word = whole.split()[6]
    stopped = ask(server, prompt=PROMPT, max_tokens=24, seed=8, stop=f" {word}")
    assert text(stopped) == whole[: whole.index(f" {word}")]
    assert stopped["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("completions", {"prompt": PROMPT, "steering": {"amplify": {"Email": 3}}}, 400, "steering needs a model with"),
        ("completions", {"prompt": PROMPT, "steps": 4}, 400, "steps is 4, but it has a meaning for diffusion models"),
        ("completions", {"prompt": PROMPT, "max_tokens": 254}, 400, "the text 254, but the model's context is 256"),
        ("completions", {"prompt": [64]}, 400, "outside the vocabulary"),
        ("chat/completions", {"messages": [{"role": "user", "content": "1"}]}, 400, "no chat template"),
    ],
)
def test_what_has_no_meaning_is_refused(server: Server, path: str, body: dict, status: int, words: str):
    answer = server.post(body, f"/v1/{path}")
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
