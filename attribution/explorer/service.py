"""What the explorer does: texts are written and explained, and every tab hears of it.

Two threads compute, the decoder's (`infer.server.engine`) and the explaining one (`jobs`). Everything else, all state
included, is on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Any

from steerling_jax.attribution.explorer.asking import Focus
from steerling_jax.attribution.explorer.explaining import Explaining
from steerling_jax.attribution.explorer.export import ExportedFile, export_file
from steerling_jax.attribution.explorer.index_job import IndexMaker
from steerling_jax.attribution.explorer.indexing import Indexing
from steerling_jax.attribution.explorer.jobs import Job, JobKey, Rank
from steerling_jax.attribution.explorer.tabs import Tab, Tabs
from steerling_jax.attribution.explorer.texts import Model, Text, TextStore
from steerling_jax.attribution.explorer.training_data import TrainingData
from steerling_jax.attribution.explorer.writing import Writing
from steerling_jax.decoding.trace import Trace
from steerling_jax.explain.given_text import given_trace
from steerling_jax.infer.server.engine import Engine
from steerling_jax.infer.server.errors import ApiError, as_api_error
from steerling_jax.progress import Progress


class Explorer:
    """The explorer's state. training_data: None without an index. index_maker: makes one; None where the training
    data is not known. clock: seconds."""

    def __init__(
        self,
        model: Model,
        engine: Engine,
        training_data: TrainingData | None = None,
        index_maker: IndexMaker | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.model, self.engine = model, engine
        self.epoch = secrets.token_hex(4)
        self.tabs = Tabs(self.epoch, clock)
        self.texts = TextStore(self._forget)
        self.writing = Writing(model, engine, self.texts, self.tabs, self._ended, clock)
        self.explaining = Explaining(
            model,
            self.texts,
            self.tabs,
            training_data,
            lambda: engine.running > 0,
            self._call,
        )
        self.indexing = Indexing(index_maker, self.tabs, self._use, self._call)

    def start(self) -> None:
        """Starts both threads; call it on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self.engine.start()
        self.explaining.thread.start()

    def _call(self, *call: Any) -> None:
        self._loop.call_soon_threadsafe(*call)

    def _use(self, data: TrainingData) -> None:
        self.explaining.training_data = data

    def end_streams(self) -> None:
        """Ends the streams of all tabs."""
        for tab in self.tabs:
            tab.log.close()

    def close(self) -> None:
        """Ends all threads."""
        self.indexing.close()
        self.explaining.thread.close()
        self.engine.close()

    def text(self, id: str) -> Text:
        """Raises `ApiError` for a text that is not here any more."""
        if (text := self.texts.get(id)) is None:
            raise ApiError(404, "There is no such text here; write it again.", code="text_not_found")
        return text

    def ask_text(self, tab: Tab, text: Text, continuation: list[int] | None) -> tuple[Text, bool]:
        """Begins a text, written or given, or returns the one that there is, and whether there was one."""
        if (known := self.writing.known(tab, text.id)) is not None:
            return known, True
        if continuation is None:
            self.writing.begin(tab, text)
        else:
            self.writing.add(tab, text)
            self._read_given(tab, text, continuation)
        return text, False

    def _read_given(self, tab: Tab, text: Text, continuation: list[int]) -> None:
        """Reads a given text on the explaining thread, since it takes passes of the model."""

        def read(progress: Progress) -> Trace:
            progress("reading", 0, 1)
            return given_trace(self.model.bundle, text.prompt.text_or_ids, continuation)

        def done(result: Any) -> None:
            if text.ended:  # it was stopped
                return
            if isinstance(result, Trace):
                text.given, text.commits, text.state = result, list(result.commits), "done"
            else:
                text.state, text.error = "failed", str(as_api_error(result))
            self.writing.finish(text)

        text.state = "running"
        self.writing.tell_state(text)
        self.explaining.run(tab.id, JobKey(text.id, "given"), Rank.CONCEPTS, read, done)

    def _ended(self, text: Text) -> None:
        """A text has ended, and is explained from now on."""
        for tab in self.tabs.of(text.sessions):
            if text.commits:
                self.explaining.begin(tab, text, JobKey(text.id, "concepts"), tab.asked)
            if tab.focus is not None and tab.focus.text == text.id:
                self.look(tab, tab.focus)

    async def export(self, text: Text, kind: str, parts: tuple[str, ...], state: str) -> ExportedFile:
        """A file of a text that has ended. Cancelled with the request that waits for it."""
        if not text.ended or not text.commits:
            raise ApiError(409, "The text is still being written; export it when it has ended.", code="not_ready")
        model, record, data = self.model, self.model.record(text), self.explaining.training_data
        find = None if data is None else lambda ids, start, end: data.search(ids, start, end, data.quick_scores)
        result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        owner = f"export {secrets.token_hex(8)}"
        job = self.explaining.run(
            owner,
            JobKey(text.id, "export", owner),
            Rank.EXPORT,
            lambda progress: export_file(model.bundle, model.autoencoders, record, kind, parts, find, progress, state),
            lambda value: None if result.done() else result.set_result(value),
        )
        try:
            file = await result
        finally:
            self.explaining.thread.abandon(job, owner)
        if isinstance(file, Exception):
            raise file
        return file

    def look(self, tab: Tab, focus: Focus) -> None:
        """The tab looks at something; see `Explaining.look`."""
        self.explaining.look(tab, focus)

    def drop_job(self, tab: Tab, job: Job) -> None:
        """Cancels a job that the tab asked for."""
        self.explaining.abandon(tab, job.key)
        tab.log.add("cancelled", {"job": job.id, "kind": job.key.kind, "text": job.key.text})

    def cancel_idle(self) -> None:
        """Cancels the work of tabs without a client; call it every second."""
        for tab in self.tabs.idle():
            for key in [*tab.focused, *tab.asked]:
                self.explaining.abandon(tab, key)
            self.indexing.leave(tab)
            for text in self.texts:
                if tab.id in text.sessions and not text.ended:
                    self.writing.leave(tab, text)

    def _forget(self, text: Text) -> None:
        for tab in self.tabs:
            for key in [key for key in (*tab.focused, *tab.asked) if key.text == text.id]:
                self.explaining.abandon(tab, key)
