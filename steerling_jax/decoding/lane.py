"""A lane: requests that one compiled program decodes together, as rows of a batch that join and leave at block ends.

Shapes are few, so that programs are few: rows come in powers of two, the cache's room in coarse steps
(`cache_capacity`). The host only prepares rows at the start of a block and reads the results at its end; everything in
between is one call of `block_loop.decode_rows`.

Legend: N branches (2 under guidance), W the diffusion block, L layers, D width, V vocabulary, S cached positions.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.decoding import block_loop
from steerling_jax.decoding import lane_programs as programs
from steerling_jax.decoding.lane_queue import LaneQueue, cache_capacity
from steerling_jax.decoding.prefix_cache import PrefixCache, prefix_keys
from steerling_jax.decoding.request import Event, RequestState
from steerling_jax.decoding.request_edits import edits_digest
from steerling_jax.decoding.step import StepSettings
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.steerling.backbone import KeyValueCache, empty_cache
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.plan import ClampPlan

_CHUNK = 8  # attention blocks of a long prompt that one pass reads
_NO_LIMIT = 2**30

Tables = tuple[np.ndarray, np.ndarray]  # injections at masked positions and at the prompt's, each (L, D) float32


@dataclass
class _Row:
    """The host's view of a row in use. cached: final positions in the cache, one number a branch. committed: tokens of
    the current sampler block. prepare: whether the host must set the row up before the loop goes on. tables: the
    injections that the cache was computed with."""

    state: RequestState
    cached: list[int]
    committed: int = 0
    prepare: bool = True
    tables: Tables | None = None


@dataclass
class Lane(LaneQueue):
    """Requests of one kind: the same policies' structure, branches, drafts, clamps, edits and recording.

    room: positions for which a row's cache has room at least. clamps, edits: the same for all requests of the lane.
    record_hidden: whether the loop records the committed positions' hidden rows.
    """

    params: Params
    config: ModelConfig
    compute: Compute
    room: int
    branches: int
    drafts: int
    clamps: ClampPlan | None
    edits: tuple[LayerEdit, ...]
    record_hidden: bool
    prefixes: PrefixCache
    waiting: deque[RequestState] = field(default_factory=deque)
    rows: list[_Row | None] = field(default_factory=list)
    capacity: int = 0
    cache: KeyValueCache = ()
    batch: block_loop.BatchState | None = None

    def drop_cache(self) -> None:
        """Frees the batch and its cache when no request is running."""
        if self.running == 0:
            self.rows, self.batch, self.cache, self.capacity = [], None, (), 0

    def advance(self, steps: int | None, admit: int) -> list[tuple[int, Event]]:
        """Gives rows to the next `admit` waiting requests, and decodes until some row's block is done, or for `steps`
        passes. Returns (ticket, event) pairs; with `steps`, also the commits of blocks in progress."""
        self._admit(admit)
        for index, row in enumerate(self.rows):
            if row is not None and row.prepare:
                self._prepare(index, row)
        assert self.batch is not None
        self.batch = block_loop.decode_rows(
            self.params,
            self.cache,
            self.batch,
            jnp.int32(steps or _NO_LIMIT),
            None if self.clamps is None else self.clamps.rows(),
            self.edits,
            config=self.config,
            compute=self.compute,
        )
        return self._events(partial_blocks=steps is not None)

    def _admit(self, count: int) -> None:
        """Gives rows to the next `count` waiting requests; the batch has as few rows as hold all, in powers of two."""
        size, arriving = self._admitted(count)
        if len(self.rows) != size:
            self._resize(size, arriving)
        for state in arriving:
            self.rows[self.rows.index(None)] = _Row(state, [0] * self.branches)
        wanted = max((self._capacity(len(row.state.canvas)) for row in self.rows if row), default=0)
        if wanted > self.capacity:
            self.cache, self.capacity = programs.widen(self.cache, length=wanted), wanted

    def _resize(self, size: int, arriving: list[RequestState]) -> None:
        """A batch of `size` rows, those in use first."""
        staying = [index for index, row in enumerate(self.rows) if row is not None]
        source = np.zeros(size, np.int32)
        source[: len(staying)] = staying
        in_use = np.arange(size) < len(staying)
        self.rows = [self.rows[index] for index in staying] + [None] * (size - len(staying))
        if self.batch is not None:
            self.cache, self.batch = programs.rearrange(self.cache, self.batch, source, in_use)
            return
        self.batch = programs.blank_rows(
            self._settings(arriving[0]),
            size=size,
            branches=self.branches,
            drafts=self.drafts,
            record_hidden=self.record_hidden,
            config=self.config,
            compute=self.compute,
        )
        self.capacity = self._capacity(self.room)
        self.cache = empty_cache(self.config, self.compute, (size, self.branches), self.capacity)

    def _capacity(self, canvas: int) -> int:
        """Room in the cache, in positions, for a canvas of so many: what precedes its last window."""
        W = self.config.diff_block_size
        return cache_capacity(max((canvas - W - 1) // W, 0)) * W

    def _prepare(self, index: int, row: _Row) -> None:
        """Caches everything before the row's window and sets up the row: at the start of a sampler block, or within one
        where the injection changes."""
        state = row.state
        settings = self._settings(state, row.committed)
        self._fill_cache(index, row, (np.asarray(settings.at_masks), np.asarray(settings.at_prompt)))
        assert self.batch is not None
        if row.committed:
            self.batch = programs.change_settings(self.batch, np.int32(index), settings)
        else:
            counts = np.bincount(state.canvas, minlength=self.config.vocab_size).astype(np.int32)
            self.batch = programs.start_block(self.batch, np.int32(index), settings, state.window, counts)
        row.prepare = False

    def _settings(self, state: RequestState, committed: int = 0) -> StepSettings:
        """The row's settings as of now; its commit limit ends the loop where the injection changes next."""
        request, written = state.request, state.written(committed)
        L, D, V, W = self.config.n_layers, self.config.n_embd, self.config.vocab_size, self.config.diff_block_size
        limit, tables = W, (np.zeros((L, D), np.float32),) * 2
        suppression = np.zeros(V, np.float32)
        if (plan := request.steering) is not None:
            tables, suppression = plan.tables(written, L), np.asarray(plan.suppression)
            change = plan.next_change(written)
            limit = min(W, committed + change - written) if change is not None else W
        values: dict[str, Any] = dict(  # NumPy values: the compiled programs transfer them
            suppression=suppression,
            seed=np.uint32(request.seed),
            guidance=np.float32(request.generation.cfg_scale),
            at_masks=tables[0],
            at_prompt=tables[1],
            active=np.bool_(True),
        )
        numbers = {
            "total": len(state.canvas),
            "prompt": state.prompt_length,
            "begin": state.begin,
            "first": state.first,
            "commit_limit": limit,
        }
        values |= {name: np.int32(number) for name, number in numbers.items()}
        return StepSettings(policies=state.policies, **values)

    def _fill_cache(self, index: int, row: _Row, tables: Tables) -> None:
        """Computes the keys and values of what precedes the window, where the cache lacks them or has them from another
        injection.

        A position's keys and values depend on the injection only if it, or a position before it, is steered: masked
        positions, and the prompt where the plan steers it. So after a change of the injection all blocks before the
        first steered one stay valid, and only those are shared between requests (`PrefixCache`).
        """
        state, W = row.state, self.config.diff_block_size
        changed = row.tables is not None and not all(map(np.array_equal, row.tables, tables))
        row.tables = tables
        for branch in range(self.branches):
            tokens = state.canvas[: state.first].copy()
            if branch:  # the unconditional branch does not see the prompt
                tokens[: state.prompt_length] = self.config.mask_token_id
            unsteered = self._unsteered_blocks(state, tokens)
            if changed:
                row.cached[branch] = min(row.cached[branch], unsteered * W)
            keys = self._prefix_keys(state, tokens[: unsteered * W]) if self.prefixes.limit else []
            missing = [number for number, key in enumerate(keys) if key not in self.prefixes]
            if row.cached[branch] == state.first and not missing:
                continue
            entry = programs.read_row(self.cache, np.int32(index), np.int32(branch))
            entry, reached = self._from_prefixes(entry, row.cached[branch], keys)
            entry = self._extend(entry, reached, tokens, state, tables)
            for number in missing:
                self.prefixes.put(keys[number], programs.read_block(entry, np.int32(number * W), length=W))
            self.cache = programs.write_row(self.cache, entry, np.int32(index), np.int32(branch))
            row.cached[branch] = state.first

    def _unsteered_blocks(self, state: RequestState, tokens: np.ndarray) -> int:
        """Number of whole blocks at the start of `tokens` that no injection ever reaches."""
        W, plan = self.config.diff_block_size, state.request.steering
        if plan is not None and plan.steers_prompt:
            return 0
        masked = np.flatnonzero(tokens == self.config.mask_token_id)
        return int(masked[0] if len(masked) else len(tokens)) // W

    def _prefix_keys(self, state: RequestState, tokens: np.ndarray) -> list[bytes]:
        """The keys of the blocks of `tokens` that other requests may share.

        An edit at all positions changes every block, so its digest belongs to the keys. One at generated tokens leaves
        the blocks of the prompt as they are; those after it depend on where the prompt ends, and are not shared.
        """
        everywhere = [edit for edit in self.edits if not edit.generated_only]
        if len(everywhere) < len(self.edits):
            tokens = tokens[: state.prompt_length]
        return list(prefix_keys(tokens, self.config.diff_block_size, edits_digest(everywhere)))

    def _from_prefixes(self, entry: KeyValueCache, cached: int, keys: list[bytes]) -> tuple[KeyValueCache, int]:
        """Copies shared blocks from position `cached` on, up to the first that is not stored; keys depend on all tokens
        before a block, so a later block could not be used without it."""
        W = self.config.diff_block_size
        for key in keys[cached // W :]:
            if (block := self.prefixes.get(key)) is None:
                break
            entry, cached = programs.write_block(entry, block, np.int32(cached)), cached + W
        return entry, cached

    def _extend(
        self, entry: KeyValueCache, start: int, tokens: np.ndarray, state: RequestState, tables: Tables
    ) -> KeyValueCache:
        """Runs `tokens` from position `start` on: two sizes of passes, so two programs, whatever the length."""
        W = self.config.diff_block_size
        while start < len(tokens):
            length = (_CHUNK if len(tokens) - start >= _CHUNK * W else 1) * W
            entry = programs.extend_row(
                self.params,
                entry,
                tokens[start : start + length],
                np.int32(start),
                np.int32(state.prompt_length),
                np.int32(len(state.canvas)),
                *tables,
                self.edits,
                config=self.config,
                compute=self.compute,
            )
            start += length
        return entry

    def _events(self, partial_blocks: bool) -> list[tuple[int, Event]]:
        """Reads the batch once and turns it into events. partial_blocks: also report commits of unfinished blocks."""
        assert self.batch is not None
        status, record = jax.device_get(programs.loop_status(self.batch))
        events: list[tuple[int, Event]] = []
        for index, row in enumerate(self.rows):
            if row is None:
                continue
            state, row.committed = row.state, int(status.committed[index])
            ended = bool(status.ended[index])
            own = jax.tree.map(lambda a, index=index: a[index], record)
            full = status.waiting[index] and (ended or row.committed == self.config.diff_block_size)
            if partial_blocks and (commits := state.new_commits(own, row.committed)):
                events.append((state.ticket, commits))
            if not full:
                row.prepare = bool(status.waiting[index])
                continue
            self._cache_slot(index, row, bool(status.stale[index]) or ended)
            if self.record_hidden:
                hidden = programs.read_hidden(self.batch.record, np.int32(index))
                own = dataclasses.replace(own, hidden=jax.device_get(hidden))
            events.append((state.ticket, state.finish_block(own, row.committed, ended, int(status.passes[index]))))
            row.prepare, row.committed = True, 0
            if state.ended:
                events.append((state.ticket, state.trace()))
                self._release(index)
        return events

    def _cache_slot(self, index: int, row: _Row, outdated: bool) -> None:
        """Moves A's keys and values from the slot into the cache, now that A is final; where they are outdated, or the
        cache has no room, the next block computes them anew."""
        W, first = self.config.diff_block_size, row.state.first
        if outdated or first + W > self.capacity or any(cached != first for cached in row.cached):
            return
        assert self.batch is not None
        self.cache = programs.append_slot(self.cache, self.batch.slot, np.int32(index), np.int32(first))
        row.cached = [first + W] * self.branches

    def _release(self, index: int) -> None:
        assert self.batch is not None
        self.rows[index] = None
        self.batch = programs.deactivate(self.batch, np.int32(index))
