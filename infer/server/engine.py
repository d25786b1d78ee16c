"""The engine: one thread that owns the decoder. Requests come from asyncio, and text deltas go back to it.

The decoder is not thread-safe and a step blocks for as long as the device computes, so it can run neither on the event
loop nor on a pool of threads. All calls from the event loop are therefore commands in a queue, which the thread
executes between two calls of `Decoder.advance`; all results return through `call_soon_threadsafe`, the only method of
an event loop that other threads may call.
"""

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
from steerling_jax.infer.text_stream import FinishReason, TextWriter

log = logging.getLogger(__name__)
# Denoising steps in a call of the decoder. New requests, cancellations and text wait for its end; fewer steps answer
# sooner, more of them keep the device busier.
STEPS = 4


@dataclass(frozen=True)
class TextDelta:
    """New text of one request. finish: why the text ended, in the last delta; None in all others."""

    text: str
    commits: tuple[Commit, ...] = ()
    finish: FinishReason | None = None


class EngineRequest:
    """One request in the engine. `deltas` is read once, on the event loop. request: None once it is cancelled. trace:
    of a text that was decoded to its end, from the last delta on."""

    def __init__(self, request: Request, writer: TextWriter):
        self.request: Request | None = request
        self.writer = writer
        self.ticket: int | None = None
        self.trace: Trace | None = None
        self._emitted = 0  # commits of this block that earlier events contained
        self._deltas: asyncio.Queue[TextDelta | Exception] = asyncio.Queue()

    def put(self, item: TextDelta | Exception) -> None:
        """Adds a delta, or the error with which the request ends. On the event loop only."""
        self._deltas.put_nowait(item)

    async def deltas(self) -> AsyncIterator[TextDelta]:
        """The deltas up to the one with `finish`. Raises the error with which the request ended."""
        finish = None
        while finish is None:
            item = await self._deltas.get()
            if isinstance(item, Exception):
                raise item
            finish = item.finish
            yield item

    def add_event(self, event: Event) -> TextDelta | None:
        """The delta of a decoder event; None if it has no new commits. On the engine's thread only."""
        if isinstance(event, Trace):
            self.writer.end()
            return TextDelta(self.writer.take(), (), self.writer.finish)
        # `BlockDone` has all commits of the block, also those of the `Committed` events before it.
        known = self._emitted if isinstance(event, BlockDone) else 0
        self._emitted = 0 if isinstance(event, BlockDone) else self._emitted + len(event.commits)
        commits = self.writer.commit(event.commits[known:])
        return TextDelta(self.writer.take(), tuple(commits), self.writer.finish) if commits else None


class Engine:
    """Runs a decoder on its own thread, from `start` to `close`. All methods are for the event loop's thread.

    After an unexpected error all requests in the decoder fail with it, and the decoder starts again empty. warm_up: an
    iterator of (done, total) that is run before the first request. steps: denoising steps in a call of the decoder.
    ready: the warm-up has finished; failure: the exception that ended it. tokens: committed tokens that went into texts
    so far. waiting, running: requests without and with a row, as of the last step.
    """

    def __init__(self, decoder: Decoder, warm_up: Iterable[tuple[int, int]] = (), steps: int = STEPS):
        self.ready = False
        self.failure: Exception | None = None
        self.warmed = (0, 1)
        self.tokens = self.waiting = self.running = 0
        self._decoder, self._warm_up, self._steps = decoder, warm_up, steps
        self._requests: dict[int, EngineRequest] = {}  # by ticket
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._out: list[tuple[EngineRequest, TextDelta | Exception]] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decoder")

    def start(self) -> None:
        """Starts the thread. Deltas go to the event loop that is running now."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """Drops all requests and waits for the thread, at most until the current steps are done."""
        self._closing = True
        self._commands.put(lambda: None)  # wakes the thread if it waits for a command
        self._thread.join()

    def submit(self, request: EngineRequest) -> None:
        """Queues a request for the decoder; errors arrive in its `deltas`."""
        self._commands.put(lambda: self._submit(request))

    def cancel(self, request: EngineRequest) -> None:
        """Frees the request's row; has no effect if the request has ended."""
        # Commands can wait for minutes during the warm-up. The queue would keep the request's arrays alive for as long.
        request.request = None
        self._commands.put(lambda: self._drop(request))

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
                self._run_commands()
                if self._decoder.busy:
                    self._advance()
            except (
                Exception
            ) as error:  # for example, out of memory. The thread must survive it, to serve later requests
                log.exception("The decoder failed and is restarted.")
                self._out += [(request, error) for request in self._requests.values()]
                self._requests.clear()
                self._decoder.clear()
            self.waiting, self.running = self._decoder.waiting, self._decoder.running
            self._send()

    def _run_commands(self) -> None:
        """Executes all queued commands. With an idle decoder, waits for the first one instead of spinning."""
        if not self._decoder.busy:
            self._commands.get()()
        while not self._commands.empty():
            self._commands.get()()

    def _submit(self, request: EngineRequest) -> None:
        if (decoder_request := request.request) is None:  # cancelled while it was queued
            return
        try:
            request.ticket = self._decoder.submit(decoder_request)
        except Exception as error:
            self._out.append((request, error))
        else:
            self._requests[request.ticket] = request

    def _drop(self, request: EngineRequest) -> None:
        if request.ticket is not None and self._requests.pop(request.ticket, None):
            self._decoder.cancel(request.ticket)

    def _advance(self) -> None:
        events = self._decoder.advance(self._steps)
        for ticket, event in events:
            # The last block's event is before it, and may end the text.
            if isinstance(event, Trace) and ticket in self._requests:
                self._requests[ticket].trace = event
        for ticket, event in events:
            # The same call can return several events of a request. The first may have ended its text, at a stop text
            # or max_tokens, before the canvas was full; the request is then dropped and the rest is ignored.
            request = self._requests.get(ticket)
            if request is None:
                continue
            if delta := request.add_event(event):
                self.tokens += sum(len(commit.token_ids) for commit in delta.commits)
                self._out.append((request, delta))
                if isinstance(event, Trace):
                    del self._requests[ticket]
                elif delta.finish:
                    self._drop(request)

    def _send(self) -> None:
        """Passes all new deltas to the event loop in one call, which wakes it up once."""
        if self._out:
            out, self._out = self._out, []
            self._loop.call_soon_threadsafe(_deliver, out)


def _deliver(items: list[tuple[EngineRequest, TextDelta | Exception]]) -> None:
    for request, item in items:
        request.put(item)
