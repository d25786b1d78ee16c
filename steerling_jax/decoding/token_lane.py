"""A lane of an autoregressive model: requests that one compiled loop decodes together, as rows of a batch.

Requests have prompts of any length and join when a row is free: the prompt is read into a cache of one row, which then
becomes a row of the batch. A row leaves when its text ends, and the loop returns to the host for that. Shapes are few,
so that programs are few: rows come in powers of two, the cache's room in coarse steps, prompts in pieces of three
lengths.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.decoding import token_rows as programs
from steerling_jax.decoding.lane_queue import LaneQueue, cache_capacity
from steerling_jax.decoding.request import Event
from steerling_jax.decoding.token_loop import (
    RECORD,
    TokenRows,
    TokenSettings,
    decode_tokens,
    read_prompt,
    token_settings,
)
from steerling_jax.decoding.token_request import TokenState
from steerling_jax.decoding.trace import Trace
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.edits import LayerEdit

_BLOCK = 64  # positions; the cache's room is a number of blocks


@dataclass
class _Row:
    """A row in use."""

    state: TokenState


@dataclass
class TokenLane(LaneQueue):
    """Requests of one kind: the same policies' structure, edits and recording.

    room: positions for which a row's cache has room at least. edits: the same for all requests of the lane.
    record_hidden: whether the loop records the hidden rows that gave the tokens.
    """

    params: Params
    backbone: Backbone
    room: int
    edits: tuple[LayerEdit, ...]
    record_hidden: bool
    waiting: deque[Any] = field(default_factory=deque)
    rows: list[Any] = field(default_factory=list)
    capacity: int = 0
    batch: TokenRows | None = None

    def drop_cache(self) -> None:
        """Frees the batch and its cache when no request is running."""
        if self.running == 0:
            self.rows, self.batch, self.capacity = [], None, 0

    def advance(self, steps: int | None, admit: int) -> list[tuple[int, Event]]:
        """Gives rows to the next `admit` waiting requests, and decodes until some text ends, for `steps` passes and
        at most as many as a record holds. Returns (ticket, event) pairs; with `steps`, also the commits of texts in
        progress."""
        self._admit(admit)
        assert self.batch is not None
        limit = min(steps or RECORD, RECORD)
        batch, count = decode_tokens(self.params, self.batch, jnp.int32(limit), self.edits, backbone=self.backbone)
        self.batch = batch
        count, ended, record = jax.device_get((count, batch.ended, batch.record))
        events: list[tuple[int, Event]] = []
        for index, row in enumerate(self.rows):
            if row is None:
                continue
            state = row.state
            state.add(jax.tree.map(lambda a, index=index: a[index], record), int(count))
            events += [(state.ticket, event) for event in state.events(bool(ended[index]), partial=steps is not None)]
            if events and isinstance(events[-1][1], Trace) and events[-1][0] == state.ticket:
                self._release(index)
        return events

    def _admit(self, count: int) -> None:
        """Gives rows to the next `count` waiting requests; the batch has as few rows as hold all, in powers of two."""
        size, arriving = self._admitted(count)
        states = [row.state for row in self.rows if row is not None] + arriving
        capacity = max([self.capacity, self._capacity(self.room), *(self._capacity(state.total) for state in states)])
        if self.batch is None:
            self.batch = programs.empty_rows(
                _settings(arriving[0]),
                size=size,
                capacity=capacity,
                record_hidden=self.record_hidden,
                backbone=self.backbone,
            )
            self.rows = [None] * size
        elif len(self.rows) != size:
            self._resize(size)
        if self.capacity not in (0, capacity):
            self.batch = programs.widen_rows(self.batch, capacity=capacity, backbone=self.backbone)
        self.capacity = capacity
        for state in arriving:
            self._start(self.rows.index(None), state)

    def _resize(self, size: int) -> None:
        """A batch of `size` rows, those in use first."""
        staying = [index for index, row in enumerate(self.rows) if row is not None]
        source = np.zeros(size, np.int32)
        source[: len(staying)] = staying
        in_use = np.arange(size) < len(staying)
        assert self.batch is not None
        self.batch = programs.move_rows(self.batch, source, in_use, backbone=self.backbone)
        self.rows = [self.rows[index] for index in staying] + [None] * (size - len(staying))

    def _start(self, index: int, state: TokenState) -> None:
        """Reads a request's prompt, except its last token, and gives it the row."""
        tokens = np.asarray(state.request.prompt, np.int32)
        cache = programs.empty_row_cache(capacity=self.capacity, backbone=self.backbone)
        cache = read_prompt(self.params, cache, tokens[None, :-1], edits=self.edits, backbone=self.backbone)
        assert self.batch is not None
        self.batch = programs.start_row(
            self.batch,
            np.int32(index),
            _settings(state),
            cache,
            tokens[-1],
            np.int32(len(tokens) - 1),
            np.bincount(tokens, minlength=self.backbone.vocab_size).astype(np.int32),
            backbone=self.backbone,
        )
        self.rows[index] = _Row(state)

    def _capacity(self, positions: int) -> int:
        """Room in the cache for so many positions; whole blocks also hold the padding of a prompt's last piece."""
        return cache_capacity(-(-positions // _BLOCK)) * _BLOCK

    def _release(self, index: int) -> None:
        assert self.batch is not None
        self.rows[index] = None
        self.batch = programs.stop_row(self.batch, np.int32(index))


def _settings(state: TokenState) -> TokenSettings:
    """A request's settings, as NumPy values, which the compiled programs transfer."""
    return token_settings(state.policies, state.request.seed, state.prompt_length, state.total)
