"""One request's answer, from the engine's deltas to the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from steerling_jax.infer.server.engine import EngineRequest
from steerling_jax.infer.server.errors import ApiError, as_api_error, dumps, json_response
from steerling_jax.infer.server.in_flight import InFlight
from steerling_jax.infer.server.metrics import Metrics
from steerling_jax.infer.server.replies import Reply, usage

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


class AnswerResponse(Response):
    """Sends one job's answer, whole or as a stream, and cancels the job when the client leaves."""

    def __init__(self, in_flight: InFlight, metrics: Metrics, job: EngineRequest, reply: Reply, *, stream: bool):
        self._in_flight, self._metrics = in_flight, metrics
        self._job, self._reply, self._as_stream = job, reply, stream
        self._began = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            work = self._stream(send) if self._as_stream else self._send_whole(scope, receive, send)
            await cancel_on_disconnect(receive, work)
            self._metrics.finished(time.monotonic() - self._began)
        except ClientDisconnect:
            self._metrics.count("left")
        except ApiError as error:  # the stream has begun, so its status cannot tell
            self._metrics.count(error.outcome)
        finally:
            self._in_flight.end(self._job)

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            deltas = [delta async for delta in self._job.deltas()]
        except Exception as error:
            failure = as_api_error(error)
            await failure.response()(scope, receive, send)
            raise failure from None
        answer = self._reply.whole(
            "".join(delta.text for delta in deltas),
            deltas[-1].finish or "",
            self._usage(),
            [commit for delta in deltas for commit in delta.commits],
        )
        await json_response(answer)(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        """Server-sent events. The status is sent at once; an error after that is an event of its own."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
                   (b"x-accel-buffering", b"no")]  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def event(data: str, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": more})

        try:
            async for chunk in self._chunks():
                await event(dumps(chunk))
        except Exception as error:
            failure = as_api_error(error)
            await event(dumps(failure.body()), more=False)
            raise failure from None
        await event("[DONE]", more=False)

    async def _chunks(self) -> AsyncIterator[dict[str, Any]]:
        reply = self._reply
        if opening := reply.opening():
            yield opening
        finish = ""
        async for delta in self._job.deltas():
            if delta.text or (reply.trace and delta.commits):
                yield reply.chunk(delta.text, delta.commits)
            finish = delta.finish or ""
        yield reply.closing(finish)
        if reply.include_usage:
            yield reply.counts(self._usage())

    def _usage(self) -> dict[str, int]:
        return usage(self._job.writing.prompt_length, self._job.writing.tokens)


async def cancel_on_disconnect(receive: Receive, work: Awaitable[None]) -> None:
    """Does the work, or raises `ClientDisconnect` as soon as the client leaves."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        await tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
