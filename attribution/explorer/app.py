"""The explorer's application: the page and the gallery at once, the model's routes as soon as the model is loaded.

Nothing here imports JAX, which takes a second, so the page can be read while JAX and the model are loaded on a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from steerling_jax.attribution.explorer.gallery import listed, read_case
from steerling_jax.attribution.explorer.page import page_files
from steerling_jax.attribution.explorer.security import SecurityMiddleware, same_token, token_cookie
from steerling_jax.attribution.explorer.settings import ExplorerSettings
from steerling_jax.errors import UserError, error_summary
from steerling_jax.infer.server.errors import ApiError, error_handlers, json_response
from steerling_jax.infer.server.host_check import HostOriginMiddleware
from steerling_jax.infer.server.json_body import parse_json, read_body
from steerling_jax.infer.server.request_counts import RequestCounts

MOST_BYTES = 64 << 10  # of a body
_LOADING_SECONDS = 30.0  # that a server which stops waits for the loading thread


class Api(Protocol):
    """What `load` returns: the routes that need the model.

    router: the routes. busy: whether texts are being written. compiled: the part of the programs that is compiled,
    1 when the server is ready. failure: the exception that ended compiling. stopping: set to refuse new work.
    """

    stopping: bool

    @property
    def router(self) -> ASGIApp: ...
    @property
    def busy(self) -> bool: ...
    @property
    def compiled(self) -> float: ...
    @property
    def failure(self) -> Exception | None: ...
    def start(self) -> None:
        """Starts the threads; called once, on the event loop."""

    def end_streams(self) -> None:
        """Ends the event streams of all tabs."""

    async def close(self) -> None:
        """Ends the threads."""


Load = Callable[[RequestCounts], Api]


class Site:
    """The state of the server. load: loads the model, on a thread of its own. failure: why that failed."""

    def __init__(self, settings: ExplorerSettings, load: Load):
        self.settings, self._load = settings, load
        self.counts = RequestCounts()
        self.api: Api | None = None
        self.failure: Exception | None = None
        self.stopping = False

    def start(self) -> None:
        """Begins to load; call it on the running event loop."""
        loop = asyncio.get_running_loop()
        # A daemon, so that a model that takes minutes to load does not keep a stopped server alive.
        self._thread = threading.Thread(target=self._load_model, args=(loop,), name="loading", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuses new texts and jobs from now on."""
        self.stopping = True
        if self.api is not None:
            self.api.stopping = True

    async def close(self) -> None:
        self.stop()
        await run_in_threadpool(self._thread.join, _LOADING_SECONDS)
        if self.api is not None:
            await self.api.close()

    def _load_model(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            api = self._load(self.counts)
        except Exception as error:  # reported by /health, and by the command
            self.failure = error
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server was stopped
            loop.call_soon_threadsafe(self._take, api)

    def _take(self, api: Api) -> None:
        if not self.stopping:
            api.start()
            self.api = api

    async def file(self, http: Request) -> Response:
        content, media_type, etag = page_files()[http.url.path]
        headers = {"etag": etag}
        if etag in (one.strip() for one in http.headers.get("if-none-match", "").split(",")):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    async def health(self, http: Request) -> Response:
        api = self.api
        failure = self.failure or (None if api is None else api.failure)
        if self.stopping:
            return json_response({"status": "stopping"}, 503)
        if failure:
            return json_response({"status": "failed", "error": _sentence(failure)}, 503)
        if api is None:
            return json_response({"status": "starting", "stage": "loading", "compiled": 0.0}, 503)
        if api.compiled < 1:
            return json_response({"status": "starting", "stage": "compiling", "compiled": round(api.compiled, 2)}, 503)
        return json_response({"status": "ok"})

    async def cases(self, http: Request) -> Response:
        return json_response({"cases": listed()})

    async def case(self, http: Request) -> Response:
        if (case := await run_in_threadpool(read_case, http.path_params["name"])) is None:
            raise ApiError(404, "There is no such case; /api/cases lists them.", code="case_not_found")
        return json_response(case)

    async def token(self, http: Request) -> Response:
        body = parse_json(await read_body(http, MOST_BYTES))
        given, token = body.get("token"), self.settings.token
        if token is None or not isinstance(given, str) or not same_token(given, token):
            raise ApiError(401, "The token is wrong; copy the address that the command prints.", code="token_needed")
        return Response(status_code=204, headers={"set-cookie": token_cookie(token)})

    async def of_the_model(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Everything else, once the model is there."""
        if self.api is not None:
            await self.api.router(scope, receive, send)
            return
        if self.failure is not None:
            raise ApiError(503, f"The model was not loaded: {_sentence(self.failure)}", code="failed")
        if self.stopping:
            raise ApiError(503, "The server is being stopped.", code="stopping", headers={"Retry-After": "5"})
        raise ApiError(503, "The model is being loaded; try again.", code="preparing", headers={"Retry-After": "1"})


def make_app(site: Site) -> Starlette:
    """The ASGI application."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        site.start()
        yield
        await site.close()

    settings = site.settings
    return Starlette(
        routes=[
            *(Route(path, site.file, methods=["GET"]) for path in page_files()),
            Route("/health", site.health, methods=["GET"]),
            Route("/api/cases", site.cases, methods=["GET"]),
            Route("/api/cases/{name}", site.case, methods=["GET"]),
            Route("/api/token", site.token, methods=["POST"]),
            Mount("/", app=site.of_the_model),
        ],
        middleware=[
            Middleware(SecurityMiddleware, token=settings.token),
            Middleware(HostOriginMiddleware, site.counts, listening=settings.listening, hosts=settings.hosts),
        ],
        exception_handlers=error_handlers(site.counts),
        lifespan=lifespan,
    )


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error_summary(error)}"
