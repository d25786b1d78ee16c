"""Listening on an address, and how uvicorn serves it."""

from __future__ import annotations

import socket

import uvicorn
from starlette.applications import Starlette

from steerling_jax.errors import UserError
from steerling_jax.infer.server.timeout_protocol import TimeoutProtocol


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `UserError` where the address is not available."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"Cannot listen on {host}, port {port} ({reason}): choose another --host or --port.") from None


def http_address(listening: socket.socket) -> str:
    """The address of a listening socket, such as http://127.0.0.1:8000."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def uvicorn_config(app: Starlette) -> uvicorn.Config:
    """Uvicorn's settings: time limits for clients, and no log of requests."""
    return uvicorn.Config(
        app,
        loop="asyncio",
        http=TimeoutProtocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,  # at most; a busy machine needs seconds to end the last responses
    )
