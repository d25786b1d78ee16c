"""The small compiled programs around the decoding loop: rows into and out of a batch, prompts into the cache.

Legend: B rows of the batch, N branches, G key/value heads, S cached positions, W the diffusion block, d head size.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from steerling_jax.decoding import block_loop as bd
from steerling_jax.decoding.request_edits import place_edits
from steerling_jax.decoding.step import Canvas, StepSettings
from steerling_jax.decoding.window import CachedPart, run_window, steering_edits
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.steerling.backbone import KeyValueCache, empty_cache, write_positions
from steerling_jax.models.steerling.config import ModelConfig


@partial(jax.jit, static_argnames=("config", "compute"), donate_argnames=("row",))
def extend_row(
    params: Params,
    row: KeyValueCache,
    tokens: jax.Array,
    start: jax.Array,
    prompt: jax.Array,
    total: jax.Array,
    at_masks: jax.Array,
    at_prompt: jax.Array,
    edits: tuple[LayerEdit, ...],
    *,
    config: ModelConfig,
    compute: Compute,
) -> KeyValueCache:
    """Runs whole attention blocks, `tokens` (T,) from position `start`; their keys and values go into one row's cache,
    each (G, S, d)."""
    earlier = jax.tree.map(lambda a: a[None], row)
    visible = (jnp.arange(row[0][0].shape[1]) < start)[None, :]
    positions = (start + jnp.arange(tokens.shape[0]))[None, :]
    in_prompt = positions < prompt
    steering = steering_edits(tokens[None], in_prompt, config.mask_token_id, at_masks[None], at_prompt[None])
    _, fresh = run_window(
        params,
        tokens[None],
        positions,
        total[None],
        [CachedPart(earlier, visible)],
        (*steering, *place_edits(edits, ~in_prompt)),
        config=config,
        compute=compute,
    )
    return write_positions(row, jax.tree.map(lambda a: a[0], fresh), start)


@partial(jax.jit, donate_argnames=("row",))
def write_block(row: KeyValueCache, block: KeyValueCache, start: jax.Array) -> KeyValueCache:
    """Blocks' keys and values, each (G, T, d), at position `start` of a row's, each (G, S, d)."""
    return write_positions(row, block, start)


@partial(jax.jit, static_argnames=("length",))
def read_block(row: KeyValueCache, start: jax.Array, *, length: int) -> KeyValueCache:
    """Keys and values of `length` positions from `start` on, each (G, length, d)."""
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, length, axis=1), row)


@jax.jit
def read_row(cache: KeyValueCache, index: jax.Array, branch: jax.Array) -> KeyValueCache:
    """One row's caches, each (G, S, d)."""
    return jax.tree.map(lambda a: a[index, branch], cache)


@partial(jax.jit, donate_argnames=("cache",))
def write_row(cache: KeyValueCache, row: KeyValueCache, index: jax.Array, branch: jax.Array) -> KeyValueCache:
    return jax.tree.map(lambda a, new: a.at[index, branch].set(new), cache, row)


@partial(jax.jit, donate_argnames=("cache",))
def append_slot(cache: KeyValueCache, slot: KeyValueCache, index: jax.Array, start: jax.Array) -> KeyValueCache:
    """The true canvas's slot of a row, written at position `start` of its cache."""

    def put(old: jax.Array, slot: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(old, slot[index, :, 0][None].astype(old.dtype), (index, 0, 0, start, 0))

    return jax.tree.map(put, cache, slot)


@partial(jax.jit, static_argnames=("length",))
def widen(cache: KeyValueCache, *, length: int) -> KeyValueCache:
    """The cache with room for `length` positions."""
    return jax.tree.map(lambda a: jnp.pad(a, ((0, 0),) * 3 + ((0, length - a.shape[3]), (0, 0))), cache)


@jax.jit
def rearrange(
    cache: KeyValueCache, rows: bd.BatchState, source: jax.Array, in_use: jax.Array
) -> tuple[KeyValueCache, bd.BatchState]:
    """A batch of another size: row b is the old row source[b]; those not `in_use` are inactive."""
    cache, rows = jax.tree.map(lambda a: a[source], (cache, rows))
    active = rows.settings.active & in_use
    return cache, dataclasses.replace(rows, settings=dataclasses.replace(rows.settings, active=active))


@partial(jax.jit, donate_argnames=("rows",))
def start_block(
    rows: bd.BatchState, index: jax.Array, settings: StepSettings, window: jax.Array, counts: jax.Array
) -> bd.BatchState:
    """A row at the start of a sampler block: nothing committed, A yet to be computed. window (2W,), counts (V,)."""
    K = rows.hidden.shape[2]
    zero, no = jnp.int32(0), jnp.bool_(False)
    canvas = Canvas(window, counts, zero, zero, no, jnp.bool_(True))
    canvas = jax.tree.map(lambda a: jnp.broadcast_to(a, (K, *a.shape)), canvas)
    return dataclasses.replace(
        rows,
        settings=_put(rows.settings, index, settings),
        canvas=_put(rows.canvas, index, canvas),
        passes=rows.passes.at[index].set(0),
    )


@partial(jax.jit, donate_argnames=("rows",))
def change_settings(rows: bd.BatchState, index: jax.Array, settings: StepSettings) -> bd.BatchState:
    """A row that continues under another injection: A must be recomputed with it."""
    canvas = dataclasses.replace(rows.canvas, stale=rows.canvas.stale.at[index].set(True))
    return dataclasses.replace(rows, settings=_put(rows.settings, index, settings), canvas=canvas)


@partial(jax.jit, donate_argnames=("rows",))
def deactivate(rows: bd.BatchState, index: jax.Array) -> bd.BatchState:
    settings = dataclasses.replace(rows.settings, active=rows.settings.active.at[index].set(False))
    return dataclasses.replace(rows, settings=settings)


class LoopStatus(NamedTuple):
    """What the host reads of each row (B,) after the loop: whether it needs the host, commits in its block, whether its
    turn has ended, passes in its block, whether A's keys and values are outdated."""

    waiting: jax.Array
    committed: jax.Array
    ended: jax.Array
    passes: jax.Array
    stale: jax.Array


@jax.jit
def loop_status(rows: bd.BatchState) -> tuple[LoopStatus, bd.BlockRecord]:
    """The status and the record of all rows without hidden rows: small arrays, which the host fetches in one go."""
    canvas = rows.canvas
    status = LoopStatus(bd.waiting(rows), canvas.committed[:, 0], canvas.ended[:, 0], rows.passes, canvas.stale[:, 0])
    return status, dataclasses.replace(rows.record, hidden=None)


@jax.jit
def read_hidden(record: bd.BlockRecord, index: jax.Array) -> jax.Array:
    """The hidden rows (W, D) of one row's record."""
    assert record.hidden is not None
    return record.hidden[index]


@partial(jax.jit, static_argnames=("size", "branches", "drafts", "record_hidden", "config", "compute"))
def blank_rows(
    settings: StepSettings,
    *,
    size: int,
    branches: int,
    drafts: int,
    record_hidden: bool,
    config: ModelConfig,
    compute: Compute,
) -> bd.BatchState:
    """A batch of `size` rows that are not in use, with settings of this structure."""
    W, D, V = config.diff_block_size, config.n_embd, config.vocab_size
    settings = jax.tree.map(lambda a: jnp.broadcast_to(jnp.asarray(a), (size, *jnp.shape(a))), settings)
    settings = dataclasses.replace(settings, active=jnp.zeros(size, bool))
    numbers, flags = jnp.zeros((size, drafts), jnp.int32), jnp.zeros((size, drafts), bool)
    windows, counts = jnp.zeros((size, drafts, 2 * W), jnp.int32), jnp.zeros((size, drafts, V), jnp.int32)
    row = jnp.zeros((size, W), jnp.int32)
    return bd.BatchState(
        settings=settings,
        canvas=Canvas(windows, counts, numbers, numbers, flags, flags),
        slot=empty_cache(config, compute, (size, branches, drafts), W),
        hidden=jnp.zeros((size, branches, drafts, 2 * W, D), compute.dtype),
        record=bd.BlockRecord(
            step=row,
            offset=row,
            token=row,
            logit=jnp.zeros((size, W)),
            hidden=jnp.zeros((size, W, D), compute.dtype) if record_hidden else None,
        ),
        passes=jnp.zeros(size, jnp.int32),
    )


def _put(batch, index: jax.Array, one):
    return jax.tree.map(lambda old, new: old.at[index].set(jnp.asarray(new, old.dtype)), batch, one)
