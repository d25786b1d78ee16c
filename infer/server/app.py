"""The ASGI application: routes, limits, and the path of a request from its body to its response."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.generation import request_of
from steerling_jax.decoding.request import Request as DecodeRequest
from steerling_jax.infer.server.engine import Engine, EngineRequest
from steerling_jax.infer.server.errors import ApiError, error_handlers, json_response
from steerling_jax.infer.server.host_check import HostOriginMiddleware
from steerling_jax.infer.server.in_flight import InFlight
from steerling_jax.infer.server.json_body import parse_json, read_body
from steerling_jax.infer.server.metrics import metrics_text
from steerling_jax.infer.server.request_body import CompletionRequest, parse_request
from steerling_jax.infer.server.request_counts import RequestCounts
from steerling_jax.infer.server.response import CompletionResponse
from steerling_jax.infer.server.response_body import Matches, ResponseBody
from steerling_jax.infer.server.text_checks import TextChecks
from steerling_jax.steering.plan import Resolved


@dataclass(frozen=True)
class RequestLimits:
    """tokens: max_tokens of one request (None: the model's context). body: bytes. in_flight: requests at a time."""

    tokens: int | None
    body: int
    in_flight: int


class Service:
    """The endpoints of one model. steering: applied to all requests. stopping: new requests are answered with 503.

    checks: classifiers of prompts and outputs; None for none.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        limits: RequestLimits,
        steering: Sequence[Resolved] = (),
        checks: TextChecks | None = None,
    ):
        self.bundle, self.engine, self.limits, self.steering = bundle, engine, limits, steering
        self.checks = checks
        self.model = model_id(bundle)
        self.counts = RequestCounts()
        self.in_flight = InFlight(engine)
        self.stopping = False
        self._started = int(time.time())

    async def completions(self, http: Request) -> Response:
        return await self._complete(http, chat=False)

    async def chat(self, http: Request) -> Response:
        return await self._complete(http, chat=True)

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
        return PlainTextResponse(metrics_text(self.counts, self.engine), media_type="text/plain; version=0.0.4")

    def _card(self) -> dict[str, object]:
        return {"id": self.model, "object": "model", "created": self._started, "owned_by": "local"}

    async def _complete(self, http: Request, *, chat: bool) -> Response:
        self._check_capacity()
        # Counted before the body is read, so that slow bodies cannot hold more connections open than are allowed.
        self.in_flight.begin()
        try:
            body = await read_body(http, self.limits.body)
            # On another thread: encoding a long prompt would delay every other response on the event loop.
            completion, request, matches = await run_in_threadpool(self._prepare, body, chat)
        except BaseException:  # including CancelledError, when the client disconnects
            self.in_flight.reject()
            raise
        engine_request = EngineRequest(request, completion.generation.text_writer(self.bundle))
        self.in_flight.submit(engine_request)
        response_body = self._response_body(completion, request, matches)
        return CompletionResponse(
            self.in_flight,
            self.counts,
            engine_request,
            response_body,
            stream=completion.stream,
            checks=self.checks,
        )

    def _check_capacity(self) -> None:
        if self.stopping:
            raise ApiError(
                503,
                "The server is stopping: use another one, or try again later.",
                code="stopping",
                headers={"Retry-After": "5", "Connection": "close"},
            )
        if self.in_flight.count >= self.limits.in_flight:
            wait = min(max(math.ceil(self.counts.mean_seconds), 1), 60)
            raise ApiError(
                429,
                f"{self.in_flight.count} requests are in progress, the most that are allowed: try again in {wait} s.",
                code="queue_full",
                headers={"Retry-After": str(wait)},
            )

    def _prepare(self, body: bytes, chat: bool) -> tuple[CompletionRequest, DecodeRequest, Matches | None]:
        """The parsed body, the decoder's request, and what the classifiers found in the prompt."""
        completion = parse_request(
            parse_json(body),
            self.bundle,
            self.model,
            chat=chat,
            max_tokens_limit=self.limits.tokens,
            steering=self.steering,
        )
        prompt, matches = completion.generation.prompt, None
        if self.checks is not None:
            matches = self.checks.matches(prompt.text_or_ids)
            if matches and self.checks.on_match == "refuse":
                labels = ", ".join(repr(match["label"]) for match in matches)
                raise ApiError(
                    400,
                    f"A classifier of this server matches the prompt ({labels}); send another prompt.",
                    param="messages" if chat else "prompt",
                    code="content_filter",
                )
            prompt = dataclasses.replace(prompt, edits=(*prompt.edits, *self.checks.edits(matches)))
        return completion, request_of(self.bundle, prompt), matches

    def _response_body(
        self, completion: CompletionRequest, request: DecodeRequest, matches: Matches | None
    ) -> ResponseBody:
        return ResponseBody(
            id=("chatcmpl-" if completion.chat else "cmpl-") + secrets.token_hex(12),
            created=int(time.time()),
            model=self.model,
            chat=completion.chat,
            seed=request.seed,
            trace=completion.generation.trace,
            steering=(*(request.steering.labels if request.steering else ()), *request.edit_labels),
            include_usage=completion.include_usage,
            prompt_matches=matches,
        )


def model_id(bundle: Bundle) -> str:
    """The name in the protocol's `model` field: that of a bundled model or on the Hub, or the name of its folder."""
    path = Path(bundle.name)
    return path.resolve().name if path.exists() else bundle.name


def make_app(service: Service, *, listening: str, hosts: list[str], origins: list[str]) -> Starlette:
    """The ASGI application. listening: the address; hosts, origins: those that are allowed besides the server's own."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await run_in_threadpool(service.engine.close)

    origins = [origin.lower().rstrip("/") for origin in origins]
    middleware = [Middleware(HostOriginMiddleware, service.counts, listening=listening, hosts=hosts, origins=origins)]
    if origins:
        # Browsers ask for private networks where a public page sends requests to this machine or its network. The page
        # is one that --allow-origin names.
        every = {"allow_methods": ["*"], "allow_headers": ["*"], "allow_private_network": True}
        middleware.append(Middleware(CORSMiddleware, allow_origins=origins, **every))
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
        exception_handlers=error_handlers(service.counts, "; see /v1/models, /v1/completions, /v1/chat/completions"),
        lifespan=lifespan,
    )
