"""Requests in flight: between the first byte of their body and the last byte of their response."""

from __future__ import annotations

from steerling_jax.infer.server.engine import Engine, EngineRequest
from steerling_jax.infer.server.errors import ApiError


class InFlight:
    """Counts the requests in flight and submits them to the engine. count: also those whose body is still read."""

    def __init__(self, engine: Engine):
        self.count = 0
        self._engine = engine
        self._submitted: set[EngineRequest] = set()

    def begin(self) -> None:
        """Counts a request whose body is about to be read."""
        self.count += 1

    def reject(self) -> None:
        """Removes a request that was counted but is not submitted."""
        self.count -= 1

    def submit(self, request: EngineRequest) -> None:
        """Submits a counted request to the engine."""
        self._submitted.add(request)
        self._engine.submit(request)

    def end(self, request: EngineRequest) -> None:
        """Removes a submitted request, and frees its row if it is still being decoded."""
        self.count -= 1
        self._submitted.discard(request)
        self._engine.cancel(request)

    def fail_all(self) -> None:
        """Fails every submitted request, because the server stops."""
        for request in self._submitted:
            request.put(ApiError(503, "The server has stopped.", code="stopping"))
