"""Listening, and stopping without breaking off what is being answered."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from steerling_jax.errors import UserError
from steerling_jax.infer.server.app import Service
from steerling_jax.infer.server.protocol import Protocol


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `UserError` where the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"Cannot listen on {host}, port {port} ({why}): choose another --host or --port.") from None


class Server(uvicorn.Server):
    """Calls `tell(done, total, ready)` while it warms up, and once when it is ready.

    Stops in two steps, at SIGTERM or SIGINT: first new requests are answered 503 and those under way end, for at
    most `grace` seconds; then the socket closes. A second signal skips the waiting.
    """

    def __init__(self, config: uvicorn.Config, service: Service, grace: float, tell: Callable[[int, int, bool], None]):
        super().__init__(config)
        self._service, self._grace = service, grace
        self._tell, self._ready = tell, False
        self._signalled = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Uvicorn's would close the socket at once, and end the process by the signal."""
        self.should_exit = self._service.stopping
        if not self._service.stopping:
            self._signalled, self._service.stopping = time.monotonic(), True

    async def on_tick(self, counter: int) -> bool:
        """Uvicorn asks ten times a second whether to leave."""
        leave = await super().on_tick(counter)
        engine = self._service.engine
        if not self._ready:
            self._ready = engine.ready
            self._tell(*engine.warmed, self._ready)
        if engine.failure:
            self._service.in_flight.fail_all()
            return True
        if not self._service.stopping:
            return leave
        if leave or time.monotonic() - self._signalled > self._grace:
            self._service.in_flight.fail_all()
            return True
        return self._service.in_flight.count == 0


def serve(
    app: Starlette, service: Service, listening: socket.socket, grace: float, tell: Callable[[int, int, bool], None]
) -> None:
    """Serves until a signal ends it; tell: see `Server`. Raises `UserError` where warming up failed."""
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=Protocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    Server(config, service, grace, tell).run(sockets=[listening])
    if failure := service.engine.failure:
        why = f"{type(failure).__name__}: {str(failure).splitlines()[:1]}"[:200]
        raise UserError(
            f"Warming up failed ({why}); for want of memory, try fewer --rows or less --warm-up."
        ) from failure
