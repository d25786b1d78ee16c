"""The HTTP response to one completion request, from the engine's text deltas to the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from steerling_jax.infer.server.engine import EngineRequest
from steerling_jax.infer.server.errors import ApiError, as_api_error, dumps, json_response
from steerling_jax.infer.server.in_flight import InFlight
from steerling_jax.infer.server.request_counts import RequestCounts
from steerling_jax.infer.server.response_body import Matches, ResponseBody, usage
from steerling_jax.infer.server.text_checks import TextChecks

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

FILTERED = "content_filter"  # OpenAI's reason for the end of a text that is refused
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events otherwise
]


class CompletionResponse(Response):
    """Sends the text of one request, whole or as a stream, and cancels the request if the client disconnects."""

    def __init__(
        self,
        in_flight: InFlight,
        counts: RequestCounts,
        request: EngineRequest,
        body: ResponseBody,
        *,
        stream: bool,
        checks: TextChecks | None = None,
    ):
        self._in_flight, self._counts = in_flight, counts
        self._request, self._body, self._as_stream, self._checks = request, body, stream, checks
        self._began = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            work = self._stream(send) if self._as_stream else self._send_whole(scope, receive, send)
            await cancel_on_disconnect(receive, work)
            self._counts.finished(time.monotonic() - self._began)
        except ClientDisconnect:
            self._counts.count("left")
        except ApiError as error:  # sent already, by `_send_whole` or as an event of the stream
            self._counts.count(error.outcome)
        finally:
            # On every path, or the row would go on decoding for a client that is gone.
            self._in_flight.end(self._request)

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            deltas = [delta async for delta in self._request.deltas()]
        except Exception as error:
            api_error = as_api_error(error)
            await api_error.response()(scope, receive, send)
            raise api_error from None
        text, finish = "".join(delta.text for delta in deltas), deltas[-1].finish or ""
        commits = [commit for delta in deltas for commit in delta.commits]
        matches, refused = await self._check(text)
        if refused:  # the commits are the text, too
            text, finish, commits = "", FILTERED, []
        await json_response(self._body.whole(text, finish, self._usage(), commits, matches))(scope, receive, send)

    async def _check(self, text: str) -> tuple[Matches, bool]:
        """What the classifiers find in the output, and whether it is refused for that."""
        if self._checks is None:
            return (), False
        # On another thread: a pass of the model would delay every other response on the event loop.
        matches = await run_in_threadpool(self._checks.matches, text)
        return matches, bool(matches) and self._checks.on_match == "refuse"

    async def _stream(self, send: Send) -> None:
        """Server-sent events. The status is sent before the first text, so a later error is an event of its own."""
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})

        async def send_event(data: str, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": more})

        try:
            async for chunk in self._chunks():
                await send_event(dumps(chunk))
        except Exception as error:
            api_error = as_api_error(error)
            await send_event(dumps(api_error.body()), more=False)
            raise api_error from None
        await send_event("[DONE]", more=False)

    async def _chunks(self) -> AsyncIterator[dict[str, Any]]:
        body = self._body
        if first := body.first_chunk():
            yield first
        finish, text, held = "", "", []
        # Text that was sent cannot be refused afterwards, so it waits for the end where it may be.
        hold = self._checks is not None and self._checks.on_match == "refuse"
        async for delta in self._request.deltas():
            if delta.text or (body.trace and delta.commits):
                text += delta.text
                chunk = body.text_chunk(delta.text, delta.commits)
                if hold:
                    held.append(chunk)
                else:
                    yield chunk
            finish = delta.finish or ""
        matches, refused = await self._check(text)
        for chunk in () if refused else held:
            yield chunk
        yield body.finish_chunk(FILTERED if refused else finish, matches)
        if body.include_usage:
            yield body.usage_chunk(self._usage())

    def _usage(self) -> dict[str, int]:
        return usage(self._request.writer.prompt_length, self._request.writer.tokens)


async def cancel_on_disconnect(receive: Receive, work: Awaitable[None]) -> None:
    """Awaits `work`; cancels it and raises `ClientDisconnect` as soon as the client disconnects.

    Sending to a client that is gone does not fail, it does nothing. Only `receive` reports a disconnect, so it has to
    be awaited beside the work.
    """

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(disconnected())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        await tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        # Cancellation takes effect at the tasks' next step; waiting for it keeps them from running after this returns.
        await asyncio.gather(*tasks, return_exceptions=True)
