"""Checks of the Host and Origin headers, made before anything else of a request is read.

A page of another site can make a browser send requests to this server, and by pointing its own name at this address
(DNS rebinding) even read the responses. Such requests carry that page's Origin, or its name as Host.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from steerling_jax.infer.server.errors import ApiError
from steerling_jax.infer.server.request_counts import RequestCounts

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/\s]+)(?::\d+)?", re.IGNORECASE)
_ALL_INTERFACES = ("0.0.0.0", "::")


class HostOriginMiddleware:
    """Answers 403 to requests with a foreign Host or Origin header.

    Allowed hosts are loopback names and addresses, the address that is listened on (any address when listening on all
    interfaces) and `hosts`. Allowed origins are none at all, the same origin and `origins`, which are lower case and
    without a slash at the end, as browsers send them. `/health` also needs no Host, since health checks of load
    balancers may not send one; browsers always do.
    """

    def __init__(
        self,
        app: ASGIApp,
        counts: RequestCounts,
        *,
        listening: str,
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
    ):
        self._app, self._counts = app, counts
        self._hosts = {"localhost", listening.lower(), *(host.lower() for host in hosts)}
        self._any_address = listening in _ALL_INTERFACES
        self._origins = set(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self.error(scope["headers"], scope["path"])):
            self._counts.count(error.outcome)
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def error(self, headers: Iterable[tuple[bytes, bytes]], path: str = "") -> ApiError | None:
        """The error to answer with; None where the headers are allowed."""
        values = {name.lower(): value.decode("latin-1").lower() for name, value in headers}
        host, origin = values.get(b"host", ""), values.get(b"origin")
        if not self._is_allowed(host) and not (host == "" and path == "/health"):
            return ApiError(
                403,
                f"The Host header {host[:80]!r} is not this server's; start it with --allow-host to allow it.",
                code="host_not_allowed",
            )
        if origin is not None and origin not in (f"http://{host}", f"https://{host}", *self._origins):
            return ApiError(
                403,
                f"The Origin {origin[:80]!r} is not this server's; start it with --allow-origin to allow it.",
                code="origin_not_allowed",
            )
        return None

    def _is_allowed(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self._hosts
        # An address as Host cannot come from DNS rebinding, which needs a name.
        return self._any_address or address.is_loopback or name in self._hosts
