"""Errors in OpenAI's format: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from steerling_jax.errors import UserError
from steerling_jax.infer.server.request_counts import RequestCounts

log = logging.getLogger(__name__)
_MAX_MESSAGE = 600  # characters; a message can quote a value of any length


class ApiError(Exception):
    """An error response. headers: additional ones."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]}...")
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    @property
    def outcome(self) -> str:
        """The outcome in the metrics."""
        return {403: "refused", 429: "busy", 503: "stopping"}.get(self.status, "failed" if self.status > 499 else "bad")

    def body(self) -> dict[str, Any]:
        """The JSON object of the response."""
        kind = "rate_limit_error" if self.status == 429 else "server_error"
        kind = kind if self.status in (429, *range(500, 600)) else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return json_response(self.body(), self.status, self.headers)


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response. Escaped to ASCII, since a text can contain lone surrogates, which UTF-8 cannot encode."""
    return Response(dumps(value), status, headers, media_type="application/json")


def dumps(value: Any) -> str:
    """Compact JSON on one line, as server-sent events need it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def as_api_error(error: Exception) -> ApiError:
    """The response to an exception; unexpected ones are logged and answered with 500."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    log.error("A request failed.", exc_info=error)
    return ApiError(500, "The server failed to answer this request; its log says why.", code="internal_error")


def error_handlers(counts: RequestCounts, see: str = "") -> dict[Any, Callable[..., Any]]:
    """What an application answers to exceptions, counting each. see: what follows in the answer for an unknown path."""

    async def api_error(http: Request, error: Exception) -> Response:
        error = as_api_error(error)
        counts.count(error.outcome)
        return error.response()

    async def http_error(http: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"There is no {http.method} {http.url.path} here{see}."
        return await api_error(http, ApiError(error.status_code, message, headers=error.headers))

    async def disconnected(http: Request, error: Exception) -> Response:
        counts.count("left")
        return Response(status_code=400)  # Starlette needs one, although the client is gone

    return {HTTPException: http_error, ClientDisconnect: disconnected, Exception: api_error, ApiError: api_error}
