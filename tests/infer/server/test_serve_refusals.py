"""Requests that the server rejects, with OpenAI's error object and the right status."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from starlette.requests import Request
from starlette.types import Message

from steerling_jax.cli.main import main
from steerling_jax.infer.server import json_body
from steerling_jax.infer.server.errors import ApiError
from tests.worlds.serving_world import PATIENCE, Server, serving

LIMIT = 20_000  # bytes of a body


@pytest.fixture(scope="module")
def server(text_model: Path, child_environment: dict[str, str]) -> Iterator[Server]:
    options = ["--max-body-bytes", str(LIMIT), "--max-new-tokens-limit", "96"]
    options += ["--allow-host", "models.example", "--allow-origin", "https://Page.example/"]
    with serving(text_model, child_environment, *options) as server:
        yield server


OK = {"prompt": "a", "max_tokens": 4}
BAD = [
    (b"{", 400, None, "not JSON"), (b"[1]", 400, None, "not an object"), (b"\xff\xfe\xfd", 400, None, "not JSON"),
    (b'{"prompt": NaN}', 400, None, "NaN"), (b"[" * 9000, 400, None, "not JSON"), (b"9" * 9000, 400, None, "not JSON"),
    (b"x" * (LIMIT + 1), 413, None, f"over {LIMIT} bytes"),
    ({}, 400, "prompt", "missing"), ({"prompt": ""}, 400, "prompt", "empty"), ({"prompt": []}, 400, "prompt", "empty"),
    ({"prompt": 5}, 400, "prompt", "a text or a list"), ({"prompt": [1, True]}, 400, "prompt", "a text or a list"),
    ({"prompt": ["a", "b"]}, 400, "prompt", "2 prompts"), ({"prompt": [[1], [2]]}, 400, "prompt", "2 prompts"),
    ({"prompt": [1, 5000]}, 400, "prompt", "vocabulary of 400"),
    ({"prompt": [10**30]}, 400, "prompt", "vocabulary of 400"),
    ({"prompt": [1, 2**70]}, 400, "prompt", f"the id {2**70}, outside the vocabulary of 400"),
    ({"prompt": [-1, 2**63]}, 400, "prompt", "the id -1, outside the vocabulary of 400"),
    ({"prompt": [2**63]}, 400, "prompt", f"the id {2**63}, outside the vocabulary of 400"),
    ({"prompt": [7] * 300}, 400, "prompt", "context of 128"), ({"prompt": [7] * 120}, 400, "prompt", "context is 128"),
    (OK | {"max_tokens": 0}, 400, "max_tokens", "at least 1"), (OK | {"max_tokens": 97}, 400, "max_tokens", "most 96"),
    (OK | {"max_tokens": 10**30}, 400, "max_tokens", "most 96"), (OK | {"max_tokens": 4.0}, 400, "max_tokens", "whole"),
    (OK | {"max_tokens": "4"}, 400, "max_tokens", "whole"), (OK | {"max_tokens": True}, 400, "max_tokens", "whole"),
    (OK | {"temperature": "hot"}, 400, "temperature", "a number"), (OK | {"top_p": 2}, 400, "top_p", "from 0 to 1"),
    (OK | {"temperature": 10**400}, 400, "temperature", "from 0 to 10000"), (OK | {"seed": -1}, 400, "seed", "from 0"),
    (OK | {"seed": 1.5}, 400, "seed", "whole"), (OK | {"steps": 0}, 400, "steps", "at least 1"),
    (OK | {"max_tokens": 48, "steps": 5}, 400, "steps", "multiple"),
    (OK | {"cfg_scale": -1}, 400, "cfg_scale", "from 0"),
    (OK | {"repetition_penalty": 0.5}, 400, "repetition_penalty", "from 1"),
    (OK | {"stop": 5}, 400, "stop", "a text or a list"), (OK | {"stop": False}, 400, "stop", "a text or a list"),
    (OK | {"stop": [""]}, 400, "stop", "none empty"),
    (OK | {"stop": ["a"] * 5}, 400, "stop", "up to 4"), (OK | {"stop": "a" * 300}, 400, "stop", "256 characters"),
    (OK | {"stream": "yes"}, 400, "stream", "true or false"), (OK | {"trace": 1}, 400, "trace", "true or false"),
    (OK | {"stream_options": {"include_usage": True}}, 400, "stream_options", "stream true"),
    (OK | {"tool_choice": "required"}, 400, "tool_choice", '"none", which changes nothing'),
    (OK | {"metadata": {"a": "b"}}, 400, "metadata", "changes nothing"),
    (OK | {"store": True}, 400, "store", "nothing"),
    (OK | {"tools": [{}]}, 400, "tools", "nothing"), (OK | {"safety_identifier": 1}, 400, "safety_identifier", "text"),
    (OK | {"parallel_tool_calls": 1}, 400, "parallel_tool_calls", "nothing"),
    (OK | {"n": 2}, 400, "n", "one text a request"), (OK | {"best_of": 3}, 400, "best_of", "one text a request"),
    (OK | {"n": True}, 400, "n", "one text a request"), (OK | {"echo": True}, 400, "echo", "changes nothing"),
    (OK | {"logprobs": 1}, 400, "logprobs", "changes nothing"), (OK | {"user": 1}, 400, "user", "must be a text"),
    (OK | {"max_token": 4}, 400, "max_token", "did you mean max_tokens?"),
    (OK | {"\ud800": 4}, 400, "\ud800", "no field"), (OK | {"model": 5}, 404, "model", "There is no model"),
    (OK | {"model": "gpt-5"}, 404, "model", "There is no model"), (OK | {"steering": 5}, 400, "steering", "steering"),
    (OK | {"steering": {"amplify": {"Nothing": 1}}}, 400, "steering", "Nothing"),
    (OK | {"steering": {"amplify": {"Email": "x" * 9000}}}, 400, "steering", "Email"),
    (OK | {"steering": {"amplify": {str(i): 1 for i in range(65)}}}, 400, "steering", "at most 64"),
    (OK | {"steering": {"clamp": {"Email": 1}, "rules": [{"action": "clamp", "concept": "Sockets", "value": 1,
                                                          "at": [0, 4]}]}}, 400, "steering", "different positions"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "param", "words"), BAD, ids=lambda value: str(value)[:40])
def test_bad_requests(server: Server, body, status: int, param: str | None, words: str):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(f"{server.url}/v1/completions", content=content, timeout=PATIENCE)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]
    assert len(error["message"]) < 700


def test_a_body_without_a_declared_length_is_limited_too(server: Server):
    parts = (b"x" * 5000 for _ in range(100))
    answer = httpx.post(f"{server.url}/v1/completions", content=parts, timeout=PATIENCE)
    assert answer.status_code == 413


def test_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch):
    async def receive() -> Message:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    monkeypatch.setattr(json_body, "BODY_SECONDS", 0.01)
    with pytest.raises(ApiError, match="did not arrive") as raised:
        asyncio.run(json_body.read_body(Request({"type": "http", "headers": []}, receive), LIMIT))
    assert (raised.value.status, raised.value.outcome) == (408, "bad")


def test_other_addresses(server: Server):
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405), ("PUT", "/health", 405)):
        answer = httpx.request(method, server.url + path, timeout=PATIENCE)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])
    client = server.openai
    assert [one.id for one in client.models.list()] == ["tiny-text"]
    assert client.models.retrieve("tiny-text").id == "tiny-text"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert server.get("/health").json() == {"status": "ok"}
    messages: list = [{"role": "user", "content": "Hello"}]
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="tiny-text", messages=messages)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1234"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "models.example"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "evil@localhost"}, 403),
        ({"Host": "93.184.216.34"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Origin": "https://page.example"}, 200),
        ({"Origin": "http://localhost:7", "Host": "localhost:7"}, 200),
    ],
    ids=str,
)
def test_hosts_and_origins(server: Server, headers: dict[str, str], status: int):
    answer = server.get("/v1/models", headers=headers)
    assert answer.status_code == status, answer.text
    if status == 403:
        assert answer.json()["error"]["code"] in ("host_not_allowed", "origin_not_allowed")
    allowed = "https://page.example" if headers.get("Origin") == "https://page.example" else None
    assert answer.headers.get("access-control-allow-origin") == allowed


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/v1/models", 403), ("/metrics", 403)])
def test_only_the_health_check_needs_no_host(server: Server, path: str, status: int):
    address = httpx.URL(server.url)
    for version in ("1.0\r\n", "1.1\r\nHost:\r\nConnection: close\r\n"):
        with socket.create_connection((address.host, address.port), timeout=PATIENCE) as connection:
            connection.sendall(f"GET {path} HTTP/{version}\r\n".encode())
            line = connection.makefile("rb").readline()
        assert line.split()[1] == str(status).encode()
    assert server.get("/health", headers={"Host": "evil.example"}).status_code == 403


def test_fields_that_change_nothing_are_accepted(server: Server):
    plain = server.post(OK | {"seed": 1}).json()["choices"]
    neutral = {
        "n": 1, "best_of": 1, "echo": False, "logprobs": False, "presence_penalty": 0.0, "frequency_penalty": 0,
        "logit_bias": {}, "response_format": {"type": "text"}, "store": False, "metadata": {}, "tools": [],
        "tool_choice": "none", "parallel_tool_calls": True, "functions": [], "function_call": "none", "suffix": "",
        "modalities": ["text"], "service_tier": "auto", "user": "me", "safety_identifier": "me",
        "prompt_cache_key": "mine", "reasoning_effort": None, "stop": [], "stream": False, "stream_options": {},
    }  # fmt: skip
    for fields in (neutral, {"tool_choice": "auto", "parallel_tool_calls": False, "service_tier": "default"},
                   {"stream_options": {"include_usage": False}}):  # fmt: skip
        answer = server.post(OK | {"seed": 1} | fields)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"] == plain


def test_preflight_requests_of_allowed_pages(server: Server):
    headers = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST",
               "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
    address = f"{server.url}/v1/completions"
    assert httpx.options(address, timeout=PATIENCE, headers=headers).status_code == 200
    private = {"Access-Control-Request-Private-Network": "true"}
    allowed = httpx.options(address, timeout=PATIENCE, headers=headers | private)
    assert (allowed.status_code, allowed.headers["access-control-allow-private-network"]) == (200, "true")
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    foreign = headers | private | {"Origin": "https://evil.example"}
    assert httpx.options(address, timeout=PATIENCE, headers=foreign).status_code == 403
    refused = httpx.options(address, timeout=PATIENCE, headers=headers | {"Origin": "https://evil.example"})
    assert refused.status_code == 403


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    for name in ("listening", "run"):  # other tests may have imported them
        monkeypatch.delitem(sys.modules, f"steerling_jax.infer.server.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 2
    assert capsys.readouterr().err == "error: `steerling serve` needs uvicorn: pip install 'steerling-jax[serve]'.\n"


def test_shared_rules_that_contradict_each_other_are_reported_before_serving(
    text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    rules = ("[[rule]]\naction = 'clamp'\nvalue = 1\nconcept = 'Email'\n", "at = [0, 4]\n")
    (tmp_path / "p.toml").write_text(rules[0] + rules[0].replace("Email", "Sockets") + rules[1])
    assert main(["serve", "--model", str(text_model), "--port", "0", "--policy", str(tmp_path / "p.toml")]) == 2
    stderr = capsys.readouterr().err
    assert "p.toml, rule 1: clamp Email at 1" in stderr
    assert "at different positions" in stderr
    assert "Serving" not in stderr


def test_an_address_in_use_is_reported_in_one_sentence(server: Server, text_model: Path, capsys: pytest.CaptureFixture):
    port = server.url.rsplit(":", 1)[1]
    assert main(["serve", "--model", str(text_model), "--port", port]) == 2
    assert capsys.readouterr().err.startswith(f"error: Cannot listen on 127.0.0.1, port {port}")
    for option, value in (("--rows", "0"), ("--queue", "-1"), ("--grace", "nan"), ("--port", "70000")):
        assert main(["serve", "--model", str(text_model), option, value]) == 2
        assert option in capsys.readouterr().err
