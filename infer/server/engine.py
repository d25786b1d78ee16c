"""The one thread that owns the decoder. Requests go in from asyncio, pieces of text come back to it."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from steerling_jax.decoding.decoder import Decoder
from steerling_jax.decoding.request import BlockDone, Event, Request
from steerling_jax.decoding.trace import Commit, Trace
from steerling_jax.infer.text_stream import Finish, TextWriter

log = logging.getLogger(__name__)
STEPS = 4  # denoising steps between two looks at who has come, who has left, and what is written


@dataclass(frozen=True)
class TextDelta:
    """What is new of one text. finish: why it ended, in the last delta."""

    text: str
    commits: tuple[Commit, ...] = ()
    finish: Finish | None = None


class EngineRequest:
    """One request in the engine. Its deltas are read once, in asyncio. request: None once it is cancelled."""

    def __init__(self, request: Request, writing: TextWriter):
        self.request: Request | None = request
        self.writing = writing
        self.ticket: int | None = None
        self._told = 0  # commits of this block that events have told of
        self._inbox: asyncio.Queue[TextDelta | Exception] = asyncio.Queue()

    def put(self, item: TextDelta | Exception) -> None:
        self._inbox.put_nowait(item)

    async def deltas(self) -> AsyncIterator[TextDelta]:
        """Until the one with `finish`. Raises what went wrong."""
        finish = None
        while finish is None:
            item = await self._inbox.get()
            if isinstance(item, Exception):
                raise item
            finish = item.finish
            yield item

    def feed(self, event: Event) -> TextDelta | None:
        """One event of the decoder; None where it tells nothing new."""
        if isinstance(event, Trace):
            self.writing.end()
            return TextDelta(self.writing.take(), (), self.writing.finish)
        known = self._told if isinstance(event, BlockDone) else 0  # it repeats what was told since the last one
        self._told = 0 if isinstance(event, BlockDone) else self._told + len(event.commits)
        commits = self.writing.commit(event.commits[known:])
        return TextDelta(self.writing.take(), tuple(commits), self.writing.finish) if commits else None


class Engine:
    """Runs a decoder on a thread of its own, from `start` to `close`. Methods are for the event loop's thread.

    After an unexpected error the decoder is cleared, and its requests end with it. warm_up: goes on before the first
    request, telling (done, total). ready: it is through; failure: what it ended with instead. tokens: committed to
    texts so far. waiting, running: requests that wait for a row and that have one, a moment ago.
    """

    def __init__(self, decoder: Decoder, warm_up: Iterable[tuple[int, int]] = ()):
        self.ready = False
        self.failure: Exception | None = None
        self.warmed = (0, 1)
        self.tokens = self.waiting = self.running = 0
        self._decoder, self._warm_up = decoder, warm_up
        self._jobs: dict[int, EngineRequest] = {}
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._out: list[tuple[EngineRequest, TextDelta | Exception]] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decoder")

    def start(self) -> None:
        """Starts the thread. Deltas go to the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """Drops all requests and waits for the thread, at most for the steps that are under way."""
        self._closing = True
        self._orders.put(lambda: None)
        self._thread.join()

    def submit(self, job: EngineRequest) -> None:
        self._orders.put(lambda: self._submit(job))

    def cancel(self, job: EngineRequest) -> None:
        """Gives the job's row to others; no harm where the job has ended."""
        job.request = None  # orders may wait long, while all is compiled, and it holds arrays
        self._orders.put(lambda: self._drop(job))

    def _run(self) -> None:
        try:
            for warmed in self._warm_up:
                self.warmed = warmed
                if self._closing:
                    return
        except Exception as error:
            self.failure = error
            return
        self.ready = True
        while not self._closing:
            try:
                self._take_orders()
                if self._decoder.busy:
                    self._advance()
            except Exception as error:  # out of memory, or a mistake of ours: the others still want their answers
                log.exception("The decoder failed; it starts anew.")
                self._out += [(job, error) for job in self._jobs.values()]
                self._jobs.clear()
                self._decoder.clear()
            self.waiting, self.running = self._decoder.waiting, self._decoder.running
            self._send()

    def _take_orders(self) -> None:
        """Waits for the first one where there is nothing else to do."""
        if not self._decoder.busy:
            self._orders.get()()
        while not self._orders.empty():
            self._orders.get()()

    def _submit(self, job: EngineRequest) -> None:
        if (request := job.request) is None:
            return
        try:
            job.ticket = self._decoder.submit(request)
        except Exception as error:
            self._out.append((job, error))
        else:
            self._jobs[job.ticket] = job

    def _drop(self, job: EngineRequest) -> None:
        if job.ticket is not None and self._jobs.pop(job.ticket, None):
            self._decoder.cancel(job.ticket)

    def _advance(self) -> None:
        for ticket, event in self._decoder.advance(STEPS):
            job = self._jobs.get(ticket)  # None where the text has ended before its canvas
            if job is None:
                continue
            if delta := job.feed(event):
                self.tokens += sum(len(commit.token_ids) for commit in delta.commits)
                self._out.append((job, delta))
                if isinstance(event, Trace):
                    del self._jobs[ticket]
                elif delta.finish:
                    self._drop(job)

    def _send(self) -> None:
        """Hands over what is new, at once for all."""
        if self._out:
            out, self._out = self._out, []
            self._loop.call_soon_threadsafe(_deliver, out)


def _deliver(items: list[tuple[EngineRequest, TextDelta | Exception]]) -> None:
    for job, item in items:
        job.put(item)
