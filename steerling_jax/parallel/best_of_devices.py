"""The largest values among those that devices found in their own shards: candidates move between devices, not scores.

Legend: N rows, k values of each row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def best_of_devices(values: jax.Array, index: jax.Array, k: int, axis: str) -> tuple[jax.Array, jax.Array]:
    """The k largest of all devices' own best, values and index (N, at most k) on each, with their indices; best first.

    axis: the mesh axis over which the scores are sharded, inside a `shard_map`. Of equal values the lower index comes
    first, because devices are gathered in the order of their shards.
    """
    # The k best of all are among the k best of each device, so N · k candidates move in place of all scores.
    values, index = (lax.all_gather(part, axis, axis=1, tiled=True) for part in (values, index))
    values, at = lax.top_k(values, k)
    return values, jnp.take_along_axis(index, at, axis=1)
