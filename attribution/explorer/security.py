"""Checks that come before every route of the explorer, and the headers of every answer.

The host check of `infer.server.host_check` runs before these. A page of another site can still send simple requests, so
requests that change something need a JSON body, which a form cannot send, and the same origin where a browser says it.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING

from steerling_jax.infer.server.errors import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "steerling_explorer"
_CHANGING = ("POST", "PUT", "PATCH", "DELETE")
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def new_token() -> str:
    """A token of 256 bits, for servers that other machines can reach."""
    return secrets.token_urlsafe(32)


def token_cookie(token: str) -> str:
    """The value of the Set-Cookie header that a correct token is exchanged for."""
    return f"{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/api"


def same_token(given: str, token: str) -> bool:
    """Whether a token is right, in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


class SecurityMiddleware:
    """Refuses requests from other sites, and without the token where there is one; adds the headers.

    token: needed for everything under /api but `POST /api/token`, which exchanges it for a cookie; None for a server
    that only this machine reaches.
    """

    def __init__(self, app: ASGIApp, *, token: str | None = None):
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in extra if pair[0] not in names)]
            await send(message)

        error = self.error(scope["method"], scope["path"], scope["headers"])
        if error is not None:
            await error.response()(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def error(self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> ApiError | None:
        """The error to answer with; None for a request that is allowed."""
        values = {name.lower(): value.decode("latin-1") for name, value in headers}
        if method in _CHANGING:
            if values.get(b"sec-fetch-site", "same-origin") != "same-origin":
                return ApiError(403, "This request comes from another site.", code="cross_site")
            kind = values.get(b"content-type", "").partition(";")[0].strip().lower()
            # No form and no simple request of a page can send a DELETE, so it needs no body to be safe.
            if method != "DELETE" and kind != "application/json":
                return ApiError(415, "The body must be JSON, with Content-Type: application/json.", code="not_json")
        open_path = not path.startswith("/api/") or (method, path) == ("POST", "/api/token")
        if self._token is None or open_path or same_token(_cookie(values.get(b"cookie", "")), self._token):
            return None
        return ApiError(401, "Open the address with its token, which the command prints.", code="token_needed")


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value
