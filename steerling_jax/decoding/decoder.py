"""The decoder: many requests at once, each written as it would be alone, with explicit caches.

A diffusion model (the published `generate_full`) fills a canvas of masks, sampler block by sampler block
(`block_loop`); an autoregressive model writes token by token (`token_loop`). Requests that can share a program share a
batch, a lane. A new one joins when a row is free, between two sampler blocks of the others or between two tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any, cast

import jax

from steerling_jax.bundle import Bundle
from steerling_jax.decoding import block_loop as block_decoding
from steerling_jax.decoding import lane_programs, token_loop, token_rows
from steerling_jax.decoding.lane import Lane
from steerling_jax.decoding.lane_queue import LaneQueue
from steerling_jax.decoding.policies import Policies
from steerling_jax.decoding.prefix_cache import PrefixCache
from steerling_jax.decoding.request import BlockDone, Committed, Event, Request, RequestState
from steerling_jax.decoding.request_edits import edits_digest
from steerling_jax.decoding.token_lane import TokenLane
from steerling_jax.decoding.token_request import TokenState, check_token_request
from steerling_jax.errors import require
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.steerling.backbone import unstack_layers
from steerling_jax.models.steerling.config import ModelConfig

__all__ = ["BlockDone", "Committed", "Decoder", "Event", "Request", "compiled_programs", "decoder_of"]


class Decoder:
    """Decodes requests as they arrive, up to `rows` at once. A text depends on its own request alone.

    Free rows go to requests in order of arrival, whichever lane they belong to. prefix_cache_bytes: memory for the keys
    and values of prefixes that requests share, in diffusion decoding. room: positions for which a row's cache has room
    at least; requests that fit share their programs, whatever their lengths. backbone: of an autoregressive model;
    unused for a Steerling config. Not thread-safe.
    """

    def __init__(
        self,
        params: Params,
        *,
        config: ModelConfig | DecoderConfig,
        compute: Compute,
        backbone: Backbone | None = None,
        rows: int = 8,
        prefix_cache_bytes: int = 0,
        room: int = 0,
    ):
        require(rows >= 1, f"rows is {rows}, but it must be at least 1.")
        self.params = unstack_layers(params) if isinstance(config, ModelConfig) else params
        self.config, self.compute, self.backbone, self.rows = config, compute, backbone, rows
        self.room = min(room, config.context_length)
        self.prefixes = PrefixCache(prefix_cache_bytes)
        self._lanes: dict[Any, LaneQueue] = {}
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
        ticket = self._tickets + 1
        if isinstance(self.config, ModelConfig):
            request.check(self.config)
            state = RequestState(ticket, request, self.config)
            lane = self._lane(state, self.config)
        else:
            check_token_request(request, self.config)
            state = TokenState(ticket, request, self.config)
            lane = self._token_lane(state)
        self._tickets = ticket
        lane.waiting.append(state)
        return ticket

    def cancel(self, ticket: int) -> None:
        """Drops a request; a finished one is ignored."""
        for lane in self._lanes.values():
            lane.cancel(ticket)
        self._drop_idle_lanes()

    def advance(self, steps: int | None = None) -> list[tuple[int, Event]]:
        """Runs one lane until one of its sampler blocks is complete or one of its texts ends, at most `steps` passes;
        returns (ticket, event) pairs.

        With `steps`, commits in between are reported too. A request's last event is its `Trace`.
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

    def _token_lane(self, state: TokenState) -> LaneQueue:
        """The lane of an autoregressive request; a new one if there is none of its kind."""
        request = state.request
        key = (_policies_key(state.policies), request.record_hidden, edits_digest(request.edits))
        if key not in self._lanes:
            assert self.backbone is not None
            self._lanes[key] = TokenLane(self.params, self.backbone, self.room, request.edits, request.record_hidden)
        return self._lanes[key]

    def _lane(self, state: RequestState, config: ModelConfig) -> LaneQueue:
        """The lane of a request; a new one if there is none of its kind."""
        request, plan = state.request, state.request.steering
        branches = 2 if request.generation.cfg_scale > 0 else 1
        clamps = plan.clamps if plan else None
        key = (_policies_key(state.policies), branches, request.drafts, request.record_hidden, repr(clamps))
        key += (edits_digest(request.edits),)
        if key not in self._lanes:
            self._lanes[key] = Lane(
                self.params,
                config,
                self.compute,
                self.room,
                branches,
                request.drafts,
                clamps,
                request.edits,
                request.record_hidden,
                self.prefixes,
            )
        return self._lanes[key]


def decoder_of(bundle: Bundle, *, rows: int = 8, prefix_cache_bytes: int = 0, room: int = 0) -> Decoder:
    """A decoder of a loaded model."""
    return Decoder(
        bundle.params,
        config=bundle.config,
        compute=bundle.compute,
        backbone=bundle.backbone,
        rows=rows,
        prefix_cache_bytes=prefix_cache_bytes,
        room=room,
    )


def _policies_key(policies: Policies) -> Hashable:
    """What rows of one batch must have in common. Dtypes belong to it: in one batch, one row's numbers would be cast to
    another's dtype."""
    leaves, structure = jax.tree.flatten(policies)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def compiled_programs() -> dict[str, int]:
    """The number of versions of each decoding program that this process has compiled, by name."""
    modules = (lane_programs, token_rows, token_loop)
    programs = {name: value for one in modules for name, value in vars(one).items() if hasattr(value, "_cache_size")}
    programs["decode_rows"] = block_decoding.decode_rows
    return {name: cast(Any, program)._cache_size() for name, program in sorted(programs.items())}
