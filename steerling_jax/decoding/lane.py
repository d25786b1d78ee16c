"""Requests that can be decoded together: a batch on the device, whose rows requests enter and leave at block ends.

Shapes are few: rows in powers of two, room in the cache in coarse steps (`cache_capacity`), so programs are few too.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.decoding import block_loop as bd
from steerling_jax.decoding import lane_programs as programs
from steerling_jax.decoding.prefix_cache import PrefixCache, prefix_keys
from steerling_jax.decoding.request import Event, RequestState
from steerling_jax.decoding.step import StepSettings
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import KeyValueCache, empty_cache
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.plan import ClampPlan

_CHUNK = 8  # attention blocks of a long prompt that are run at once
_ALWAYS = 2**30


@dataclass
class _Seat:
    """A row of the batch and who sits there. cached: final positions in the cache, one a branch. committed: of the
    sampler block. fresh: whether the host must set the row up before it goes on. tables: the injection that the cache
    was made with."""

    job: RequestState
    cached: list[int]
    committed: int = 0
    fresh: bool = True
    tables: tuple[np.ndarray, np.ndarray] | None = None


@dataclass
class Lane:
    """room: positions that a row's cache has at least. branches: 2 under guidance. clamps: the same for all of a lane's
    requests."""

    params: Params
    config: ModelConfig
    compute: Compute
    room: int
    branches: int
    drafts: int
    clamps: ClampPlan | None
    prefixes: PrefixCache
    waiting: deque[RequestState] = field(default_factory=deque)
    seats: list[_Seat | None] = field(default_factory=list)
    capacity: int = 0
    cache: KeyValueCache = ()
    rows: bd.BatchState | None = None

    @property
    def running(self) -> int:
        return sum(seat is not None for seat in self.seats)

    def cancel(self, ticket: int) -> None:
        self.waiting = deque(job for job in self.waiting if job.ticket != ticket)
        for index, seat in enumerate(self.seats):
            if seat is not None and seat.job.ticket == ticket:
                self._leave(index)

    def drop_cache(self) -> None:
        """With nobody running, what is there for those who run goes."""
        if self.running == 0:
            self.seats, self.rows, self.cache, self.capacity = [], None, (), 0

    def advance(self, steps: int | None, seats: int) -> list[tuple[int, Event]]:
        """Takes in the next `seats` of those who wait, and runs until a row's block is done, at most `steps` passes."""
        self._take_in(seats)
        for index, seat in enumerate(self.seats):
            if seat is not None and seat.fresh:
                self._start_block(index, seat)
        assert self.rows is not None
        clamps = None if self.clamps is None else self.clamps.rows()
        self.rows = bd.decode_rows(
            self.params,
            self.cache,
            self.rows,
            jnp.int32(steps or _ALWAYS),
            clamps,
            config=self.config,
            compute=self.compute,
        )
        return self._events(tell=steps is not None)

    def _take_in(self, seats: int) -> None:
        """No more rows than are needed, in powers of two."""
        wanted = self.running + seats
        size = 1 << max(wanted - 1, 0).bit_length()
        coming = [self.waiting.popleft() for _ in range(seats)]
        staying = [index for index, seat in enumerate(self.seats) if seat is not None]
        if len(self.seats) != size:
            self._resize(staying, size, coming)
        for job in coming:
            index = self.seats.index(None)
            self.seats[index] = _Seat(job, [0] * self.branches)
        self._make_room()

    def _resize(self, staying: list[int], size: int, coming: list[RequestState]) -> None:
        source = np.zeros(size, np.int32)
        source[: len(staying)] = staying
        kept = np.arange(size) < len(staying)
        self.seats = [self.seats[index] for index in staying] + [None] * (size - len(staying))
        if self.rows is None:
            shape = (size, self.branches)
            self.rows = programs.blank_rows(
                self._rules(coming[0]),
                size=size,
                branches=self.branches,
                drafts=self.drafts,
                config=self.config,
                compute=self.compute,
            )
            self.capacity = self._capacity(self.room)
            self.cache = empty_cache(self.config, self.compute, shape, self.capacity)
        else:
            self.cache, self.rows = programs.rearrange(self.cache, self.rows, source, kept)

    def _make_room(self) -> None:
        wanted = max((self._capacity(len(seat.job.canvas)) for seat in self.seats if seat), default=0)
        if wanted > self.capacity:
            self.cache, self.capacity = programs.widen(self.cache, length=wanted), wanted

    def _capacity(self, canvas: int) -> int:
        """Positions of the cache for a canvas of so many: what lies before its last window."""
        W = self.config.diff_block_size
        return cache_capacity(max((canvas - W - 1) // W, 0)) * W

    def _start_block(self, index: int, seat: _Seat) -> None:
        """Everything before the window into the cache, and the row as it stands: a new block, or one going on under
        another injection."""
        job = seat.job
        rules = self._rules(job, seat.committed)
        self._fill(index, seat, np.asarray(rules.at_masks), np.asarray(rules.at_prompt))
        assert self.rows is not None
        if seat.committed:
            self.rows = programs.change_rules(self.rows, np.int32(index), rules)
        else:
            counts = np.bincount(job.canvas, minlength=self.config.vocab_size).astype(np.int32)
            self.rows = programs.start_block(self.rows, np.int32(index), rules, job.window, counts)
        seat.fresh = False

    def _rules(self, job: RequestState, committed: int = 0) -> StepSettings:
        """As of now; its patience ends where the injection changes next."""
        request, written = job.request, job.written(committed)
        L, D, V, W = self.config.n_layers, self.config.n_embd, self.config.vocab_size, self.config.diff_block_size
        patience, tables = W, (np.zeros((L, D), np.float32),) * 2
        suppression = np.zeros(V, np.float32)
        if (plan := request.steering) is not None:
            tables, suppression = plan.tables(written, L), np.asarray(plan.suppression)
            change = plan.next_change(written)
            patience = min(W, committed + change - written) if change is not None else W
        values: dict[str, Any] = dict(  # of NumPy: the compiled programs take them over
            suppression=suppression,
            seed=np.uint32(request.seed),
            guidance=np.float32(request.generation.cfg_scale),
            at_masks=tables[0],
            at_prompt=tables[1],
            active=np.bool_(True),
        )
        for name, number in (
            ("total", len(job.canvas)),
            ("prompt", job.prompt_length),
            ("begin", job.begin),
            ("first", job.first),
            ("patience", patience),
        ):
            values[name] = np.int32(number)
        return StepSettings(policies=job.policies, **values)

    def _fill(self, index: int, seat: _Seat, at_masks: np.ndarray, at_prompt: np.ndarray) -> None:
        """Runs what lies before the window and is not in the cache, or is there under another injection."""
        job, W = seat.job, self.config.diff_block_size
        changed = seat.tables is not None and not (
            np.array_equal(seat.tables[0], at_masks) and np.array_equal(seat.tables[1], at_prompt)
        )
        seat.tables = (at_masks, at_prompt)
        for branch in range(self.branches):
            tokens = job.canvas[: job.first].copy()
            if branch:  # the unconditional branch does not see the prompt
                tokens[: job.prompt_length] = self.config.mask_token_id
            plain = self._plain_blocks(job, tokens)
            if changed:
                seat.cached[branch] = min(seat.cached[branch], plain * W)
            keys = list(prefix_keys(tokens[: plain * W], W)) if self.prefixes.limit else []
            missing = [number for number, key in enumerate(keys) if key not in self.prefixes]
            if seat.cached[branch] == job.first and not missing:
                continue
            row = programs.read_row(self.cache, np.int32(index), np.int32(branch))
            row, reached = self._from_prefixes(row, seat.cached[branch], keys)
            row = self._extend(row, reached, tokens, job, at_masks, at_prompt)
            for number in missing:
                self.prefixes.put(keys[number], programs.read_block(row, np.int32(number * W), length=W))
            self.cache = programs.write_row(self.cache, row, np.int32(index), np.int32(branch))
            seat.cached[branch] = job.first

    def _plain_blocks(self, job: RequestState, tokens: np.ndarray) -> int:
        """How many blocks from the start hold nothing that is ever steered."""
        W, plan = self.config.diff_block_size, job.request.steering
        if plan is not None and plan.steers_prompt:
            return 0
        masked = np.flatnonzero(tokens == self.config.mask_token_id)
        return int(masked[0] if len(masked) else len(tokens)) // W

    def _from_prefixes(self, row: KeyValueCache, cached: int, keys: list[bytes]) -> tuple[KeyValueCache, int]:
        """Copies blocks that an earlier request computed, as far as they go."""
        W = self.config.diff_block_size
        for key in keys[cached // W :]:
            if (block := self.prefixes.get(key)) is None:
                break
            row, cached = programs.write_block(row, block, np.int32(cached)), cached + W
        return row, cached

    def _extend(self, row, start: int, tokens: np.ndarray, job: RequestState, at_masks, at_prompt) -> KeyValueCache:
        W = self.config.diff_block_size
        while start < len(tokens):
            length = (_CHUNK if len(tokens) - start >= _CHUNK * W else 1) * W
            row = programs.extend_row(
                self.params,
                row,
                tokens[start : start + length],
                np.int32(start),
                np.int32(job.prompt_length),
                np.int32(len(job.canvas)),
                at_masks,
                at_prompt,
                config=self.config,
                compute=self.compute,
            )
            start += length
        return row

    def _events(self, tell: bool) -> list[tuple[int, Event]]:
        assert self.rows is not None
        done, committed, ended, passes, stale = jax.device_get(programs.look(self.rows))
        found: list[tuple[int, Event]] = []
        records = jax.device_get(dataclasses.replace(self.rows.record, hidden=None)) if tell else None
        for index, seat in enumerate(self.seats):
            if seat is None:
                continue
            job, seat.committed = seat.job, int(committed[index])
            full = done[index] and (bool(ended[index]) or seat.committed == self.config.diff_block_size)
            if records is not None and (news := job.tell(_row(records, index), seat.committed)):
                found.append((job.ticket, news))
            if not full:
                seat.fresh = bool(done[index])
                continue
            self._keep_slot(index, seat, bool(stale[index]) or bool(ended[index]))
            record = programs.read_record(self.rows.record, np.int32(index))
            record = record if job.request.record_hidden else dataclasses.replace(record, hidden=None)
            event = job.finish_block(jax.device_get(record), seat.committed, bool(ended[index]), int(passes[index]))
            found.append((job.ticket, event))
            seat.fresh, seat.committed = True, 0
            if job.ended:
                found.append((job.ticket, job.trace()))
                self._leave(index)
        return found

    def _keep_slot(self, index: int, seat: _Seat, unfit: bool) -> None:
        """A is finished now; where its keys and values are up to date they go into the cache."""
        W, first = self.config.diff_block_size, seat.job.first
        if unfit or first + W > self.capacity or any(cached != first for cached in seat.cached):
            return
        assert self.rows is not None
        self.cache = programs.append_slot(self.cache, self.rows.slot, np.int32(index), np.int32(first))
        seat.cached = [first + W] * self.branches

    def _leave(self, index: int) -> None:
        assert self.rows is not None
        self.seats[index] = None
        self.rows = programs.deactivate(self.rows, np.int32(index))


def cache_capacity(blocks: int) -> int:
    """Attention blocks to make room for when `blocks` are needed: even, of few sizes, at most a quarter too many."""
    step = max(2, 1 << max(blocks.bit_length() - 3, 0))
    return max(-(-blocks // step), 1) * step


def _row(records: bd.BlockRecord, index: int) -> bd.BlockRecord:
    return jax.tree.map(lambda a: a[index], records)
