"""Autoregressive decoding of a batch of requests on the device, through the `Backbone` interface.

A row's last token waits to be read. A pass reads it, which gives the logits of the next one, and that one then waits.
So the prompt is read up to its last token only (`read_prompt`), logits are computed in one place, and no pass is spent
on the last token of a text. All rows take one token a pass, each at a position of its own.

Legend: B rows, R tokens that one call of the loop writes at most, D width, V vocabulary, C tokens of a piece of a
prompt, E ids that end a text.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from steerling_jax.decoding.policies import Policies, StepView
from steerling_jax.decoding.request_edits import place_edits
from steerling_jax.models.backbone import Backbone, Cache, Params
from steerling_jax.models.edits import LayerEdit

RECORD = 32  # R, tokens a row that one call of the loop can record
# C: lengths of the pieces in which prompts are read, each a compiled program. Each is a multiple of those before it, so
# that a piece starts at a multiple of its length or of a longer one, and padding ends within a multiple of the first.
PIECES = (16, 64, 256)


@struct.dataclass
class TokenSettings:
    """What stays fixed while a row writes; in a batch every leaf leads with B.

    policies: penalty, choice and stop. seed: () uint32. prompt: () int32, its length. total: () int32, positions of
    prompt and text together at most. active: () bool, whether the row is in use.
    """

    policies: Policies
    seed: jax.Array
    prompt: jax.Array
    total: jax.Array
    active: jax.Array


def token_settings(policies: Policies, seed: int, prompt: int, total: int) -> TokenSettings:
    """The settings of a row in use, as NumPy values."""
    values: dict[str, Any] = {
        "seed": np.uint32(seed),
        "prompt": np.int32(prompt),
        "total": np.int32(total),
        "active": np.bool_(True),
    }
    return TokenSettings(policies=policies, **values)


@struct.dataclass
class TokenRecord:
    """What the last call of the loop wrote, in order: token and raw logit, each (B, R), and the hidden rows (B, R, D)
    that gave them, None where they are not recorded."""

    token: jax.Array
    logit: jax.Array
    hidden: jax.Array | None


@struct.dataclass
class TokenRows:
    """The carry of the loop; every leaf but the cache's leads with B.

    token: () int32, the last token, which no pass has read. position: () int32, its position. counts: (V,) int32, how
    often each id occurs in prompt and text. ended: () bool, whether the text has ended. cache: of the positions before
    `position`.
    """

    settings: TokenSettings
    token: jax.Array
    position: jax.Array
    counts: jax.Array
    ended: jax.Array
    record: TokenRecord
    cache: Cache


@partial(jax.jit, static_argnames=("backbone",), donate_argnames=("rows",))
def decode_tokens(
    params: Params, rows: TokenRows, limit: jax.Array, edits: tuple[LayerEdit, ...] = (), *, backbone: Backbone
) -> tuple[TokenRows, jax.Array]:
    """Writes a token a pass in every active row until one of them ends, at most `limit` () and R of them.

    edits: changes to layers' outputs, the same for all rows. Returns the rows and the number of passes () int32.
    """
    R = rows.record.token.shape[1]

    def unfinished(carry: tuple[jax.Array, TokenRows]) -> jax.Array:
        count, rows = carry
        active = rows.settings.active
        return (count < jnp.minimum(limit, R)) & jnp.any(active) & ~jnp.any(rows.ended & active)

    def one_pass(carry: tuple[jax.Array, TokenRows]) -> tuple[jax.Array, TokenRows]:
        count, rows = carry
        settings, active = rows.settings, rows.settings.active.astype(jnp.int32)
        generated = (rows.position >= settings.prompt)[:, None]
        result = backbone.run(
            params,
            backbone.embed(params, rows.token[:, None]),
            start=rows.position,
            lengths=active,  # a row that is not in use keeps its state
            cache=rows.cache,
            edits=place_edits(edits, generated),
        )
        hidden = result.hidden[:, 0]
        raw = backbone.logits(params, hidden)
        token, stops = jax.vmap(_choose)(settings, raw, rows.position + 1, rows.counts)
        position = rows.position + active
        logit = jnp.take_along_axis(raw, token[:, None], axis=1)[:, 0]
        record = TokenRecord(
            token=rows.record.token.at[:, count].set(token),
            logit=rows.record.logit.at[:, count].set(logit),
            hidden=None if rows.record.hidden is None else rows.record.hidden.at[:, count].set(hidden),
        )
        counts = rows.counts.at[jnp.arange(len(token)), token].add(active)
        ended = rows.ended | stops | (position + 1 >= settings.total)
        return count + 1, TokenRows(settings, token, position, counts, ended, record, result.cache)

    count, rows = lax.while_loop(unfinished, one_pass, (jnp.int32(0), rows))
    return rows, count


def _choose(
    settings: TokenSettings, raw: jax.Array, position: jax.Array, counts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One row's token () int32 at `position` from its raw logits (V,), and whether the text ends with it."""
    policies = settings.policies
    assert policies.penalty is not None
    assert policies.choice is not None
    assert policies.stop is not None
    view = StepView(
        logits=raw[None],
        open=jnp.ones(1, bool),
        position=position[None],
        counts=counts,
        step=position - settings.prompt,
        seed=settings.seed,
        token=jnp.zeros(1, jnp.int32),
    )
    view = dataclasses.replace(view, logits=policies.penalty(view))
    view = dataclasses.replace(view, token=policies.choice(view))
    return view.token[0], policies.stop(view)[0]


def read_prompt(
    params: Params,
    cache: Cache,
    tokens: np.ndarray,
    start: int = 0,
    edits: tuple[LayerEdit, ...] = (),
    *,
    backbone: Backbone,
) -> Cache:
    """The cache after `tokens` (B, T) of a prompt from position `start` on, a multiple of 16; it has room for T rounded
    up to one. The cache is donated."""
    end = tokens.shape[1]
    at = 0
    while at < end:
        # The longest piece that is full, or the shortest one, padded: three programs, whatever the length.
        size = max((piece for piece in PIECES if piece <= end - at), default=PIECES[0])
        length = min(size, end - at)
        piece = np.zeros((len(tokens), size), np.int32)
        piece[:, :length] = tokens[:, at : at + length]
        cache = _read_piece(params, cache, piece, np.int32(start + at), np.int32(length), edits, backbone=backbone)
        at += length
    return cache


@partial(jax.jit, static_argnames=("backbone",), donate_argnames=("cache",))
def _read_piece(
    params: Params,
    cache: Cache,
    tokens: jax.Array,
    start: jax.Array,
    length: jax.Array,
    edits: tuple[LayerEdit, ...],
    *,
    backbone: Backbone,
) -> Cache:
    """The cache after `length` () of the tokens (B, C), which begin at position `start` ()."""
    edits = place_edits(edits, jnp.zeros(tokens.shape, bool))
    x = backbone.embed(params, tokens)
    lengths = jnp.broadcast_to(length, len(tokens))
    return backbone.run(params, x, start=start, lengths=lengths, cache=cache, edits=edits).cache
