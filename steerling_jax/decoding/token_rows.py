"""The small compiled programs around `decode_tokens`: rows into and out of a batch, and batches of other sizes.

Legend: B rows of the batch, R tokens of a call's record, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache, partial

import jax
import jax.numpy as jnp

from steerling_jax.decoding.token_loop import RECORD, TokenRecord, TokenRows, TokenSettings
from steerling_jax.models.backbone import Backbone, Cache


@partial(jax.jit, static_argnames=("size", "capacity", "record_hidden", "backbone"))
def empty_rows(
    settings: TokenSettings, *, size: int, capacity: int, record_hidden: bool, backbone: Backbone
) -> TokenRows:
    """A batch of `size` rows that are not in use, with room for `capacity` positions; settings: one row's, for their
    structure."""
    settings = jax.tree.map(lambda a: jnp.broadcast_to(jnp.asarray(a), (size, *jnp.shape(a))), settings)
    number, flag = jnp.zeros(size, jnp.int32), jnp.zeros(size, bool)
    return TokenRows(
        settings=dataclasses.replace(settings, active=flag),
        token=number,
        position=number,
        counts=jnp.zeros((size, backbone.vocab_size), jnp.int32),
        ended=flag,
        record=TokenRecord(
            token=jnp.zeros((size, RECORD), jnp.int32),
            logit=jnp.zeros((size, RECORD)),
            hidden=jnp.zeros((size, RECORD, backbone.width)) if record_hidden else None,
        ),
        cache=backbone.empty_cache(size, capacity),
    )


@partial(jax.jit, static_argnames=("backbone",), donate_argnames=("rows",))
def start_row(
    rows: TokenRows,
    index: jax.Array,
    settings: TokenSettings,
    cache: Cache,
    token: jax.Array,
    position: jax.Array,
    counts: jax.Array,
    *,
    backbone: Backbone,
) -> TokenRows:
    """Row `index` () at the end of its prompt: token and position of the prompt's last token, and the cache of those
    before it, of one row."""

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[index].set(jnp.asarray(new, old.dtype))

    def put_cache(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), index, axis)

    return dataclasses.replace(
        rows,
        settings=jax.tree.map(put, rows.settings, settings),
        token=put(rows.token, token),
        position=put(rows.position, position),
        counts=put(rows.counts, counts),
        ended=put(rows.ended, jnp.bool_(False)),
        cache=jax.tree.map(put_cache, rows.cache, cache, _row_axes(backbone)),
    )


@partial(jax.jit, donate_argnames=("rows",))
def stop_row(rows: TokenRows, index: jax.Array) -> TokenRows:
    """Row `index` () is not in use any more. Its position is one where the passes of other rows find room."""
    settings = dataclasses.replace(rows.settings, active=rows.settings.active.at[index].set(False))
    return dataclasses.replace(rows, settings=settings, position=rows.position.at[index].set(0))


@partial(jax.jit, static_argnames=("backbone",))
def move_rows(rows: TokenRows, source: jax.Array, in_use: jax.Array, *, backbone: Backbone) -> TokenRows:
    """A batch of another size: row b is the old row source[b]; those not `in_use` are inactive."""
    cache = jax.tree.map(lambda a, axis: jnp.take(a, source, axis=axis), rows.cache, _row_axes(backbone))
    others = jax.tree.map(lambda a: a[source], dataclasses.replace(rows, cache=None))
    active = others.settings.active & in_use
    position = jnp.where(in_use, others.position, 0)
    settings = dataclasses.replace(others.settings, active=active)
    return dataclasses.replace(others, settings=settings, position=position, cache=cache)


@partial(jax.jit, static_argnames=("capacity", "backbone"))
def widen_rows(rows: TokenRows, *, capacity: int, backbone: Backbone) -> TokenRows:
    """The rows with room for `capacity` positions."""
    wide = jax.eval_shape(lambda: backbone.empty_cache(len(rows.token), capacity))

    def pad(old: jax.Array, new: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.pad(old, [(0, after - before) for before, after in zip(old.shape, new.shape, strict=True)])

    return dataclasses.replace(rows, cache=jax.tree.map(pad, rows.cache, wide))


@partial(jax.jit, static_argnames=("capacity", "backbone"))
def empty_row_cache(*, capacity: int, backbone: Backbone) -> Cache:
    """The cache of one row without positions."""
    return backbone.empty_cache(1, capacity)


@lru_cache(maxsize=64)
def _row_axes(backbone: Backbone) -> Cache:
    """The axis of the rows in each leaf of a cache: the one along which the caches of two and three rows differ."""
    two, three = (jax.eval_shape(lambda rows=rows: backbone.empty_cache(rows, 64)) for rows in (2, 3))

    def axis(a: jax.ShapeDtypeStruct, b: jax.ShapeDtypeStruct) -> int:
        return next(i for i, sizes in enumerate(zip(a.shape, b.shape, strict=True)) if sizes[0] != sizes[1])

    return jax.tree.map(axis, two, three)
