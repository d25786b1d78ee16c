"""HTTP/1.1 with a time limit on everything the server waits for: a request's head, its body, a client that reads.

Uvicorn by itself waits without limit for a connection's first request, for the rest of one that has begun, and for a
full socket buffer to drain. A few idle connections could exhaust the server that way.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Seconds for a request's first line and headers, from the connection or from their first byte.
HEAD_SECONDS = 10.0
# Seconds for the body. Longer than the application's own limit (`json_body.BODY_SECONDS`), which answers 408 first;
# this one closes connections whose body no route reads.
REQUEST_SECONDS = 45.0
# Seconds for the client to read what is written.
READ_SECONDS = 60.0


class TimeoutProtocol(H11Protocol):
    """Uvicorn's protocol with time limits; a connection that exceeds one is closed."""

    _state: Any = None  # the parser's state that the request timer is for
    _request_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._update_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_timer()

    def pause_writing(self) -> None:
        """The socket's buffer is full. `abort`, since `close` would first wait for the buffer to drain."""
        super().pause_writing()
        self._read_timer = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_timer = _cancel(self._read_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._request_timer, self._read_timer = _cancel(self._request_timer), _cancel(self._read_timer)

    def _update_timer(self) -> None:
        """Starts a timer when the request enters its next part.

        The timer is bound to the parser's state and not to the data, so a client that sends a byte now and then does
        not extend it.
        """
        state = self.conn.their_state
        if state is self._state:
            return
        self._state = state
        self._request_timer = _cancel(self._request_timer)
        seconds = {h11.IDLE: HEAD_SECONDS, h11.SEND_BODY: REQUEST_SECONDS}.get(state)
        if seconds is not None:
            self._request_timer = self.loop.call_later(seconds, self.transport.close)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
