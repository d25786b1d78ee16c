"""`steerling serve` as a real process, with OpenAI's client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

import steerling_jax as sj
from steerling_jax.io.tokenizers.cl100k import TiktokenTokenizer
from tests.worlds.serving_world import (
    PROMPT,
    Server,
    ask,
    events,
    serving,
    text,
    write_chat_model,
)


@pytest.fixture(scope="module")
def server(text_model: Path, child_environment: dict[str, str]) -> Iterator[Server]:
    with serving(text_model, child_environment, "--rows", "2") as server:
        yield server


def test_it_writes_what_generate_writes(server: Server, text_model: Path):
    config = sj.GenerationConfig(max_new_tokens=32, seed=7, top_p=0.9)
    expected = sj.generate(sj.load(text_model), PROMPT, config, record_hidden=False)
    answer = server.openai.completions.create(
        model="tiny-text", prompt=PROMPT, max_tokens=32, seed=7, top_p=0.9, extra_body={"trace": True}
    )
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == "length"
    counts = answer.usage
    assert counts is not None
    assert (counts.prompt_tokens, counts.completion_tokens) == (expected.trace.prompt_length, expected.generated_tokens)
    assert counts.total_tokens == counts.prompt_tokens + counts.completion_tokens
    extra = answer.model_extra
    assert extra is not None
    assert extra["seed"] == 7
    commits = [(c["step"], tuple(c["positions"]), tuple(c["token_ids"])) for c in extra["trace"]["commits"]]
    assert commits == [(c.step, c.positions, c.token_ids) for c in expected.trace.commits]
    assert extra["trace"]["steering"] == []


def test_it_compiles_before_it_says_that_it_is_ready(
    text_model: Path, child_environment: dict[str, str], tmp_path: Path
):
    options, file = ["--rows", "2", "--warm-up", "128"], tmp_path / "calls"
    file.write_text("wait")
    with serving(text_model, child_environment, *options, ready=r"(http://\S+)/health", file=file) as server:
        answer = server.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "starting")
        server.release()
        early = {"prompt": PROMPT, "max_tokens": 2}  # waits
        assert server.post(early).status_code == 200
        assert server.get("/health").json() == {"status": "ok"}
        compiled = server.metric("compiled_programs")
        with ThreadPoolExecutor(6) as pool:
            bodies: list[dict] = [{"temperature": i % 2, "max_tokens": 20 * i + 1, "seed": i} for i in range(5)]
            bodies.append({"prompt": [7] * 90, "steering": {"amplify": {"Email": 3}, "suppress": {"Dates": 2}}})
            list(pool.map(lambda body: ask(server, **body), bodies))
        assert server.metric("compiled_programs") == compiled
    assert [line.split()[0] for line in server.errors] == ["Serving"]


def test_streamed_is_unstreamed(server: Server):
    settings: Any = dict(model="tiny-text", prompt=PROMPT, max_tokens=45, seed=3)
    whole = server.openai.completions.create(**settings)
    chunks = list(server.openai.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    *parts, last, counts = chunks
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert len(parts) > 2
    assert [part.choices[0].finish_reason for part in parts] == [None] * len(parts)
    assert (last.choices[0].text, last.choices[0].finish_reason) == ("", "length")
    assert counts.choices == []
    assert counts.usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_events_of_a_stream(server: Server):
    body = {"prompt": PROMPT, "max_tokens": 20, "seed": 3, "stream": True, "trace": True}
    *chunks, done = events(server.post(body))
    assert done == "[DONE]"
    chunks = [json.loads(chunk) for chunk in chunks]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    commits = [commit for chunk in chunks[:-1] for commit in chunk["trace"]["commits"]]
    assert commits == ask(server, max_tokens=20, seed=3, trace=True)["trace"]["commits"]
    assert "trace" not in chunks[-1]


def test_a_text_is_cut_at_max_tokens_and_at_stop(server: Server):
    whole = ask(server, max_tokens=16)
    cut = ask(server, max_tokens=5)
    assert text(whole).startswith(text(cut).rstrip("\ufffd"))
    assert (cut["usage"]["completion_tokens"], cut["choices"][0]["finish_reason"]) == (5, "length")
    middle = text(whole)[len(text(whole)) // 2 :][:2]
    stopped = ask(server, max_tokens=16, stop=["never", middle])
    assert text(stopped) == text(whole)[: text(whole).index(middle)]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["usage"]["completion_tokens"] < 16
    streamed = [json.loads(chunk) for chunk in events(server.post(
        {"prompt": PROMPT, "max_tokens": 16, "seed": 1, "stop": middle, "stream": True}))[:-1]]  # fmt: skip
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == text(stopped)


def test_steering(server: Server):
    plain = ask(server, trace=True)
    steered = ask(server, trace=True, steering={"amplify": {"Regular expressions": 30}, "suppress": {"Email": 5}})
    assert plain["trace"]["steering"] == []
    assert len(steered["trace"]["steering"]) == 2
    assert "Regular expressions" in steered["trace"]["steering"][0]
    assert text(steered) != text(plain)


@pytest.mark.parametrize("prompt", [[5, 17, 4], [[5, 17, 4]], ["The"]], ids=str)
def test_kinds_of_prompts(server: Server, prompt: list):
    ids = prompt[0] if isinstance(prompt[0], list) else prompt
    expected = ask(server, prompt="The") if prompt == ["The"] else ask(server, prompt=ids)
    assert text(ask(server, prompt=prompt)) == text(expected)


def test_chat(child_environment: dict[str, str], tmp_path: Path):
    model = write_chat_model(tmp_path / "tiny-chat")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    halves = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    settings: Any = dict(model="tiny-chat", max_tokens=12, temperature=0)
    settings["messages"] = [messages[0], {"role": "user", "content": halves}]
    with serving(model, child_environment, "--max-body-bytes", "3000000") as server:
        create = server.openai.chat.completions.create
        whole = create(**settings)
        opening, *parts, last = create(**settings, stream=True)
        with pytest.raises(openai.BadRequestError, match="role and content"):
            create(**settings | {"messages": [{"role": "user", "text": "Hello"}]})
        # An answer that a client sends back, with the fields that its library adds.
        back = {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": [], "annotations": []}
        turns = {"messages": [*messages, back, messages[1]], "max_tokens": 4, "tool_choice": "none"}
        assert server.post(turns, "/v1/chat/completions").status_code == 200
        for bad in ({"role": "tool", "content": "x"}, {"role": "user", "content": 5}, "Hello",
                    back | {"tool_calls": [{}]}):  # fmt: skip
            answer = server.post({"messages": [bad]}, "/v1/chat/completions")
            assert (answer.status_code, answer.json()["error"]["param"][:11]) == (400, "messages[0]")
        spaces = server.post({"prompt": " " * 1_200_000 + "x"})  # more than tiktoken takes at once
        assert (spaces.status_code, spaces.json()["error"]["code"]) == (400, "context_length_exceeded")
        body = {"messages": messages, "max_completion_tokens": 0}
        error = server.post(body, "/v1/chat/completions").json()["error"]
        assert error["param"] == "max_completion_tokens"
        assert error["message"].startswith("max_completion_tokens is 0")
    assert whole.object == "chat.completion"
    message = whole.choices[0].message
    tokenizer = sj.load(model).tokenizer
    assert isinstance(tokenizer, TiktokenTokenizer)
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(tokenizer.chat_prompt(messages))
    assert message.role == "assistant"
    assert message.content
    assert (opening.choices[0].delta.role, opening.choices[0].delta.content) == ("assistant", "")
    assert "".join(part.choices[0].delta.content or "" for part in parts) == message.content
    assert last.choices[0].delta.content is None
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert {part.object for part in (opening, *parts, last)} == {"chat.completion.chunk"}
