"""The server under load: many clients, clients that disconnect, a full queue, SIGTERM, memory over many requests.

STEERLING_SOAK_SECONDS makes the last of these take longer.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from steerling_jax.decoding.decoder import Request
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.trace import Trace
from steerling_jax.errors import UserError
from steerling_jax.infer.server.engine import Engine, EngineRequest, TextDelta
from steerling_jax.infer.text_stream import TextWriter
from steerling_jax.tokenizer import IdsOnlyTokenizer, SpecialIds
from tests.decoding.test_generation import SMALL
from tests.worlds.serving_world import PATIENCE, PROMPT, Server, ask, events, serving, text


@pytest.fixture(scope="module")
def server(
    text_model: Path, child_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    file = tmp_path_factory.mktemp("held") / "calls"
    with serving(text_model, child_environment, "--rows", "2", "--queue", "300", file=file) as server:
        yield server


def test_many_clients_at_once(server: Server):
    """Each gets the text of its own request, whatever else is in the batch."""
    requests = [{"prompt": PROMPT[: 3 + i % 9], "max_tokens": 2 + i % 15, "steps": 8, "seed": i % 5,
                 "stream": i % 2 == 0}
                for i in range(200)]  # fmt: skip

    async def one(client: httpx.AsyncClient, body: dict) -> tuple[str, str]:
        answer = await client.post(f"{server.url}/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        if not body["stream"]:
            return str(body | {"stream": 0}), text(answer.json())
        *chunks, done = events(answer)
        assert done == "[DONE]"
        return str(body | {"stream": 0}), "".join(text(json.loads(chunk)) for chunk in chunks)

    async def all_at_once() -> list[tuple[str, str]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=PATIENCE, limits=limits) as client:
            return await asyncio.gather(*(one(client, body) for body in requests))

    answers = asyncio.run(all_at_once())
    assert len(set(answers)) == len(dict(answers)), "one request, two texts"
    for body in requests[::40]:
        assert text(server.post(body | {"stream": False}).json()) == dict(answers)[str(body | {"stream": 0})]


def test_a_client_that_disconnects_is_cancelled_and_others_are_not(server: Server):
    """Their rows are free while the decoder has not gone on, and the text of the third has not changed."""
    expected = text(ask(server, max_tokens=48))
    left, tokens = left_and_tokens(server)
    long = {"prompt": PROMPT, "max_tokens": 48, "seed": 9}
    with server.held(0), ThreadPoolExecutor() as pool:
        other = pool.submit(ask, server, max_tokens=48)
        streamed = long | {"stream": True, "trace": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=streamed, timeout=PATIENCE) as answer:
            until(lambda: server.metric("queue_length") == 2)
            leave_at_once(server, long)
            until(lambda: left_and_tokens(server)[0] == left + 1 and server.metric("queue_length") == 2)
            server.allow(1)
            lines = answer.iter_lines()  # without a name it would be closed, and the connection with it
            first = json.loads(next(lines).removeprefix("data: "))["trace"]["commits"]
            until(lambda: server.metric("running_rows") == 2)
        until(lambda: left_and_tokens(server)[0] == left + 2 and server.metric("running_rows") == 1)
        server.release()
        assert text(other.result()) == expected
    until(lambda: server.metric("running_rows") == 0)
    assert left_and_tokens(server)[1] == tokens + 48 + sum(len(commit["token_ids"]) for commit in first)


def leave_at_once(server: Server, body: dict) -> None:
    address = httpx.URL(server.url)
    content = json.dumps(body)
    with socket.create_connection((address.host, address.port or 0)) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall((head + content).encode())


def left_and_tokens(server: Server) -> tuple[float, float]:
    return server.metric('requests_total{outcome="left"}'), server.metric("generated_tokens_total")


def until(condition, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def test_stopping_and_a_full_queue(text_model: Path, child_environment: dict[str, str], tmp_path: Path):
    """One row, no queue: the second request is rejected. On SIGTERM the first is written to its end."""
    long = {"prompt": PROMPT, "max_tokens": 48, "seed": 1, "stream": True, "trace": True}
    policy = tmp_path / "house.toml"
    policy.write_text('[[rule]]\naction = "amplify"\nconcept = "Email"\nstrength = 30\n')
    options = ["--rows", "1", "--queue", "0", "--policy", str(policy)]
    file = tmp_path / "calls"
    with serving(text_model, child_environment, *options, file=file) as server, ThreadPoolExecutor() as pool:
        own = ask(server, trace=True, steering={"suppress": {"Dates": 2}})["trace"]["steering"]
        assert ["Email" in own[0], "Dates" in own[1]] == [True, True]
        with (
            server.held(1),
            httpx.stream("POST", f"{server.url}/v1/completions", json=long, timeout=PATIENCE) as answer,
        ):
            lines = answer.iter_lines()
            seen = [next(lines)]
            busy = server.post(long)
            ended = pool.submit(server.stop)
            until(lambda: server.post(long).status_code == 503)
            assert server.get("/health").status_code == 503
            server.release()
            seen += list(lines)
        assert seen[-2:] == ["data: [DONE]", ""]
        assert ended.result() == 0
    assert (busy.status_code, busy.json()["error"]["code"]) == (429, "queue_full")
    assert busy.json()["error"]["type"] == "rate_limit_error"
    assert int(busy.headers["retry-after"]) >= 1


def test_requests_that_do_not_finish_in_the_grace_time_get_an_error(
    text_model: Path, child_environment: dict[str, str], tmp_path: Path
):
    """One has a row and one waits for it, when the server is stopped."""
    long = {"prompt": PROMPT, "max_tokens": 48, "seed": 1}
    options, file = ["--rows", "1", "--grace", "0"], tmp_path / "calls"
    with (
        serving(text_model, child_environment, *options, file=file) as server,
        ThreadPoolExecutor() as pool,
        server.held(1),
    ):
        answers = [pool.submit(server.post, long | {"stream": stream}) for stream in (False, True)]
        until(lambda: server.metric("running_rows") == server.metric("queue_length") == 1)
        assert server.stop() == 0
        whole, streamed = (answer.result() for answer in answers)
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "stopping")
    assert json.loads(events(streamed)[-1])["error"]["code"] == "stopping"


class OneStepDecoder:
    """A stand-in for the decoder: every request ends at once, or the first step fails, or requests are refused."""

    waiting = 0

    def __init__(self, *, fails: bool, refuses: bool = False):
        self.fails, self.refuses, self.tickets, self.cancelled = fails, refuses, [], []

    @property
    def running(self) -> int:
        return len(self.tickets)

    @property
    def busy(self) -> bool:
        return self.running > 0

    def submit(self, request) -> int:
        if self.refuses:
            raise UserError("The prompt is too long.")
        self.tickets.append(len(self.tickets))
        return self.tickets[-1]

    def clear(self) -> None:
        self.fails, self.tickets = False, []

    def advance(self, steps: int):
        if self.fails:
            raise RuntimeError("out of memory")
        canvas = np.zeros(1, np.int32)
        return [(self.tickets.pop(), Trace(canvas, canvas, (), SMALL.mask_token_id))]


def engine_request() -> EngineRequest:
    request = Request(np.zeros(1, np.int32), GenerationConfig(max_new_tokens=8), 0)
    return EngineRequest(request, TextWriter(IdsOnlyTokenizer(SpecialIds.last_of(64), 64), SMALL, 1, 8, 8))


def test_requests_cancelled_during_the_warm_up_are_freed():
    decoder: Any = OneStepDecoder(fails=False)
    compiled = threading.Event()

    def warm_up() -> Iterator[tuple[int, int]]:
        yield 0, 1
        compiled.wait(PATIENCE)

    async def leave() -> list:
        engine = Engine(decoder, warm_up())
        engine.start()
        left, stays = engine_request(), engine_request()
        request = weakref.ref(left.request)
        engine.submit(left)
        engine.cancel(left)
        engine.submit(stays)
        assert request() is None
        compiled.set()
        found = [delta async for delta in stays.deltas()]
        assert left.ticket is None
        engine.close()
        return found

    assert asyncio.run(leave()) == [TextDelta("", (), "length")]


def test_a_request_that_the_decoder_refuses_ends_with_its_error():
    """And the engine serves the next one."""
    decoder: Any = OneStepDecoder(fails=False, refuses=True)

    async def ask_twice() -> list[TextDelta]:
        engine = Engine(decoder)
        engine.start()
        try:
            async with asyncio.timeout(PATIENCE):
                refused, next_one = engine_request(), engine_request()
                engine.submit(refused)
                with pytest.raises(UserError, match=r"The prompt is too long\."):
                    await anext(refused.deltas())
                decoder.refuses = False
                engine.submit(next_one)
                return [delta async for delta in next_one.deltas()]
        finally:
            engine.close()

    assert asyncio.run(ask_twice()) == [TextDelta("", (), "length")]


def test_a_cancelled_request_is_cancelled_in_the_decoder():
    class EndlessDecoder(OneStepDecoder):
        """Requests run until they are cancelled."""

        def advance(self, steps: int) -> list:
            return []

        def cancel(self, ticket: int) -> None:
            self.cancelled.append(ticket)
            self.tickets.remove(ticket)

    decoder: Any = EndlessDecoder(fails=False)

    async def cancel() -> None:
        engine = Engine(decoder)
        engine.start()
        try:
            request, stays = engine_request(), engine_request()
            engine.submit(request)
            engine.submit(stays)
            async with asyncio.timeout(PATIENCE):
                while engine.running < 2:
                    await asyncio.sleep(0.001)
                engine.cancel(request)
                while not decoder.cancelled:
                    await asyncio.sleep(0.001)
            assert (decoder.cancelled, decoder.tickets) == ([request.ticket], [stays.ticket])
        finally:
            engine.close()

    asyncio.run(cancel())


def test_a_decoder_that_fails_is_restarted(caplog: pytest.LogCaptureFixture):
    decoder: Any = OneStepDecoder(fails=True)

    async def deltas(engine: Engine) -> list:
        one = engine_request()
        engine.submit(one)
        return [delta async for delta in one.deltas()]

    async def ask_twice() -> list:
        engine = Engine(decoder)
        engine.start()
        with pytest.raises(RuntimeError, match="out of memory"):
            await deltas(engine)
        found = await deltas(engine)
        engine.close()
        return found

    assert asyncio.run(ask_twice()) == [TextDelta("", (), "length")]
    assert "is restarted" in caplog.text


def test_soak(server: Server):
    """Requests of all kinds, also invalid ones and clients that disconnect: memory does not grow."""
    seconds = float(os.environ.get("STEERLING_SOAK_SECONDS", "0"))
    child = psutil.Process(server.process.pid)
    counts = [0] * 4

    def loop(number: int, turns: int, end: float) -> None:
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            while counts[number] < turns or time.monotonic() < end:
                turn = counts[number] = counts[number] + 1
                body = {"prompt": f"{number} {turn}", "max_tokens": 1 + turn % 9}
                if turn % 50 == 49:
                    leave_at_once(server, body)
                elif turn % 10 == 9:
                    assert client.post("/v1/completions", json=body | {"seed": -1}).status_code == 400
                else:
                    answer = client.post("/v1/completions", json=body | {"stream": turn % 2 == 0})
                    assert answer.status_code == 200, answer.text

    def run(turns: int, seconds: float) -> int:
        end = time.monotonic() + seconds
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda number: loop(number, turns, end), range(len(counts))))
        return child.memory_info().rss

    before = run(50, seconds / 4)
    after = run(150, seconds)
    print(f"{sum(counts)} requests, {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after")
    assert after - before < 20e6
