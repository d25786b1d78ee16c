"""Clients that keep the server waiting, over real sockets: their connections are closed, others are not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

import steerling_jax as sj
from steerling_jax.infer.server import app, json_body, timeout_protocol
from steerling_jax.infer.server.engine import Engine
from steerling_jax.infer.server.listening import listen

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
TIMEOUT = 600  # seconds until a test fails
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Makes the time limit that a test is about short. The others are long, so that none of them comes first where the
    machine is busy."""
    module = json_body if request.param == "BODY_SECONDS" else timeout_protocol
    monkeypatch.setattr(module, request.param, 0.3)


def limit(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("short", [name], indirect=True)


@pytest.fixture(scope="module")
def service(text_model: Path) -> app.Service:
    decoder: Any = None  # no request reaches it
    return app.Service(sj.load(text_model), Engine(decoder), app.RequestLimits(None, 10_000, 8))


@asynccontextmanager
async def serving(application: ASGIApp) -> AsyncIterator[int]:
    """The port of a server in this process."""
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        application, http=timeout_protocol.TimeoutProtocol, ws="none", lifespan="off", log_level="critical"
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listening]))
    yield listening.getsockname()[1]
    server.should_exit = True
    await task


def talk(application: ASGIApp, with_it: Talk) -> None:
    async def run() -> None:
        async with serving(application) as port, asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await with_it(reader, writer)
            writer.close()

    asyncio.run(run())


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """What arrives before the connection ends. A server that closes it while the client still writes resets it."""
    arrived = b""
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(1 << 16):
            arrived += part
    return arrived


async def drip(writer: asyncio.StreamWriter, byte: bytes) -> None:
    """Sends a byte every 50 ms, for ever; that must not extend a time limit."""
    while True:
        writer.write(byte)
        await asyncio.sleep(0.05)


@limit("HEAD_SECONDS")
@pytest.mark.parametrize(
    "sent", [b"", b"GET", HEAD, HEAD + b"X: "], ids=["nothing", "a word", "headers", "half a line"]
)
def test_a_head_that_does_not_come(short: None, service: app.Service, sent: bytes):
    async def with_it(reader, writer) -> None:
        writer.write(sent)
        dripping = asyncio.create_task(drip(writer, b"x")) if sent.endswith(b": ") else None
        assert await read_all(reader) == b""
        if dripping is not None:
            dripping.cancel()

    talk(application(service), with_it)


@limit("HEAD_SECONDS")
def test_a_second_head_on_the_same_connection(short: None, service: app.Service):
    async def with_it(reader, writer) -> None:
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.5)  # between requests, a connection can be idle
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET /v1/models HTT")
        rest = await reader.read()
        assert b"HTTP/1.1" not in rest

    talk(application(service), with_it)


@limit("BODY_SECONDS")
def test_a_body_that_is_slow_is_answered_408(short: None, service: app.Service):
    async def with_it(reader, writer) -> None:
        writer.write(HEAD + b"Content-Length: 1000\r\n\r\n{")
        dripping = asyncio.create_task(drip(writer, b" "))
        answer = await read_all(reader)
        dripping.cancel()
        assert b"408 Request Timeout" in answer
        assert b"did not arrive" in answer

    talk(application(service), with_it)
    assert service.in_flight.count == 0


@limit("REQUEST_SECONDS")
def test_a_body_that_no_route_reads(short: None, service: app.Service):
    async def with_it(reader, writer) -> None:
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        dripping = asyncio.create_task(drip(writer, b"x"))
        await read_all(reader)
        dripping.cancel()

    talk(application(service), with_it)


@limit("READ_SECONDS")
def test_a_client_that_does_not_read(short: None):
    """Its connection is closed, and the application gets a disconnect message."""
    left = asyncio.Event()

    async def long_answer(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async def with_it(reader, writer) -> None:
        writer.transport.pause_reading()
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await left.wait()

    talk(long_answer, with_it)


def application(service: app.Service) -> ASGIApp:
    return app.make_app(service, listening="127.0.0.1", hosts=[], origins=[])
