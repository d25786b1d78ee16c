"""Rows of a token table that is split over devices: ids travel to the numbers, not the table to the ids."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from steerling_jax.parallel.mesh import current_mesh, partition_spec


def look_up(table: jax.Array, tokens: jax.Array, dtype: str) -> jax.Array:
    """table (V, D) at tokens (B, T), (B, T, D) in `dtype`.

    On a mesh a device has some tokens' rows (`tensor`) and some of their numbers (`fsdp`): it finds these for all ids
    of its `fsdp` group, and each device gets its own sequences back, whole.
    """
    mesh = current_mesh()
    if mesh is None:
        return jnp.take(table, tokens, axis=0).astype(dtype)
    rows, width = partition_spec(("vocab", "embed"), table.shape, mesh)
    (batch,) = partition_spec(("batch",), tokens.shape[:1], mesh)
    swap = width is not None and batch is not None  # then the batch is split over `width` too

    def own(table: jax.Array, tokens: jax.Array) -> jax.Array:
        if swap:
            tokens = lax.all_gather(tokens, width, axis=0, tiled=True)
        at = tokens if rows is None else tokens - lax.axis_index(rows) * table.shape[0]
        found = jnp.take(table, at, axis=0, mode="clip").astype(dtype)
        if rows is not None:
            here = (at >= 0) & (at < table.shape[0])
            found = lax.psum(jnp.where(here[:, :, None], found, 0), rows)
        if swap:
            return lax.all_to_all(found, width, split_axis=0, concat_axis=2, tiled=True)
        return found if width is None else lax.all_gather(found, width, axis=2, tiled=True)

    specs = PartitionSpec(rows, width), PartitionSpec(batch)
    return jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(batch), check_vma=False)(table, tokens)
