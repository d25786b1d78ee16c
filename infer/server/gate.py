"""Who may ask: the Host and Origin headers are checked before anything else of a request is read.

A page of another site can make a browser send requests here, and by pointing its own name at this address (DNS
rebinding) even read the answers. Such requests carry that page's Origin, or its name as Host.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from steerling_jax.infer.server.errors import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from steerling_jax.infer.server.metrics import Metrics

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/\s]+)(?::\d+)?", re.IGNORECASE)
_ANYWHERE = ("0.0.0.0", "::")


class Gate:
    """Lets through: loopback names and addresses, the address that is listened on (any address under 0.0.0.0 or ::),
    and `hosts`; with no Origin, the same origin, or one of `origins`, which are as browsers send them."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, *, listening: str, hosts: Iterable[str] = (), origins: Iterable[str] = ()
    ):
        self._app, self._metrics = app, metrics
        self._hosts = {"localhost", listening.lower(), *(host.lower() for host in hosts)}
        self._any_address = listening in _ANYWHERE
        self._origins = set(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self.objection(scope["headers"])):
            self._metrics.count(error.outcome)
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def objection(self, headers: Iterable[tuple[bytes, bytes]]) -> ApiError | None:
        """What is wrong with these headers, if anything."""
        found = {name.lower(): value.decode("latin-1").lower() for name, value in headers}
        host, origin = found.get(b"host", ""), found.get(b"origin")
        if not self._ours(host):
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

    def _ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self._hosts
        return self._any_address or address.is_loopback or name in self._hosts
