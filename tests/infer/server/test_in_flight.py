"""Requests in flight when the server stops: those that wait get an error, those that ended get nothing."""

from __future__ import annotations

from typing import Any

from steerling_jax.infer.server.errors import ApiError
from steerling_jax.infer.server.in_flight import InFlight


class Decoder:
    """Stands for the engine; records what reaches it."""

    def __init__(self) -> None:
        self.submitted: list[Any] = []
        self.cancelled: list[Any] = []

    def submit(self, request: Any) -> None:
        self.submitted.append(request)

    def cancel(self, request: Any) -> None:
        self.cancelled.append(request)


class Waiting:
    """Stands for a request; records what its client gets."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def put(self, item: Any) -> None:
        self.got.append(item)


def test_only_requests_that_have_not_ended_get_an_error() -> None:
    decoder: Any = Decoder()
    in_flight, ended, waiting = InFlight(decoder), Waiting(), Waiting()
    for request in (ended, waiting):
        in_flight.begin()
        in_flight.submit(request)  # type: ignore[arg-type]
    in_flight.begin()  # a body that was not valid
    in_flight.reject()
    in_flight.end(ended)  # type: ignore[arg-type]
    assert (decoder.submitted, decoder.cancelled, in_flight.count) == ([ended, waiting], [ended], 1)
    in_flight.fail_all()
    assert ended.got == []
    (error,) = waiting.got
    assert isinstance(error, ApiError)
    assert error.status == 503
