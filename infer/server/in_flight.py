"""Requests between the first byte of their body and the last byte of their answer."""

from __future__ import annotations

from steerling_jax.infer.server.engine import Engine, EngineRequest
from steerling_jax.infer.server.errors import ApiError


class InFlight:
    """Counts the requests in flight, and knows which of them the engine has. count: all of them."""

    def __init__(self, engine: Engine):
        self.count = 0
        self._engine = engine
        self._submitted: set[EngineRequest] = set()

    def begin(self) -> None:
        """Counts a request whose body is about to be read."""
        self.count += 1

    def reject(self) -> None:
        """Takes back the count of a request that never reached the engine."""
        self.count -= 1

    def submit(self, request: EngineRequest) -> None:
        """Gives a counted request to the engine."""
        self._submitted.add(request)
        self._engine.submit(request)

    def end(self, request: EngineRequest) -> None:
        """Forgets a submitted request, and frees its row if it is still being decoded."""
        self.count -= 1
        self._submitted.discard(request)
        self._engine.cancel(request)

    def fail_all(self) -> None:
        """Answers every submitted request with an error: the server stops."""
        for request in self._submitted:
            request.put(ApiError(503, "The server has stopped.", code="stopping"))
