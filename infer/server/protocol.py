"""HTTP/1.1 with an end to all waiting: for a request's head, for its body, and for a client that does not read.

Uvicorn waits without end for a connection's first request, for one that has begun, and for a full socket to empty.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # for a request's first line and headers, from the connection or from their first byte
REQUEST_SECONDS = 45.0  # for the rest of it; the application answers 408 before that where it waits for the body
READ_SECONDS = 60.0  # for the client to take what is written


class Protocol(H11Protocol):
    """Uvicorn's, but for the time limits; a connection that oversteps one is closed."""

    _expected: Any = None  # the part of a request that the timer is for
    _request_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_timer = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_timer = _cancelled(self._read_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._request_timer, self._read_timer = _cancelled(self._request_timer), _cancelled(self._read_timer)

    def _watch(self) -> None:
        """A timer for each part of a request; more of the same part does not prolong it."""
        state = self.conn.their_state
        if state is self._expected:
            return
        self._expected = state
        self._request_timer = _cancelled(self._request_timer)
        seconds = {h11.IDLE: HEAD_SECONDS, h11.SEND_BODY: REQUEST_SECONDS}.get(state)
        if seconds is not None:
            self._request_timer = self.loop.call_later(seconds, self.transport.close)


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
