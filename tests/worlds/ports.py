"""Ports for servers that other processes start."""

from __future__ import annotations

import random
from contextlib import suppress

from steerling_jax.errors import UserError
from steerling_jax.infer.server.listening import listen


def lasting_port() -> int:
    """A free port for a server that listens on it later. It is below the ports that systems choose by themselves: one
    of those could be that of any other connection by then."""
    while True:
        with suppress(UserError), listen("127.0.0.1", port := random.randrange(20_000, 30_000)):
            return port
