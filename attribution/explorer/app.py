"""The explorer's routes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from steerling_jax.attribution.explorer import asking, cards
from steerling_jax.attribution.explorer.jobs import JobKey
from steerling_jax.attribution.explorer.security import SecurityMiddleware, same_token, token_cookie
from steerling_jax.attribution.explorer.service import Explorer
from steerling_jax.attribution.explorer.tabs import Tab
from steerling_jax.infer.server.app import read_body
from steerling_jax.infer.server.errors import ApiError, error_handlers, json_response
from steerling_jax.infer.server.host_check import HostOriginMiddleware
from steerling_jax.infer.server.metrics import Metrics
from steerling_jax.infer.server.request_body import parse_json
from steerling_jax.models.steerling.config import ModelConfig, concept_counts

MOST_BYTES = 64 << 10  # of a body
_STREAM_HEADERS = {"x-accel-buffering": "no"}  # nginx would collect the events otherwise


@dataclass(frozen=True)
class ExplorerSettings:
    """listening: the address. hosts: further valid Host headers. token: needed from other machines. tokens: the most
    tokens of a text; None for the model's context."""

    listening: str = "127.0.0.1"
    hosts: tuple[str, ...] = ()
    token: str | None = None
    tokens: int | None = None


class Routes:
    """The handlers, in the order of the table in `make_app`."""

    def __init__(self, explorer: Explorer, metrics: Metrics, settings: ExplorerSettings):
        self.explorer, self.metrics, self.settings = explorer, metrics, settings
        self.stopping = False

    async def health(self, http: Request) -> Response:
        engine = self.explorer.engine
        if engine.ready and not self.stopping:
            return json_response({"status": "ok"})
        done, total = engine.warmed
        starting = {"status": "starting", "compiled": round(done / total, 2)}
        return json_response({"status": "stopping"} if self.stopping else starting, 503)

    async def show_metrics(self, http: Request) -> Response:
        return PlainTextResponse(self.metrics.text(self.explorer.engine), media_type="text/plain; version=0.0.4")

    async def token(self, http: Request) -> Response:
        body = await self._body(http)
        given, token = body.get("token"), self.settings.token
        if token is None or not isinstance(given, str) or not same_token(given, token):
            raise ApiError(401, "The token is wrong; copy the address that the command prints.", code="token_needed")
        return Response(status_code=204, headers={"set-cookie": token_cookie(token)})

    async def model(self, http: Request) -> Response:
        model, bundle = self.explorer.model, self.explorer.model.bundle
        config = bundle.config
        known, discovered = concept_counts(config) if isinstance(config, ModelConfig) else (0, 0)
        return json_response(
            {
                "name": model.origin.name,
                "fingerprint": model.origin.fingerprint,
                "context": config.context_length,
                "block": config.diff_block_size if isinstance(config, ModelConfig) else 1,
                "concepts": {"known": known, "discovered": discovered},
                "corpus": None if model.origin.corpus is None else dict(model.origin.corpus),
                "index": None if self.explorer.explaining.evidence is None else {"scores": list(asking.SCORES)},
                "limits": {"tokens": self.settings.tokens or config.context_length, "prompt": config.context_length},
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
        job = self.explorer.explaining.ask(tab, self.explorer.text(text), kind, at)
        return json_response({"job": None if job is None else job.id}, 202)

    async def drop_job(self, http: Request) -> Response:
        tab = self._tab(http)
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
            wanted = asking.QUICK_SCORES if scores is None else tuple(scores.split(","))
            key = JobKey(text, kind, (asking.parse_query_span(query.get("at")), wanted))
        elif kind == "cost":
            key = JobKey(text, kind)
        else:
            raise HTTPException(404)
        return json_response(self.explorer.explaining.result(key))

    async def concepts(self, http: Request) -> Response:
        return json_response(cards.find_concepts(self.explorer.model.bundle, http.query_params))

    async def concept(self, http: Request) -> Response:
        at = http.path_params["head"], http.path_params["id"]
        return json_response(await run_in_threadpool(cards.concept_card, self.explorer.model.bundle, *at))

    async def passage(self, http: Request) -> Response:
        explorer, document = self.explorer, http.path_params["document"]
        found = cards.passage, explorer.model.bundle, explorer.corpus, document, http.query_params
        return json_response(await run_in_threadpool(*found))

    async def export(self, http: Request) -> Response:
        self._refuse_when_stopping()
        text, kind, parts = asking.parse_export(await self._body(http))
        file = await self.explorer.export(self.explorer.text(text), kind, parts)
        name = f"attachment; filename={text}.{file.suffix}"
        return Response(file.content, media_type=file.media_type, headers={"content-disposition": name})

    def _tab(self, http: Request) -> Tab:
        return self.explorer.tabs.get(http.path_params["session"])

    async def _body(self, http: Request) -> dict[str, Any]:
        return parse_json(await read_body(http, MOST_BYTES))

    def _refuse_when_stopping(self) -> None:
        if self.stopping:
            raise ApiError(503, "The server is being stopped.", code="stopping", headers={"Retry-After": "5"})


def make_app(explorer: Explorer, settings: ExplorerSettings) -> Starlette:
    """The ASGI application."""
    metrics = Metrics()
    routes = Routes(explorer, metrics, settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        explorer.start()
        watching = asyncio.create_task(_every_second(explorer.cancel_idle))
        yield
        routes.stopping = True
        watching.cancel()
        explorer.end_streams()
        await run_in_threadpool(explorer.close)

    session, text = "/api/sessions/{session}", "/api/texts/{text}"
    table: list[tuple[str, str, Callable[[Request], Any]]] = [
        ("GET", "/health", routes.health),
        ("GET", "/metrics", routes.show_metrics),
        ("POST", "/api/token", routes.token),
        ("GET", "/api/model", routes.model),
        ("POST", "/api/sessions", routes.create_tab),
        ("GET", f"{session}/events", routes.events),
        ("POST", f"{session}/texts", routes.create_text),
        ("DELETE", f"{session}/texts/{{text}}", routes.stop_text),
        ("PUT", f"{session}/focus", routes.focus),
        ("POST", f"{session}/jobs", routes.create_job),
        ("DELETE", f"{session}/jobs/{{job}}", routes.drop_job),
        ("GET", text, routes.text),
        ("GET", f"{text}/{{panel}}", routes.panel),
        ("GET", "/api/concepts", routes.concepts),
        ("GET", "/api/concepts/{head}/{id:int}", routes.concept),
        ("GET", "/api/passages/{document:int}", routes.passage),
        ("POST", "/api/export", routes.export),
    ]
    return Starlette(
        routes=[Route(path, handler, methods=[method]) for method, path, handler in table],
        middleware=[
            Middleware(SecurityMiddleware, token=settings.token),
            Middleware(HostOriginMiddleware, metrics, listening=settings.listening, hosts=settings.hosts),
        ],
        exception_handlers=error_handlers(metrics),
        lifespan=lifespan,
    )


async def _every_second(action: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(1)
        action()
