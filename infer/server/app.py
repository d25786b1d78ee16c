"""The HTTP side: routes, limits, and what becomes of a request from its body to the last byte of its answer."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.generation import Prompt, request_of
from steerling_jax.decoding.request import Request as DecodeRequest
from steerling_jax.errors import UserError
from steerling_jax.infer.server.answer import AnswerResponse
from steerling_jax.infer.server.asking import CompletionRequest, parse_json, read
from steerling_jax.infer.server.engine import Engine, EngineRequest
from steerling_jax.infer.server.errors import ApiError, as_api_error, json_response
from steerling_jax.infer.server.gate import Gate
from steerling_jax.infer.server.in_flight import InFlight
from steerling_jax.infer.server.metrics import Metrics
from steerling_jax.infer.server.replies import Reply
from steerling_jax.infer.text_stream import TextWriter
from steerling_jax.steering.config import SteeringConfig

BODY_SECONDS = 30  # for a request's body to arrive


@dataclass(frozen=True)
class RequestLimits:
    """tokens: of one text (None: the model's context); body: bytes; open: requests that run or wait."""

    tokens: int | None
    body: int
    open: int


class Service:
    """A model that answers. always: steering of all requests. stopping: no more are taken."""

    def __init__(self, bundle: Bundle, engine: Engine, limits: RequestLimits, always: Sequence[SteeringConfig] = ()):
        self.bundle, self.engine, self.limits, self.always = bundle, engine, limits, always
        self.model = model_id(bundle)
        self.metrics = Metrics()
        self.in_flight = InFlight(engine)
        self.stopping = False
        self._started = int(time.time())

    async def completions(self, http: Request) -> Response:
        return await self._answer(http, chat=False)

    async def chat(self, http: Request) -> Response:
        return await self._answer(http, chat=True)

    async def models(self, http: Request) -> Response:
        return json_response({"object": "list", "data": [self._card()]})

    async def one_model(self, http: Request) -> Response:
        if http.path_params["model"] != self.model:
            raise ApiError(
                404,
                f"There is no such model here; this server has {self.model!r}.",
                param="model",
                code="model_not_found",
            )
        return json_response(self._card())

    async def health(self, http: Request) -> Response:
        if self.stopping or not self.engine.ready:
            done, total = self.engine.warmed
            starting = {"status": "starting", "compiled": round(done / total, 2)}
            return json_response({"status": "stopping"} if self.stopping else starting, 503)
        return json_response({"status": "ok"})

    async def show_metrics(self, http: Request) -> Response:
        return PlainTextResponse(self.metrics.text(self.engine), media_type="text/plain; version=0.0.4")

    def _card(self) -> dict[str, object]:
        return {"id": self.model, "object": "model", "created": self._started, "owned_by": "local"}

    async def _answer(self, http: Request, *, chat: bool) -> Response:
        self._check_room()
        self.in_flight.begin()
        try:
            body = await read_body(http, self.limits.body)
            asked, request = await run_in_threadpool(self._prepare, body, chat)
        except BaseException:
            self.in_flight.reject()
            raise
        wanted = asked.wanted
        writing = TextWriter(
            self.bundle.tokenizer,
            self.bundle.config,
            len(wanted.prompt),
            wanted.generation.max_new_tokens,
            wanted.max_tokens,
            wanted.stop,
        )
        job = EngineRequest(request, writing)
        self.in_flight.submit(job)
        return AnswerResponse(self.in_flight, self.metrics, job, self._reply(asked, request), stream=asked.stream)

    def _check_room(self) -> None:
        if self.stopping:
            raise ApiError(
                503,
                "The server is stopping: ask another one, or again in a while.",
                code="stopping",
                headers={"Retry-After": "5", "Connection": "close"},
            )
        if self.in_flight.count >= self.limits.open:
            wait = min(max(math.ceil(self.metrics.mean_seconds), 1), 60)
            raise ApiError(
                429,
                f"{self.in_flight.count} requests are in progress, as many as are allowed: ask again in {wait} s.",
                code="queue_full",
                headers={"Retry-After": str(wait)},
            )

    def _prepare(self, body: bytes, chat: bool) -> tuple[CompletionRequest, DecodeRequest]:
        bundle, limit = self.bundle, self.limits.tokens
        asked = read(parse_json(body), bundle, self.model, chat=chat, limit=limit, always=self.always)
        wanted = asked.wanted
        try:
            prompt = Prompt(wanted.prompt.tolist(), wanted.generation, wanted.steering or None)
            return asked, request_of(bundle, prompt)
        except UserError as error:  # all but the steering was checked
            raise ApiError(400, str(error), param="steering") from None

    def _reply(self, asked: CompletionRequest, request: DecodeRequest) -> Reply:
        return Reply(
            id=("chatcmpl-" if asked.chat else "cmpl-") + secrets.token_hex(12),
            created=int(time.time()),
            model=self.model,
            chat=asked.chat,
            seed=request.seed,
            trace=asked.wanted.trace,
            steering=request.steering.labels if request.steering else (),
            include_usage=asked.include_usage,
        )


async def read_body(http: Request, limit: int) -> bytes:
    """The request's body. Raises `ApiError` as soon as it is known to be over `limit` bytes, or when it is slow."""
    # The connection stays open: closing it before the whole body is here would hide this answer from the client.
    too_large = ApiError(
        413, f"The body is over {limit} bytes, the most that is taken: send less.", code="body_too_large"
    )
    told = http.headers.get("content-length", "")
    if told.isdecimal() and int(told) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in http.stream():
                body += part
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_SECONDS} s: send it again.", code="timeout",
                       headers={"Connection": "close"}) from None  # fmt: skip
    return bytes(body)


def model_id(bundle: Bundle) -> str:
    """The bundled model's or the Hub's name; of a folder or checkpoint, its last part."""
    path = Path(bundle.name)
    return path.resolve().name if path.exists() else bundle.name


def make_app(service: Service, *, listening: str, hosts: list[str], origins: list[str]) -> Starlette:
    """The ASGI application. listening: the address; hosts, origins: further ones that are allowed."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await run_in_threadpool(service.engine.close)

    async def api_error(http: Request, error: Exception) -> Response:
        failure = as_api_error(error)
        service.metrics.count(failure.outcome)
        return failure.response()

    async def http_error(http: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"There is no {http.method} {http.url.path} here; see /v1/models, /v1/completions, /v1/chat/completions."
        return await api_error(http, ApiError(error.status_code, what, headers=error.headers))

    async def left(http: Request, error: Exception) -> Response:
        service.metrics.count("left")
        return Response(status_code=400)  # nobody reads it

    origins = [origin.lower().rstrip("/") for origin in origins]
    middleware = [Middleware(Gate, service.metrics, listening=listening, hosts=hosts, origins=origins)]
    if origins:
        middleware.append(Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]))
    return Starlette(
        routes=[
            Route("/v1/completions", service.completions, methods=["POST"]),
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/v1/models", service.models),
            Route("/v1/models/{model:path}", service.one_model),
            Route("/health", service.health),
            Route("/metrics", service.show_metrics),
        ],
        middleware=middleware,
        exception_handlers={
            HTTPException: http_error,
            ClientDisconnect: left,
            Exception: api_error,
            ApiError: api_error,
        },
        lifespan=lifespan,
    )
