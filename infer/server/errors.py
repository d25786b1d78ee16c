"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from steerling_jax.errors import UserError

log = logging.getLogger(__name__)
_LONGEST = 600  # characters of a message, which may repeat what was sent


class ApiError(Exception):
    """A request that is answered with an error. headers: extra ones of the answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message if len(message) <= _LONGEST else f"{message[:_LONGEST]}...")
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    @property
    def outcome(self) -> str:
        """Under which name it is counted."""
        return {403: "refused", 429: "busy", 503: "stopping"}.get(self.status, "failed" if self.status > 499 else "bad")

    def body(self) -> dict[str, Any]:
        kind = "rate_limit_error" if self.status == 429 else "server_error"
        kind = kind if self.status in (429, *range(500, 600)) else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return json_response(self.body(), self.status, self.headers)


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """In ASCII, since a text may hold lone surrogates, which have no bytes."""
    return Response(dumps(value), status, headers, media_type="application/json")


def dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    log.error("A request failed.", exc_info=error)
    return ApiError(500, "The server failed to answer this request; its log says why.", code="internal_error")
