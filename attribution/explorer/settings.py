"""Settings of the explorer's server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExplorerSettings:
    """listening: the address. hosts: further valid Host headers. token: needed from other machines. tokens: the most
    tokens of a text; None for the model's context."""

    listening: str = "127.0.0.1"
    hosts: tuple[str, ...] = ()
    token: str | None = None
    tokens: int | None = None
