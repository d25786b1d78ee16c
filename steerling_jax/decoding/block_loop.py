"""Sampler blocks of a batch of requests, decoded on the device in one compiled loop; rows progress independently.

Two grids. Attention blocks lie on absolute positions (position // W); sampler blocks begin where the prompt ends. The
window of a row is two attention blocks: B holds the sampler block's last position, A is the block before it. Where the
prompt's length is a multiple of W, the sampler block is B and A is final; otherwise it straddles A and B.

What precedes A is final and cached. A's keys and values are held beside the cache, in a slot, and are recomputed only
after a commit in A, always together with B, which sees A; a commit in B cannot change A. So a pass runs one attention
block a row, or two. The first pass of a sampler block also computes the keys and values of the block just finished.

Drafts. With K > 1 a pass reads K canvases a row: the true one, and guesses of what it will be after 1 … K − 1 more
steps, made with the logits of the previous pass. As long as a true step ends in the next guess, that guess's logits are
valid too. So a pass takes up to K steps, each the step that decoding one at a time would have taken.

Legend: B rows, N branches (2 under guidance: conditional and unconditional), K drafts, W the diffusion block,
L layers, G key/value heads, S cached positions, d head size, D width, R candidate positions, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from steerling_jax.decoding.request_edits import place_edits
from steerling_jax.decoding.step import Canvas, StepCommits, StepSettings, open_positions, take_step
from steerling_jax.decoding.window import CachedPart, run_window, steering_edits
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.steerling.backbone import KeyValueCache, lm_logits
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import RowClamps, logit_features

_FEWEST_ROWS = 16  # fewer rows of logits would not be any faster


@struct.dataclass
class BlockRecord:
    """The commits of each row's sampler block, in order: step within the block, offset in it, token, raw logit, each
    (B, W), and the hidden rows (B, W, D), None where they are not recorded."""

    step: jax.Array
    offset: jax.Array
    token: jax.Array
    logit: jax.Array
    hidden: jax.Array | None


@struct.dataclass
class BatchState:
    """The carry of the loop; every leaf leads with B.

    canvas: leaves (B, K, …), the true canvas and the guesses. slot: A's keys and values, each (B, N, K, G, W, d).
    hidden: (B, N, K, 2W, D), of the windows. passes: (B,) int32, how often the layers ran in this block.
    """

    settings: StepSettings
    canvas: Canvas
    slot: KeyValueCache
    hidden: jax.Array
    record: BlockRecord
    passes: jax.Array


def waiting(rows: BatchState) -> jax.Array:
    """Rows (B,) bool that need the host: block full, turn ended, injection about to change, or not in use."""
    finished = jax.vmap(lambda settings, canvas: canvas.finished(settings))(rows.settings, _true(rows.canvas))
    return finished | ~rows.settings.active


@partial(jax.jit, static_argnames=("config", "compute"), donate_argnames=("rows",))
def decode_rows(
    params: Params,
    cache: KeyValueCache,
    rows: BatchState,
    limit: jax.Array,
    clamps: RowClamps | None = None,
    edits: tuple[LayerEdit, ...] = (),
    *,
    config: ModelConfig,
    compute: Compute,
) -> BatchState:
    """Runs passes until some row in use needs the host (`waiting`), at most `limit` () of them.

    cache: each (B, N, G, S, d), computed with the same edits. clamps: concept activations that are set. edits: changes
    to layers' outputs, after those of steering. Both are the same for all rows.
    """

    def unfinished(carry: tuple[jax.Array, BatchState]) -> jax.Array:
        count, rows = carry
        return (count < limit) & ~jnp.any(waiting(rows) & rows.settings.active) & jnp.any(rows.settings.active)

    def one_pass(carry: tuple[jax.Array, BatchState]) -> tuple[jax.Array, BatchState]:
        count, rows = carry
        rows = _refresh(params, cache, rows, edits, config, compute)
        masked = jax.vmap(jax.vmap(partial(open_positions, config=config), (None, 0)))(rows.settings, rows.canvas)
        # Logits are a good part of a pass and only masked positions need them. These come first, and the loop branches
        # to the smallest of three static sizes that holds the busiest row's.
        order = jnp.argsort(~masked, axis=-1)
        W = config.diff_block_size
        sizes = sorted({min(max(W // part, _FEWEST_ROWS), W) for part in (4, 2, 1)})
        most = jnp.max(jnp.sum(masked, axis=-1))
        which = sum((most > size).astype(jnp.int32) for size in sizes[:-1])
        branches = [partial(_steps, R, params, config, compute) for R in sizes]
        return count + 1, lax.switch(which, branches, rows, order, clamps)

    return lax.while_loop(unfinished, one_pass, (jnp.int32(0), rows))[1]


def _refresh(
    params,
    cache: KeyValueCache,
    rows: BatchState,
    edits: tuple[LayerEdit, ...],
    config: ModelConfig,
    compute: Compute,
) -> BatchState:
    """Brings hidden states, and A's keys and values, up to date with the tokens of the windows.

    Both blocks are run if any row's A is stale: a row whose A is not gets the same values again, and all rows stay in
    one program.
    """
    W, (B, N, K) = config.diff_block_size, rows.hidden.shape[:3]
    settings = rows.settings
    flat_slot = jax.tree.map(lambda a: a.reshape(B * N * K, *a.shape[3:]), rows.slot)
    flat_cache = jax.tree.map(lambda a: a.reshape(B * N, *a.shape[2:]), cache)
    cached = jnp.arange(cache[0][0].shape[3])[None, :] < settings.first[:, None]
    before = CachedPart(flat_cache, jnp.repeat(cached, N, axis=0))

    def each(values: jax.Array) -> jax.Array:  # (B, …) to (X, …)
        return jnp.repeat(values, N * K, axis=0)

    def window(begin: int, earlier: list[CachedPart]) -> tuple[jax.Array, KeyValueCache]:
        positions = settings.first[:, None] + jnp.arange(begin, 2 * W)[None, :]  # (B, T)
        ids = jnp.broadcast_to(rows.canvas.window[:, None, :, begin:], (B, N, K, 2 * W - begin))
        in_prompt = positions < settings.prompt[:, None]
        if N == 2:  # the unconditional branch does not see the prompt
            ids = ids.at[:, 1].set(jnp.where(in_prompt[:, None, :], config.mask_token_id, ids[:, 1]))
        ids = ids.reshape(B * N * K, -1)
        in_prompt = each(in_prompt)
        steering = steering_edits(ids, in_prompt, config.mask_token_id, settings.at_masks, settings.at_prompt)
        placed = (*steering, *place_edits(edits, ~in_prompt))
        hidden, fresh = run_window(
            params, ids, each(positions), each(settings.total), earlier, placed, config=config, compute=compute
        )
        return hidden.reshape(B, N, K, *hidden.shape[1:]), fresh

    def both(rows: BatchState) -> BatchState:
        hidden, fresh = window(0, [before])
        slot = jax.tree.map(lambda new, old: new[..., :W, :].reshape(old.shape).astype(old.dtype), fresh, rows.slot)
        canvas = dataclasses.replace(rows.canvas, stale=jnp.zeros_like(rows.canvas.stale))
        return dataclasses.replace(rows, hidden=hidden, slot=slot, canvas=canvas)

    def only_b(rows: BatchState) -> BatchState:
        hidden, _ = window(W, [before, CachedPart(flat_slot, jnp.ones((B * N * K, W), bool))])
        return dataclasses.replace(rows, hidden=rows.hidden.at[..., W:, :].set(hidden))

    return lax.cond(jnp.any(rows.canvas.stale & settings.active[:, None]), both, only_b, rows)


def _steps(
    R: int, params, config: ModelConfig, compute: Compute, rows: BatchState, order: jax.Array, clamps: RowClamps | None
) -> BatchState:
    """Takes the steps that logits of the first R positions of `order` (B, K, W) allow, and makes the next guesses."""
    B, N, K, _, D = rows.hidden.shape
    candidates = order[..., :R]  # offsets within the sampler block
    at = (rows.settings.begin - rows.settings.first)[:, None, None] + candidates
    hidden = jnp.take_along_axis(rows.hidden, at[:, None, :, :, None], axis=3)  # (B, N, K, R, D)
    where = jnp.broadcast_to((rows.settings.begin - rows.settings.prompt)[:, None, None] + candidates, (B, K, R))
    where = jnp.broadcast_to(where[:, None], (B, N, K, R)).reshape(-1)
    features = logit_features(params, hidden.reshape(-1, D), config, compute, clamps, where)
    raw = lm_logits(params, features, compute).reshape(B, N, K, R, -1)
    guidance = (rows.settings.guidance + 1.0)[:, None, None, None]
    raw = raw[:, 0] if N == 1 else raw[:, 1] + guidance * (raw[:, 0] - raw[:, 1])
    after, taken = take_step(rows.settings, rows.canvas, raw, candidates, config)
    accepted = _accepted(rows.canvas, after)  # (B, K)
    record = rows.record
    for k in range(K):
        record = jax.vmap(_append)(
            record, rows.canvas.committed[:, k], _draft(taken, k), hidden[:, 0, k], accepted[:, k]
        )
    last = jnp.sum(accepted, axis=1) - 1
    canvas = jax.tree.map(lambda a: _pick(a, last, 1), after)
    guesses = [canvas]
    logits, candidates = _pick(raw, last, 1)[:, None], _pick(candidates, last, 1)[:, None]
    for _ in range(K - 1):
        one = jax.tree.map(lambda a: a[:, None], guesses[-1])
        one, _ = take_step(rows.settings, one, logits, candidates, config)
        guesses.append(_draft(one, 0))
    return dataclasses.replace(
        rows,
        canvas=jax.tree.map(lambda *each: jnp.stack(each, axis=1), *guesses),
        slot=jax.tree.map(lambda a: _share(a, last), rows.slot),
        hidden=_share(rows.hidden, last),
        record=record,
        passes=rows.passes + 1,
    )


def _accepted(before: Canvas, after: Canvas) -> jax.Array:
    """Canvases (B, K) that decoding one step at a time would have read: the first, and each one that equals what the
    step on its predecessor gave. The running product ends the prefix at the first wrong guess."""
    same = jnp.all(after.window[:, :-1] == before.window[:, 1:], axis=-1)
    same &= after.ended[:, :-1] == before.ended[:, 1:]
    return jnp.cumprod(jnp.pad(same, ((0, 0), (1, 0)), constant_values=True), axis=1).astype(bool)


def _append(
    record: BlockRecord, committed: jax.Array, taken: StepCommits, hidden: jax.Array, counts: jax.Array
) -> BlockRecord:
    """One row's record (W, …) with a step's commits, if the step `counts`; hidden (R, D) of the candidates."""
    W = record.step.shape[0]
    # Index W is outside, and `drop` leaves such entries out: no branch, and shapes stay fixed.
    index = jnp.where(taken.used & counts, committed + jnp.arange(taken.used.shape[0]), W)

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[index].set(new.astype(old.dtype), mode="drop")

    return BlockRecord(
        step=put(record.step, jnp.broadcast_to(taken.step, index.shape)),
        offset=put(record.offset, taken.offset),
        token=put(record.token, taken.token),
        logit=put(record.logit, taken.logit),
        hidden=None if record.hidden is None else put(record.hidden, hidden[taken.candidate]),
    )


def _true(canvas: Canvas) -> Canvas:
    return _draft(canvas, 0)


def _draft(tree, k: int):
    return jax.tree.map(lambda a: a[:, k], tree)


def _pick(values: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """values (B, …) at `index` (B,) along `axis`, which goes."""
    if values.shape[axis] == 1:
        return jnp.squeeze(values, axis)
    return jax.vmap(lambda v, i: jnp.take(v, i, axis=axis - 1))(values, index)


def _share(values: jax.Array, last: jax.Array) -> jax.Array:
    """values (B, N, K, …): the true canvas's, for every draft to start from."""
    if values.shape[2] == 1:
        return values
    return jnp.broadcast_to(jnp.expand_dims(_pick(values, last, 2), 2), values.shape)
