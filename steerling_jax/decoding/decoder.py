"""The published generation algorithm (`generate_full`), for many requests at once, finished keys and values cached.

The canvas is the prompt and then masks. Sampler blocks of W positions are filled one after the other, by a loop on the
device (`block_decoding`). Requests that can share a program share a batch, a `Lane`; a new one joins when a block ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, cast

import jax
import numpy as np

from steerling_jax.decoding import block_loop as block_decoding
from steerling_jax.decoding import lane_programs
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.lane import Lane
from steerling_jax.decoding.policies import Policies
from steerling_jax.decoding.prefix_cache import PrefixCache
from steerling_jax.decoding.request import BlockDone, Committed, Event, Request, RequestState
from steerling_jax.errors import require
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import unstack_layers
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.plan import Steering, prepare_steering

__all__ = ["BlockDone", "Committed", "Decoder", "Event", "Request", "compiled_programs", "decode"]


class Decoder:
    """Decodes requests as they come, up to `rows` at once. A text depends on its own request alone.

    Who came first gets the next free row, in whichever lane. prefix_cache_bytes: memory for the keys and values of
    beginnings that requests share. room: positions that a row's cache has at least; requests that fit share their
    programs, whatever their lengths. Not for several threads.
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
        """Requests without a row."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    @property
    def running(self) -> int:
        """Requests with a row."""
        return sum(lane.running for lane in self._lanes.values())

    @property
    def busy(self) -> bool:
        return self.waiting + self.running > 0

    def submit(self, request: Request) -> int:
        """Queues a request and gives its ticket. Raises `UserError` where model, prompt and settings do not agree."""
        request.check(self.config)
        self._tickets += 1
        job = RequestState(self._tickets, request, self.config)
        self._lane(job).waiting.append(job)
        return job.ticket

    def cancel(self, ticket: int) -> None:
        """Forgets a request; nothing happens where it is over."""
        for lane in self._lanes.values():
            lane.cancel(ticket)
        self._forget_idle()

    def advance(self, steps: int | None = None) -> list[tuple[int, Event]]:
        """Runs one lane until a sampler block of it is done, at most `steps` passes, and gives (ticket, event) pairs.

        With `steps`, what was committed in a block under way is told too. A request's last event is its `Trace`.
        """
        require(steps is None or steps >= 1, f"steps is {steps}, but it must be at least 1.")
        self._turn += 1
        lanes = list(self._lanes.values())
        next_in_turn = deque(lanes)
        next_in_turn.rotate(-self._turn)
        coming = sorted(job.ticket for lane in lanes for job in lane.waiting)[: self.rows - self.running]
        events: list[tuple[int, Event]] = []
        for lane in next_in_turn:
            seats = sum(job.ticket in coming for job in lane.waiting)
            if lane.running or seats:
                events = lane.advance(steps, seats)
                break
        self._forget_idle()
        return events

    def clear(self) -> None:
        """Forgets all requests and what was computed for them; after an error, all is as new."""
        self._lanes.clear()
        self.prefixes = PrefixCache(self.prefixes.limit)

    def _forget_idle(self) -> None:
        """An idle lane goes, and the cache of one where requests only wait."""
        for lane in self._lanes.values():
            lane.drop_cache()
        self._lanes = {key: lane for key, lane in self._lanes.items() if lane.waiting or lane.running}

    def _lane(self, job: RequestState) -> Lane:
        request, plan = job.request, job.request.steering
        branches = 2 if request.generation.cfg_scale > 0 else 1
        clamps = plan.clamps if plan else None
        leaves, structure = jax.tree.flatten(job.policies)
        # Without the types, one row's numbers would be cast to another's.
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        key = (structure, shapes, branches, request.drafts, repr(clamps))
        if key not in self._lanes:
            self._lanes[key] = Lane(
                self.params, self.config, self.compute, self.room, branches, request.drafts, clamps, self.prefixes
            )
        return self._lanes[key]


def decode(
    params: Params,
    prompt: np.ndarray,
    *,
    config: ModelConfig,
    compute: Compute,
    generation: GenerationConfig,
    seed: int,
    steering: Steering | None = None,
    policies: Policies | None = None,
    drafts: int = 1,
    steps: int | None = None,
    record_hidden: bool = True,
) -> Iterator[Event]:
    """Continues `prompt` (P,): a `BlockDone` after each sampler block, at last the `Trace`.

    seed: of the draws, in place of the configuration's. policies: in place of what the configuration means. drafts:
    canvases read in a pass; more than 1 gives the same text in fewer passes. steps: also tell what is committed after
    so many passes (`Committed`). Raises `UserError` where model, prompt and settings do not agree.
    """
    plan = prepare_steering(params, steering, config=config, compute=compute)
    decoder = Decoder(params, config=config, compute=compute, rows=1)
    decoder.submit(Request(prompt, generation, seed, plan, policies or Policies(), drafts, record_hidden))
    while decoder.busy:
        for _, event in decoder.advance(steps):
            yield event


def compiled_programs() -> dict[str, int]:
    """How many versions of each decoding program are compiled in this process, by name."""
    programs = {name: value for name, value in vars(lane_programs).items() if hasattr(value, "_cache_size")}
    programs["decode_rows"] = block_decoding.decode_rows
    return {name: cast(Any, program)._cache_size() for name, program in sorted(programs.items())}
