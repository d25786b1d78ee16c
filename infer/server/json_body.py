"""The JSON bodies of requests: read within a size and a time, and parsed."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request

from steerling_jax.infer.server.errors import ApiError
from steerling_jax.io.text_files import load_json

BODY_SECONDS = 30  # time limit for a request's body


async def read_body(http: Request, limit: int) -> bytes:
    """The request's body. Raises `ApiError` once it is known to be over `limit` bytes, or is not there in time."""
    # No "Connection: close" here: if the connection is closed before the whole body has arrived, the client's next
    # write fails, and most clients report that instead of the response.
    too_large = ApiError(413, f"The body is over {limit} bytes, the limit: send less.", code="body_too_large")
    declared = http.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in http.stream():
                body += part
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise ApiError(
            408,
            f"The body did not arrive within {BODY_SECONDS} s: send it again.",
            code="timeout",
            headers={"Connection": "close"},
        ) from None
    return bytes(body)


def parse_json(body: bytes) -> dict[str, Any]:
    """The body's JSON object, without its null fields. Raises `ApiError`."""
    try:
        value = load_json(body, parse_constant=_reject_constant)
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON ({error}): send one JSON object.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body is JSON, but not an object: send one JSON object.", code="invalid_json")
    return {name: item for name, item in value.items() if item is not None}


def _reject_constant(name: str) -> None:
    """NaN and Infinity, which Python's parser accepts although they are not JSON."""
    raise ValueError(f"it contains {name}")
