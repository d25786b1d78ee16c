"""What lanes have in common: requests that wait, requests with a row, and how many rows a batch has."""

from __future__ import annotations

from collections import deque
from typing import Any

from steerling_jax.decoding.request import Event


class LaneQueue:
    """Requests of one kind. waiting: those without a row. rows: of each row of the batch its request with what the lane
    knows of it (`.state`), None for a free one."""

    waiting: deque[Any]
    rows: list[Any]

    @property
    def running(self) -> int:
        """Requests with a row."""
        return sum(row is not None for row in self.rows)

    def cancel(self, ticket: int) -> None:
        """Removes a request, waiting or running; its row is free for the next one."""
        self.waiting = deque(state for state in self.waiting if state.ticket != ticket)
        for index, row in enumerate(self.rows):
            if row is not None and row.state.ticket == ticket:
                self._release(index)

    def advance(self, steps: int | None, admit: int) -> list[tuple[int, Event]]:
        """Gives rows to the next `admit` waiting requests and decodes; returns (ticket, event) pairs."""
        raise NotImplementedError

    def drop_cache(self) -> None:
        """Frees the batch and its cache when no request is running."""
        raise NotImplementedError

    def _release(self, index: int) -> None:
        raise NotImplementedError

    def _admitted(self, count: int) -> tuple[int, list[Any]]:
        """Takes the next `count` waiting requests. Returns the number of rows that hold them and those in use, a power
        of two so that few programs are compiled, and their states."""
        needed = self.running + count
        return 1 << max(needed - 1, 0).bit_length(), [self.waiting.popleft() for _ in range(count)]


def cache_capacity(blocks: int) -> int:
    """Blocks of positions to allocate when `blocks` are needed: even, of few sizes, at most a quarter too many."""
    step = max(2, 1 << max(blocks.bit_length() - 3, 0))
    return max(-(-blocks // step), 1) * step
