"""The events of one tab: numbered, kept for a client that comes back, and sent as one stream of server-sent events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from steerling_jax.infer.server.errors import dumps

BUFFERED = 1_000  # events that a client can miss and still get; one that missed more reads the texts again
_COMMENT_SECONDS = 15.0  # a stream without events sends a comment, or proxies would close it


class EventLog:
    """Events with ids `EPOCH.N`; the epoch is the server process's, so that a client notices a restart.

    All methods are for the event loop's thread. At most one client listens: a new one takes over the stream.
    """

    def __init__(self, epoch: str):
        self._epoch, self._count = epoch, 0
        self._numbered: deque[tuple[int, str]] = deque(maxlen=BUFFERED)
        self._listener: asyncio.Queue[str | None] | None = None

    @property
    def has_listener(self) -> bool:
        return self._listener is not None

    def add(self, name: str, data: Any, *, numbered: bool = True) -> None:
        """Sends an event. One that is not numbered, such as progress, is lost on a client that does not listen."""
        frame = f"event: {name}\ndata: {dumps(data)}\n\n"
        if numbered:
            self._count += 1
            frame = f"id: {self._epoch}.{self._count}\n{frame}"
            self._numbered.append((self._count, frame))
        if self._listener is not None:
            if self._listener.qsize() < BUFFERED:
                self._listener.put_nowait(frame)
            else:
                self.close()  # a client that does not read: its next stream begins where it stopped

    def close(self) -> None:
        """Ends the stream, if there is one."""
        if self._listener is not None:
            self._listener.put_nowait(None)
            self._listener = None

    def frames(self, last_id: str | None) -> AsyncIterator[str]:
        """The stream: the numbered events after `last_id`, then all that follow. It listens from now on."""
        self.close()
        self._listener = queue = asyncio.Queue()
        for frame in self._after(last_id):
            queue.put_nowait(frame)
        return self._read(queue)

    async def _read(self, queue: asyncio.Queue[str | None]) -> AsyncIterator[str]:
        try:
            while True:
                try:
                    frame = await asyncio.wait_for(queue.get(), _COMMENT_SECONDS)
                except TimeoutError:
                    frame = ": waiting\n\n"
                if frame is None:
                    return
                yield frame
        finally:
            if self._listener is queue:
                self._listener = None

    def _after(self, last_id: str | None) -> list[str]:
        """The frames that a client missed which has seen `last_id`; `reload` if some of them are not kept any more."""
        epoch, _, number = (last_id or "").rpartition(".")
        seen = int(number) if epoch == self._epoch and number.isdecimal() and len(number) < 18 else 0
        oldest = self._numbered[0][0] if self._numbered else 1
        if seen + 1 < oldest:
            return ["event: reload\ndata: {}\n\n"]
        return [frame for at, frame in self._numbered if at > seen]
