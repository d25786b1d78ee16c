"""The server process, with a graceful stop."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from steerling_jax.errors import UserError, error_summary
from steerling_jax.infer.server.app import Service
from steerling_jax.infer.server.listening import uvicorn_config


class Server(uvicorn.Server):
    """Uvicorn's server with a warm-up and a graceful stop.

    Calls `progress(done, total, ready)` during the warm-up, and once when it is ready. On SIGTERM or SIGINT it stops in
    two steps: new requests are answered with 503 while those in flight finish, for at most `grace` seconds; then the
    socket is closed. A second signal ends the first step.
    """

    def __init__(
        self, config: uvicorn.Config, service: Service, grace: float, progress: Callable[[int, int, bool], None]
    ):
        super().__init__(config)
        self._service, self._grace = service, grace
        self._progress, self._ready = progress, False
        self._signalled = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles a signal, in place of uvicorn's handler, which would close the socket at once."""
        self.should_exit = self._service.stopping
        if not self._service.stopping:
            self._signalled, self._service.stopping = time.monotonic(), True

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; returns whether the server should exit."""
        should_exit = await super().on_tick(counter)
        engine = self._service.engine
        if not self._ready:
            self._ready = engine.ready
            self._progress(*engine.warmed, self._ready)
        if engine.failure:
            self._service.in_flight.fail_all()
            return True
        if not self._service.stopping:
            return should_exit
        if should_exit or time.monotonic() - self._signalled > self._grace:
            self._service.in_flight.fail_all()
            return True
        return self._service.in_flight.count == 0


def serve(
    app: Starlette, service: Service, listening: socket.socket, grace: float, progress: Callable[[int, int, bool], None]
) -> None:
    """Serves until a signal. progress: see `Server`. Raises `UserError` where the warm-up failed."""
    config = uvicorn_config(app)
    Server(config, service, grace, progress).run(sockets=[listening])
    if failure := service.engine.failure:
        reason = f"{type(failure).__name__}: {error_summary(failure)}"
        raise UserError(
            f"The warm-up failed ({reason}); if memory ran out, use fewer --rows or a smaller --warm-up."
        ) from failure
