"""Look-up of rows in a token table that is sharded over devices: the ids move between devices, not the table."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from steerling_jax.parallel.mesh import current_mesh, partition_spec


def look_up(table: jax.Array, tokens: jax.Array, dtype: str) -> jax.Array:
    """The rows of table (V, D) at tokens (B, T) int, (B, T, D) in `dtype`.

    On a mesh the table is sharded by tokens over `tensor` and by width over `fsdp`, and the sequences over `fsdp` too.
    Each device looks up its part of the rows, for the ids of all devices of its `fsdp` group; an all-to-all then gives
    each device whole rows for its own sequences. Gathering the table instead would move V · D numbers.
    """
    mesh = current_mesh()
    if mesh is None:
        return jnp.take(table, tokens, axis=0).astype(dtype)
    rows, width = partition_spec(("vocab", "embed"), table.shape, mesh)
    (batch,) = partition_spec(("batch",), tokens.shape[:1], mesh)
    swap = width is not None and batch is not None  # the batch is then sharded over `width` too

    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        if swap:
            tokens = lax.all_gather(tokens, width, axis=0, tiled=True)
        at = tokens if rows is None else tokens - lax.axis_index(rows) * table.shape[0]
        taken = jnp.take(table, at, axis=0, mode="clip").astype(dtype)
        if rows is not None:
            # Each token is in exactly one shard; the others add zero, so the sum is exact.
            held = (at >= 0) & (at < table.shape[0])
            taken = lax.psum(jnp.where(held[:, :, None], taken, 0), rows)
        if swap:
            return lax.all_to_all(taken, width, split_axis=0, concat_axis=2, tiled=True)
        return taken if width is None else lax.all_gather(taken, width, axis=2, tiled=True)

    specs = PartitionSpec(rows, width), PartitionSpec(batch)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(batch), check_vma=False)
    return mapped(table, tokens)
