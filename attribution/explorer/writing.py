"""How texts are begun, written, stopped, and followed by tabs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from steerling_jax.attribution.explorer.tabs import Tab, Tabs
from steerling_jax.attribution.explorer.texts import Model, Text, TextStore
from steerling_jax.errors import UserError
from steerling_jax.infer.server.engine import Engine, EngineRequest, TextDelta
from steerling_jax.infer.server.errors import ApiError, as_api_error
from steerling_jax.infer.text_stream import TextWriter

MOST_UNFINISHED = 8  # texts of a tab that are being written


class Writing:
    """The texts that are being written, on the event loop's thread. ended: called with each text that has ended."""

    def __init__(
        self,
        model: Model,
        engine: Engine,
        texts: TextStore,
        tabs: Tabs,
        ended: Callable[[Text], None],
        clock: Callable[[], float],
    ):
        self._model, self._engine, self._texts, self._tabs = model, engine, texts, tabs
        self._on_end, self._clock = ended, clock
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by text

    def known(self, tab: Tab, id: str) -> Text | None:
        """The text with this id, if it is there to be followed; one that was stopped or failed is written again."""
        text = self._texts.get(id)
        if text is None or text.state in ("stopped", "failed"):
            return None
        text.sessions.add(tab.id)
        return text

    def add(self, tab: Tab, text: Text) -> None:
        """Takes a new text of a tab into the store. Raises `ApiError` where the tab has too many."""
        unfinished = [one for one in self._texts if tab.id in one.sessions and not one.ended]
        if len(unfinished) >= MOST_UNFINISHED:
            raise ApiError(
                429,
                f"{MOST_UNFINISHED} texts of this tab are being written: wait for one to end.",
                code="too_many_texts",
                headers={"Retry-After": "2"},
            )
        text.sessions.add(tab.id)
        self._texts.add(text)

    def begin(self, tab: Tab, text: Text) -> None:
        """Begins to write a text."""
        try:
            text.request = self._model.request(text)
        except UserError as error:  # everything except the steering is valid by now
            raise ApiError(400, str(error), param="steering") from None
        self.add(tab, text)
        self.tell_state(text)
        self._tasks[text.id] = asyncio.create_task(self._write(text))

    def leave(self, tab: Tab, text: Text) -> None:
        """The tab does not follow the text any more. Without followers it is stopped, and keeps what is written."""
        if text.ended or text.sessions - {tab.id}:
            text.sessions.discard(tab.id)
            return
        if text.engine_request is not None:
            self._engine.cancel(text.engine_request)
        if (task := self._tasks.pop(text.id, None)) is not None:
            task.cancel()
        text.state = "stopped"
        self.finish(text)

    def finish(self, text: Text) -> None:
        """Tells the tabs that a text has ended, as its state says."""
        self.tell_state(text)
        self._on_end(text)

    async def _write(self, text: Text) -> None:
        bundle, config = self._model.bundle, text.prompt.config
        assert text.request is not None
        prompt, length = len(text.request.prompt), config.canvas_length(bundle.config)
        writer = TextWriter(bundle.tokenizer, bundle.config, prompt, length, config.max_new_tokens, text.stop)
        text.engine_request = EngineRequest(text.request, writer)
        began = self._clock()
        self._engine.submit(text.engine_request)
        try:
            async for delta in text.engine_request.deltas():
                text.seconds = self._clock() - began
                self._commit(text, delta)
            text.state = "done"
        except Exception as error:
            text.state, text.error = "failed", str(as_api_error(error))
        del self._tasks[text.id]
        self.finish(text)

    def _commit(self, text: Text, delta: TextDelta) -> None:
        """Tells the tabs what was committed, and the characters that this changes."""
        if not delta.commits:
            return
        text.state = "running"
        text.commits += delta.commits
        fresh = {position for commit in delta.commits for position in commit.positions}
        changed = [run for run in self._model.characters(text) if not fresh.isdisjoint(range(run[0], run[1]))]
        commits = [commit._asdict() for commit in delta.commits]
        for tab in self._tabs.of(text.sessions):
            tab.log.add("commits", {"text": text.id, "commits": commits, "characters": changed})
        self.tell_state(text)

    def tell_state(self, text: Text) -> None:
        """Sends a text's state. Only the last one is numbered: a client that comes back does not need the others."""
        for tab in self._tabs.of(text.sessions):
            tab.log.add("state", self.state(text), numbered=text.ended)

    def state(self, text: Text) -> dict[str, Any]:
        """A text's progress. place: how many texts are before it in the queue."""
        waiting = [one.id for one in self._texts if one.state == "queued"]
        return {
            "text": text.id,
            "state": text.state,
            "place": waiting.index(text.id) if text.id in waiting else None,
            "written": text.written,
            "of": text.prompt.config.max_new_tokens,
            "seconds": round(text.seconds, 3),
            "error": text.error,
        }
