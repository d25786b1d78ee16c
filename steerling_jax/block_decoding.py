"""One sampler block, decoded on the device in one compiled loop.

Two grids. Attention blocks lie on absolute positions (position // W); sampler blocks start where the prompt ends. The
loop looks at a window of two attention blocks: B holds the sampler block's last position, A is the one before it. Where
the prompt is a multiple of W, the sampler block is B and A is finished; elsewhere it straddles A and B.

What lies before A is final and cached. A's keys and values are kept beside the cache and computed again only after a
commit in A, always together with B, which sees A; a commit in B leaves A as it is. So a step costs one attention block,
or two.

Legend: N branches (1, or 2 under guidance: conditional and unconditional), W the diffusion block, S cached positions,
G key/value heads, d head size, D width, R rows of logits, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from steerling_jax.backbone import Injection, Params, embed_tokens, run_backbone
from steerling_jax.config import Compute, ModelConfig
from steerling_jax.inference import logit_features
from steerling_jax.layers import Cache, block_causal_mask
from steerling_jax.model import lm_logits
from steerling_jax.sampling import Adjustment, Choice, confidence, position_key

_FEWEST_ROWS = 16  # fewer rows of logits would not be any faster
_NEVER = -1e30  # finite, for a part of which nothing may be seen
LayerCaches = tuple[Cache, ...]  # one pair a layer, each (N, G, S, d)
Earlier = list[tuple[LayerCaches, jax.Array]]  # keys and values, and which positions may be seen (S,)


@struct.dataclass
class Rules:
    """What stays the same through a generation. Numbers are () arrays.

    total: length of the canvas. prompt: length of the prompt, hidden from the unconditional branch. base, extra:
    tokens a step, the first `extra` steps taking one more. eot: the end-of-turn id, −1 for none. guidance: cfg_scale,
    read when N is 2. direction (D,) and layer: what is injected at masked positions, None for nothing.
    """

    adjustment: Adjustment
    choice: Choice
    seed: jax.Array
    total: jax.Array
    prompt: jax.Array
    base: jax.Array
    extra: jax.Array
    eot: jax.Array
    guidance: jax.Array
    direction: jax.Array | None
    layer: jax.Array


@struct.dataclass
class Record:
    """Commits of a sampler block, in order: step within the block, offset in it, token, raw logit, each (W,), and the
    hidden rows (W, D)."""

    step: jax.Array
    offset: jax.Array
    token: jax.Array
    logit: jax.Array
    hidden: jax.Array


@struct.dataclass
class BlockState:
    """The loop's carry. window (2W,) ids of A and B; counts (V,) how often each id is on the canvas; slot: A's keys
    and values; hidden (N, 2W, D) of the window; stale: whether A must be computed again; ended: whether a
    turn has ended."""

    window: jax.Array
    counts: jax.Array
    slot: LayerCaches
    hidden: jax.Array
    stale: jax.Array
    step: jax.Array
    committed: jax.Array
    ended: jax.Array
    record: Record


def empty_cache(config: ModelConfig, compute: Compute, branches: int, length: int) -> LayerCaches:
    """Room for the keys and values of `length` positions."""
    shape = (branches, config.kv_heads, length, config.head_dim)
    return tuple((jnp.zeros(shape, compute.dtype), jnp.zeros(shape, compute.dtype)) for _ in range(config.n_layers))


def start_block(
    window: jax.Array, counts: jax.Array, slot: LayerCaches, config: ModelConfig, compute: Compute
) -> BlockState:
    """The state before a sampler block's first step: nothing committed, A to be computed."""
    W, D, N = config.diff_block_size, config.n_embd, slot[0][0].shape[0]
    zeros = jnp.zeros(W, jnp.int32)
    record = Record(zeros, zeros, zeros, jnp.zeros(W), jnp.zeros((W, D), compute.dtype))
    zero, hidden = jnp.int32(0), jnp.zeros((N, 2 * W, D), compute.dtype)
    return BlockState(window, counts, slot, hidden, jnp.bool_(True), zero, zero, jnp.bool_(False), record)


@partial(jax.jit, static_argnames=("config", "compute"), donate_argnames=("cache",))
def extend_cache(
    params: Params, cache: LayerCaches, tokens: jax.Array, start: jax.Array, alpha: jax.Array, rules: Rules,
    *, config: ModelConfig, compute: Compute,
) -> LayerCaches:  # fmt: skip
    """Runs whole attention blocks, `tokens` (n·W,) from position `start`; their keys and values go into the cache."""
    index = jnp.arange(cache[0][0].shape[2])
    _, fresh = _run_blocks(params, [(cache, index < start)], tokens, start, alpha, rules, config, compute)
    return _put(cache, fresh, start)


@partial(jax.jit, donate_argnames=("cache",))
def append_slot(cache: LayerCaches, slot: LayerCaches, start: jax.Array) -> LayerCaches:
    """Puts A's keys and values in the cache at position `start`."""
    return _put(cache, slot, start)


@partial(jax.jit, static_argnames=("config", "compute"))
def decode_block(
    params: Params, cache: LayerCaches, state: BlockState, first: jax.Array, begin: jax.Array, alpha: jax.Array,
    patience: jax.Array, rules: Rules, *, config: ModelConfig, compute: Compute,
) -> BlockState:  # fmt: skip
    """Steps until the sampler block is full, a turn has ended, or `patience` tokens of it are committed.

    first: position of A's first token, all before it being in the cache. begin: the sampler block's first position.
    patience: where the injection's strength changes, so that the caller can enter again with another alpha.
    """
    W = config.diff_block_size

    def going(s: BlockState) -> jax.Array:
        return (s.committed < W) & (s.committed < patience) & ~s.ended

    def step(s: BlockState) -> BlockState:
        s = _refresh_hidden(params, cache, s, first, alpha, rules, config, compute)
        offset = begin - first
        masked = lax.dynamic_slice(s.window, (offset,), (W,)) == config.mask_token_id
        # Masked positions first, in the fewest rows of a few sizes: logits are a good part of a step.
        order = jnp.argsort(~masked)
        sizes = sorted({min(max(W // part, _FEWEST_ROWS), W) for part in (4, 2, 1)})
        count = jnp.sum(masked)
        which = sum((count > size).astype(jnp.int32) for size in sizes[:-1])
        branches = [partial(_commit, R, params, begin, offset, rules, config, compute) for R in sizes]
        return lax.switch(which, branches, s, order, masked)

    return lax.while_loop(going, step, state)


def _refresh_hidden(params, cache, s: BlockState, first, alpha, rules: Rules, config, compute) -> BlockState:
    """Hidden states and A's keys and values as of the window's tokens: of A where it is stale, and of B."""
    W = config.diff_block_size

    cached = jnp.arange(cache[0][0].shape[2]) < first

    def attention_block(i, carried):
        slot, hidden = carried
        in_a = i == 0
        tokens = lax.dynamic_slice(s.window, (i * W,), (W,))
        earlier = [(cache, cached), (slot, jnp.broadcast_to(~in_a, (W,)))]
        h, fresh = _run_blocks(params, earlier, tokens, first + i * W, alpha, rules, config, compute)
        slot = jax.tree.map(lambda new, old: jnp.where(in_a, new.astype(old.dtype), old), fresh, slot)
        return slot, lax.dynamic_update_slice(hidden, h, (0, i * W, 0))

    begin = jnp.where(s.stale, 0, 1)
    slot, hidden = lax.fori_loop(begin, 2, attention_block, (s.slot, s.hidden))
    return dataclasses.replace(s, slot=slot, hidden=hidden, stale=jnp.bool_(False))


def _run_blocks(
    params, earlier: Earlier, tokens, start, alpha, rules: Rules, config, compute
) -> tuple[jax.Array, LayerCaches]:
    """Tokens (T,) of whole attention blocks from position `start`, to hidden (N, T, D) and their keys and values."""
    N, T = earlier[0][0][0][0].shape[0], tokens.shape[0]
    positions = start + jnp.arange(T)
    branches = jnp.broadcast_to(tokens[None, :], (N, T))
    if N == 2:  # the unconditional branch does not see the prompt
        branches = branches.at[1].set(jnp.where(positions < rules.prompt, config.mask_token_id, tokens))
    own = block_causal_mask(positions, positions, config.diff_block_size)
    own = own & (positions < rules.total)[None, :]  # past the canvas there is nothing
    injection = None
    if rules.direction is not None:
        at_masks = (branches == config.mask_token_id).astype(rules.direction.dtype)
        direction = at_masks[:, :, None] * rules.direction[None, None, :]
        injection = Injection(direction, jnp.broadcast_to(alpha, (N,)), rules.layer)
    hidden, fresh = run_backbone(
        params, embed_tokens(params, branches, compute), config=config, compute=compute, positions=positions,
        mask=_attention_over(earlier, own), injection=injection, keep_cache=True,
    )  # fmt: skip
    pairs = cast(LayerCaches, fresh)  # one a layer, as the layers are unstacked
    return hidden, jax.tree.map(lambda new: jnp.swapaxes(new, 1, 2), pairs)


def _attention_over(earlier: Earlier, own: jax.Array) -> Callable[..., jax.Array]:
    """An attention function for `run_backbone`: over earlier keys, layer by layer, and its own under `own` (T, T).

    Scores are taken part by part, so that the cache is neither copied nor turned in any step.
    """
    layers = zip(*(caches for caches, _ in earlier), strict=True)  # layers run in order: each call is the next one
    masks = [valid[None, :] for _, valid in earlier] + [own]

    def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """q (N, T, H, d), k and v (N, T, G, d), to (N, T, H, d)."""
        N, T, H, d = q.shape
        G = k.shape[2]
        q_rows = (q * jnp.asarray(d**-0.5, q.dtype)).reshape(N, T, G, H // G, d)
        q_rows = jnp.moveaxis(q_rows, 1, 3).reshape(N, G, -1, d)  # rows are (head in group, T)
        parts = [*next(layers), (jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2))]
        scores = []
        for (keys, _), mask in zip(parts, masks, strict=True):
            score = jnp.einsum("ngmd,ngsd->ngms", q_rows, keys, preferred_element_type=jnp.float32)
            score = score.reshape(N, G, H // G, T, -1) + jnp.where(mask, 0.0, _NEVER)[None, None, None]
            scores.append(score.reshape(N, G, H // G * T, -1))
        top = jnp.max(jnp.stack([jnp.max(score, axis=-1) for score in scores]), axis=0)[..., None]
        mass, out = jnp.zeros(()), jnp.zeros(())
        for score, (_, values) in zip(scores, parts, strict=True):
            weight = jnp.exp(score - top)
            mass = mass + jnp.sum(weight, axis=-1, keepdims=True)
            weight = weight.astype(q.dtype)
            out = out + jnp.einsum("ngms,ngsd->ngmd", weight, values, preferred_element_type=jnp.float32)
        out = (out / mass).reshape(N, G, H // G, T, d)
        return jnp.moveaxis(out, 3, 1).reshape(N, T, H, d).astype(q.dtype)

    return attention


def _commit(
    R: int, params, begin, offset, rules: Rules, config: ModelConfig, compute: Compute,
    s: BlockState, order: jax.Array, masked: jax.Array,
) -> BlockState:  # fmt: skip
    """Logits of the first R positions of `order`, and the most confident of them committed, each with its token."""
    W, mask_id = config.diff_block_size, config.mask_token_id
    rows = order[:R]
    hidden = lax.dynamic_slice_in_dim(s.hidden, offset, W, axis=1)[:, rows]
    N, _, D = hidden.shape
    features = logit_features(params, hidden.reshape(N * R, D), config, compute)
    raw = lm_logits(params, features, compute).reshape(N, R, -1)
    raw = raw[0] if N == 1 else raw[1] + (rules.guidance + 1.0) * (raw[0] - raw[1])
    logits = rules.adjustment(raw, s.counts > 0)
    sure = jnp.where(masked[rows], confidence(logits), -1.0)
    # Ties, as where probabilities round to 1, have no published order; later positions first agrees with what was seen.
    ranking = R - 1 - jnp.argsort(-sure[::-1])
    quota = jnp.minimum(rules.base + (s.step < rules.extra), jnp.sum(masked))

    def more(carried):
        number, state = carried
        return (number < quota) & ~state.ended

    def take(carried):
        number, state = carried
        row = ranking[number]
        at = rows[row]
        token = rules.choice(position_key(rules.seed, begin + at), logits[row])
        n, r = state.committed, state.record
        record = Record(
            r.step.at[n].set(state.step), r.offset.at[n].set(at.astype(jnp.int32)), r.token.at[n].set(token),
            r.logit.at[n].set(raw[row, token]), r.hidden.at[n].set(hidden[0, row]),
        )  # fmt: skip
        state = dataclasses.replace(
            state,
            window=state.window.at[offset + at].set(token),
            counts=state.counts.at[mask_id].add(-1).at[token].add(1),
            stale=state.stale | (offset + at < W),
            committed=n + 1,
            ended=token == rules.eot,
            record=record,
        )
        return number + 1, state

    _, s = lax.while_loop(more, take, (jnp.int32(0), s))
    return dataclasses.replace(s, step=s.step + 1)


def _put(cache: LayerCaches, fresh: LayerCaches, start: jax.Array) -> LayerCaches:
    return jax.tree.map(
        lambda old, new: lax.dynamic_update_slice(old, new.astype(old.dtype), (0, 0, start, 0)), cache, fresh
    )
