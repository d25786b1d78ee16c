"""The explorer's process, with a graceful stop."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from steerling_jax.attribution.explorer.app import Site, make_app
from steerling_jax.errors import UserError, error_summary
from steerling_jax.infer.server.listening import uvicorn_config


class Server(uvicorn.Server):
    """Uvicorn's server with a graceful stop.

    On SIGTERM or SIGINT new texts are refused while those in progress are finished, for at most `grace` seconds; then
    the streams of the tabs end and the socket is closed. A second signal ends the waiting. ready: called once, when the
    first text can be written.
    """

    def __init__(self, config: uvicorn.Config, site: Site, grace: float, ready: Callable[[], None]):
        super().__init__(config)
        self._site, self._grace, self._on_ready = site, grace, ready
        self._ready, self._signalled = False, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles a signal, in place of uvicorn's handler, which would close the socket at once."""
        self.should_exit = self._site.stopping
        if not self._site.stopping:
            self._signalled = time.monotonic()
            self._site.stop()

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; returns whether the server should exit."""
        should_exit = await super().on_tick(counter)
        site, api = self._site, self._site.api
        if not self._ready and api is not None and api.compiled == 1:
            self._ready = True
            self._on_ready()
        failed = site.failure is not None or (api is not None and api.failure is not None)
        drained = api is None or not api.busy or time.monotonic() - self._signalled > self._grace
        if not (should_exit or failed or (site.stopping and drained)):
            return False
        if api is not None:
            # Uvicorn waits for open connections, and an event stream is open for as long as its tab.
            api.end_streams()
        return True


def serve(site: Site, listening: socket.socket, grace: float, ready: Callable[[], None]) -> None:
    """Serves until a signal. Raises what ended loading, and `UserError` where compiling failed."""
    Server(uvicorn_config(make_app(site)), site, grace, ready).run(sockets=[listening])
    if site.failure is not None:
        raise site.failure
    if site.api is not None and (failure := site.api.failure) is not None:
        reason = f"{type(failure).__name__}: {error_summary(failure)}"
        raise UserError(f"Compiling failed ({reason}); if memory ran out, use fewer --rows.") from failure
