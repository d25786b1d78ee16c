"""The published generation algorithm (`generate_full`) for many requests at once, with cached keys and values.

The canvas is the prompt followed by masks. Sampler blocks of W positions are filled one after the other, by a loop on
the device (`block_loop`). Requests that can share a program share a batch, a `Lane`; a new one joins when a block ends.
"""

from __future__ import annotations

from collections import deque
from typing import Any, cast

import jax

from steerling_jax.decoding import block_loop as block_decoding
from steerling_jax.decoding import lane_programs
from steerling_jax.decoding.lane import Lane
from steerling_jax.decoding.prefix_cache import PrefixCache
from steerling_jax.decoding.request import BlockDone, Committed, Event, Request, RequestState
from steerling_jax.errors import require
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import unstack_layers
from steerling_jax.models.steerling.config import ModelConfig

__all__ = ["BlockDone", "Committed", "Decoder", "Event", "Request", "compiled_programs"]


class Decoder:
    """Decodes requests as they arrive, up to `rows` at once. A text depends on its own request alone.

    Free rows go to requests in order of arrival, whichever lane they belong to. prefix_cache_bytes: memory for the keys
    and values of prefixes that requests share. room: positions for which a row's cache has room at least; requests that
    fit share their programs, whatever their lengths. Not thread-safe.
    """

    def __init__(
        self,
        params: Params,
        *,
        config: ModelConfig,
        compute: Compute,
        rows: int = 8,
        prefix_cache_bytes: int = 0,
        room: int = 0,
    ):
        require(rows >= 1, f"rows is {rows}, but it must be at least 1.")
        self.params, self.config, self.compute, self.rows = unstack_layers(params), config, compute, rows
        self.room = min(room, config.block_size)
        self.prefixes = PrefixCache(prefix_cache_bytes)
        self._lanes: dict[Any, Lane] = {}
        self._tickets = 0
        self._turn = 0

    @property
    def waiting(self) -> int:
        """Number of requests without a row."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    @property
    def running(self) -> int:
        """Number of requests with a row."""
        return sum(lane.running for lane in self._lanes.values())

    @property
    def busy(self) -> bool:
        return self.waiting + self.running > 0

    def submit(self, request: Request) -> int:
        """Queues a request and returns its ticket. Raises `UserError` if prompt or settings do not fit the model."""
        request.check(self.config)
        self._tickets += 1
        state = RequestState(self._tickets, request, self.config)
        self._lane(state).waiting.append(state)
        return state.ticket

    def cancel(self, ticket: int) -> None:
        """Drops a request; a finished one is ignored."""
        for lane in self._lanes.values():
            lane.cancel(ticket)
        self._drop_idle_lanes()

    def advance(self, steps: int | None = None) -> list[tuple[int, Event]]:
        """Runs one lane until one of its sampler blocks is complete, at most `steps` passes; returns (ticket, event)
        pairs.

        With `steps`, commits of blocks in progress are reported too. A request's last event is its `Trace`.
        """
        require(steps is None or steps >= 1, f"steps is {steps}, but it must be at least 1.")
        self._turn += 1
        lanes = deque(self._lanes.values())
        # Rows are shared by all lanes: requests that arrived first get the free ones, whichever lane's turn it is.
        free = self.rows - self.running
        next_tickets = sorted(state.ticket for lane in lanes for state in lane.waiting)[:free]
        lanes.rotate(-self._turn)
        events: list[tuple[int, Event]] = []
        for lane in lanes:
            admit = sum(state.ticket in next_tickets for state in lane.waiting)
            if lane.running or admit:
                events = lane.advance(steps, admit)
                break
        self._drop_idle_lanes()
        return events

    def clear(self) -> None:
        """Drops all requests, caches and shared prefixes: the state of a new decoder, as after an error."""
        self._lanes.clear()
        self.prefixes = PrefixCache(self.prefixes.limit)

    def _drop_idle_lanes(self) -> None:
        """Drops lanes without requests, and the caches of lanes whose requests all wait."""
        for lane in self._lanes.values():
            lane.drop_cache()
        self._lanes = {key: lane for key, lane in self._lanes.items() if lane.waiting or lane.running}

    def _lane(self, state: RequestState) -> Lane:
        """The lane of a request; a new one if there is none of its kind."""
        request, plan = state.request, state.request.steering
        branches = 2 if request.generation.cfg_scale > 0 else 1
        clamps = plan.clamps if plan else None
        leaves, structure = jax.tree.flatten(state.policies)
        # Dtypes belong to the key: in one batch, one row's numbers would be cast to another's dtype.
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        key = (structure, shapes, branches, request.drafts, request.record_hidden, repr(clamps))
        if key not in self._lanes:
            self._lanes[key] = Lane(
                self.params,
                self.config,
                self.compute,
                self.room,
                branches,
                request.drafts,
                clamps,
                request.record_hidden,
                self.prefixes,
            )
        return self._lanes[key]


def compiled_programs() -> dict[str, int]:
    """The number of versions of each decoding program that this process has compiled, by name."""
    programs = {name: value for name, value in vars(lane_programs).items() if hasattr(value, "_cache_size")}
    programs["decode_rows"] = block_decoding.decode_rows
    return {name: cast(Any, program)._cache_size() for name, program in sorted(programs.items())}
