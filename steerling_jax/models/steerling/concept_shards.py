"""Work on concept tables that are sharded over devices by concepts: each device processes its own shard.

Positions are sharded over the batch axes of the mesh and concepts over `tensor`. All devices along `tensor` have the
same positions and different concepts; their partial results are summed or merged over that axis. So neither tables nor
scores move between devices, only results, which are smaller by orders of magnitude.

Legend: N positions, K concepts of each position, C concepts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from steerling_jax.models.steerling.head_view import HeadView
from steerling_jax.parallel.best_of_devices import best_of_devices
from steerling_jax.parallel.mesh import current_mesh, partition_spec

Part = Literal["query", "keys", "values"]


def on_own_concepts(
    work: Callable[..., jax.Array], view: HeadView, parts: Sequence[Part], *rows: jax.Array, whole: bool = False
) -> jax.Array:
    """`work(view, *rows)`, run on each device with its shard of the view's `parts` and of `rows`.

    rows: arrays whose first axis is the batch, of positions (N, …) or of sequences (B, …). The result has such a first
    axis too, or is a scalar for all of them where `whole` is set. `work` must make it the same on all devices along
    `tensor`, with `sum_over_concepts`, `merge_best` or `sum_over_all`. Without a mesh this is `work(view, *rows)`.
    """
    mesh = current_mesh()
    if mesh is None:
        return work(view, *rows)
    tables = {part: getattr(view, part) for part in parts}
    if "keys" in parts and view.bias is not None:
        tables["bias"] = view.bias  # belongs to the keys
    (concept_axis,) = partition_spec(("concepts",), (view.keys.shape[0],), mesh)
    # Sequences and positions must be sharded alike, so over axes that divide both of their numbers.
    sizes = [row.shape[0] for row in (*rows, *(tables[part] for part in parts if part == "query"))]
    (batch_axes,) = partition_spec(("batch",), (math.gcd(*sizes),), mesh)
    several = (batch_axes,) if isinstance(batch_axes, str) else batch_axes or ()
    axes = tuple(name for name in (*several, concept_axis) if name)

    def local(tables: dict[str, jax.Array], *rows: jax.Array) -> jax.Array:
        # Parts of the view that are not in `parts` stay unsharded: `work` must not use them.
        own = view._replace(**tables, axis=concept_axis, axes=axes)
        count = tables["keys" if "keys" in tables else "values"].shape[0]
        first = lax.axis_index(concept_axis) * count if concept_axis else 0
        return work(own._replace(first=first), *rows)

    # `shard_map` and not automatic partitioning: left to itself XLA gathers the tables for the scans and look-ups.
    specs = {part: PartitionSpec(batch_axes if part == "query" else concept_axis) for part in tables}
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(specs, *(PartitionSpec(batch_axes) for _ in rows)),
        out_specs=PartitionSpec() if whole else PartitionSpec(batch_axes),
        # The check would reject the scans over concepts: their carries start equal on all devices and then differ.
        check_vma=False,
    )(tables, *rows)


def sum_over_concepts(view: HeadView, partial: jax.Array) -> jax.Array:
    """The sum of the devices' partial results, each from its own concepts."""
    return lax.psum(partial, view.axis) if view.axis else partial


def sum_over_all(view: HeadView, partial: jax.Array) -> jax.Array:
    """The sum of the devices' partial results over both concepts and the batch."""
    return lax.psum(partial, view.axes) if view.axes else partial


def merge_best(view: HeadView, scores: jax.Array, index: jax.Array) -> jax.Array:
    """The indices (N, k) of the largest scores among all devices' own best k, scores and index (N, k); best first."""
    return best_of_devices(scores, index, index.shape[1], view.axis)[1] if view.axis else index


def own_rows(view: HeadView, index: jax.Array, rows: int) -> tuple[jax.Array, jax.Array | None]:
    """Rows of this device's shard of `rows` rows for the concepts `index` (N, K), and which of the concepts it holds,
    (N, K) bool.

    An index of C stands for no concept. Concepts of other devices get row 0, whose result the caller must mask out.
    Without a mesh the rows are the index itself, and the second value is None.
    """
    if not view.axis:
        return index, None
    # Padding rows of the last shard would pass the first two tests.
    at = index - view.first
    local = (at >= 0) & (at < rows) & (index < view.n_concepts)
    return jnp.where(local, at, 0), local
