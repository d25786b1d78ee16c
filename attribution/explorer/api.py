"""The routes that need the model: tabs, texts, and what explains them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from steerling_jax.attribution.explorer import asking, cards, indexing
from steerling_jax.attribution.explorer.app import MOST_BYTES
from steerling_jax.attribution.explorer.jobs import JobKey
from steerling_jax.attribution.explorer.service import Explorer
from steerling_jax.attribution.explorer.settings import ExplorerSettings
from steerling_jax.attribution.explorer.tabs import Tab
from steerling_jax.attribution.explorer.warm_up import compile_explanations
from steerling_jax.attribution.trace.features import head_of
from steerling_jax.infer.server.errors import ApiError, json_response
from steerling_jax.infer.server.json_body import parse_json, read_body
from steerling_jax.infer.server.metrics import metrics_text
from steerling_jax.infer.server.request_counts import RequestCounts
from steerling_jax.models.steerling.config import ModelConfig, concept_counts

_STREAM_HEADERS = {"x-accel-buffering": "no"}  # nginx would collect the events otherwise


class ModelApi:
    """The routes of one model, and the state behind them; see `app.Api`. counts: of all requests of the server."""

    def __init__(self, explorer: Explorer, settings: ExplorerSettings, counts: RequestCounts):
        self.explorer, self.settings, self.counts = explorer, settings, counts
        self.stopping = False
        self.router: ASGIApp = Router(
            [Route(path, handler, methods=[method]) for method, path, handler in self._table()]
        )

    def start(self) -> None:
        self.explorer.start()
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """Cancels the work of tabs that are gone, every second; compiles explanations once texts can be written."""
        compiled = False
        while True:
            await asyncio.sleep(1)
            self.explorer.cancel_idle()
            if not compiled and self.explorer.engine.ready:
                compiled = True
                compile_explanations(self.explorer.model, self.explorer.explaining)

    async def close(self) -> None:
        self.stopping = True
        self._watching.cancel()
        self.end_streams()
        await run_in_threadpool(self.explorer.close)

    def end_streams(self) -> None:
        self.explorer.end_streams()

    @property
    def busy(self) -> bool:
        engine = self.explorer.engine
        return engine.running + engine.waiting > 0

    @property
    def failure(self) -> Exception | None:
        return self.explorer.engine.failure

    @property
    def compiled(self) -> float:
        engine = self.explorer.engine
        done, total = engine.warmed
        return 1.0 if engine.ready else min(done / total, 0.99)

    def _table(self) -> list[tuple[str, str, Callable[[Request], Any]]]:
        session, text = "/api/sessions/{session}", "/api/texts/{text}"
        return [
            ("GET", "/metrics", self.show_metrics),
            ("GET", "/api/model", self.model),
            ("POST", "/api/sessions", self.create_tab),
            ("GET", f"{session}/events", self.events),
            ("POST", f"{session}/texts", self.create_text),
            ("DELETE", f"{session}/texts/{{text}}", self.stop_text),
            ("PUT", f"{session}/focus", self.focus),
            ("POST", f"{session}/jobs", self.create_job),
            ("DELETE", f"{session}/jobs/{{job}}", self.drop_job),
            ("GET", text, self.text),
            ("GET", f"{text}/{{panel}}", self.panel),
            ("GET", "/api/concepts", self.concepts),
            ("GET", "/api/concepts/{head}/{id:int}", self.concept),
            ("GET", "/api/passages/{document:int}", self.passage),
            ("POST", "/api/export", self.export),
        ]

    async def show_metrics(self, http: Request) -> Response:
        text = metrics_text(self.counts, self.explorer.engine)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def model(self, http: Request) -> Response:
        model, bundle = self.explorer.model, self.explorer.model.bundle
        config = bundle.config
        data = self.explorer.explaining.training_data
        known, discovered = concept_counts(config) if isinstance(config, ModelConfig) else (0, 0)
        return json_response(
            {
                "name": model.origin.name,
                "fingerprint": model.origin.fingerprint,
                "context": config.context_length,
                "block": config.diff_block_size if isinstance(config, ModelConfig) else 1,
                "concepts": {"known": known, "discovered": discovered},
                "features": [
                    {"head": head_of(one), "layer": one.layer, "name": one.name, "count": one.n_latents}
                    for one in model.autoencoders
                ],
                "corpus": None if model.origin.corpus is None else dict(model.origin.corpus),
                "index": None if data is None else {"scores": list(data.scores)},
                "limits": {"tokens": self.settings.tokens or config.context_length, "prompt": config.context_length},
                "can_index": data is None and self.explorer.indexing.possible,
                "epoch": self.explorer.epoch,
            }
        )

    async def create_tab(self, http: Request) -> Response:
        self._refuse_when_stopping()
        return json_response({"session": self.explorer.tabs.create().id, "epoch": self.explorer.epoch})

    async def events(self, http: Request) -> Response:
        tab = self._tab(http)
        last = http.headers.get("last-event-id") or http.query_params.get("last_event_id")
        frames = tab.log.frames(last)
        return StreamingResponse(frames, media_type="text/event-stream", headers=_STREAM_HEADERS)

    async def create_text(self, http: Request) -> Response:
        self._refuse_when_stopping()
        tab, body = self._tab(http), await self._body(http)
        model, limit = self.explorer.model, self.settings.tokens
        fingerprint = model.origin.fingerprint
        # On another thread: encoding a long prompt would delay every stream.
        text, given = await run_in_threadpool(asking.parse_text, body, model.bundle, fingerprint, limit)
        text, cached = self.explorer.ask_text(tab, text, given)
        return json_response({"text": text.id, "cached": cached}, 202)

    async def stop_text(self, http: Request) -> Response:
        self.explorer.writing.leave(self._tab(http), self.explorer.text(http.path_params["text"]))
        return Response(status_code=204)

    async def text(self, http: Request) -> Response:
        text = self.explorer.text(http.path_params["text"])
        document = text.results.get(JobKey(text.id, "concepts"))
        characters = self.explorer.model.characters(text)
        commits = [commit._asdict() for commit in text.commits]
        prompt = list(text.prompt.text_or_ids)
        return json_response(
            self.explorer.writing.state(text)
            | {"prompt": prompt, "commits": commits, "characters": characters, "document": document}
        )

    async def focus(self, http: Request) -> Response:
        tab = self._tab(http)
        self.explorer.look(tab, asking.parse_focus(await self._body(http)))
        return Response(status_code=204)

    async def create_job(self, http: Request) -> Response:
        self._refuse_when_stopping()
        tab = self._tab(http)
        kind, text, at = asking.parse_job(await self._body(http))
        if kind == "index":
            return json_response({"job": self.explorer.indexing.begin(tab)}, 202)
        job = self.explorer.explaining.ask(tab, self.explorer.text(text), kind, at)
        return json_response({"job": None if job is None else job.id}, 202)

    async def drop_job(self, http: Request) -> Response:
        tab = self._tab(http)
        if http.path_params["job"] == indexing.ID and self.explorer.indexing.leave(tab):
            return Response(status_code=204)
        job = tab.job(http.path_params["job"])
        if job is None:
            raise ApiError(404, "There is no such job; it has ended, or belongs to another tab.", code="job_not_found")
        self.explorer.drop_job(tab, job)
        return Response(status_code=204)

    async def panel(self, http: Request) -> Response:
        text, kind, query = http.path_params["text"], http.path_params["panel"], http.query_params
        if kind == "inputs":
            key = JobKey(text, kind, asking.parse_query_span(query.get("at")))
        elif kind == "considered":
            key = JobKey(text, kind, asking.parse_query_number("step", query.get("step"), 1 << 30))
        elif kind == "evidence":
            scores = query.get("scores")
            data = self.explorer.explaining.training_data
            default = () if data is None else data.quick_scores
            wanted = default if scores is None else tuple(scores.split(","))
            key = JobKey(text, kind, (asking.parse_query_span(query.get("at")), wanted))
        elif kind == "cost":
            key = JobKey(text, kind)
        else:
            raise HTTPException(404)
        return json_response(self.explorer.explaining.result(key))

    async def concepts(self, http: Request) -> Response:
        bundle = self.explorer.model.bundle
        # On another thread: a catalogue of a hundred thousand features is searched in a tenth of a second.
        return json_response(await run_in_threadpool(cards.find_concepts, bundle, http.query_params))

    async def concept(self, http: Request) -> Response:
        at = http.path_params["head"], http.path_params["id"]
        model = self.explorer.model
        return json_response(await run_in_threadpool(cards.concept_card, model.bundle, *at, model.autoencoders))

    async def passage(self, http: Request) -> Response:
        explorer, document = self.explorer, http.path_params["document"]
        data = explorer.explaining.training_data
        corpus = None if data is None else data.corpus
        found = cards.passage, explorer.model.bundle, corpus, document, http.query_params
        return json_response(await run_in_threadpool(*found))

    async def export(self, http: Request) -> Response:
        self._refuse_when_stopping()
        text, kind, parts, state = asking.parse_export(await self._body(http))
        file = await self.explorer.export(self.explorer.text(text), kind, parts, state)
        name = f"attachment; filename={text}.{file.suffix}"
        return Response(file.content, media_type=file.media_type, headers={"content-disposition": name})

    def _tab(self, http: Request) -> Tab:
        return self.explorer.tabs.get(http.path_params["session"])

    async def _body(self, http: Request) -> dict[str, Any]:
        return parse_json(await read_body(http, MOST_BYTES))

    def _refuse_when_stopping(self) -> None:
        if self.stopping:
            raise ApiError(503, "The server is being stopped.", code="stopping", headers={"Retry-After": "5"})
