"""Work on concept tables that are split over devices by concepts: each device does its own part of it.

Positions are split over the batch axes of the mesh. Along `tensor` every device sees the same positions and its own
concepts, and what it found is summed or merged over that axis: neither tables nor scores leave a device.
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
from steerling_jax.parallel.mesh import current_mesh, partition_spec

Part = Literal["query", "keys", "values"]


def on_own_concepts(
    work: Callable[..., jax.Array], view: HeadView, parts: Sequence[Part], *rows: jax.Array, whole: bool = False
) -> jax.Array:
    """`work(view, *rows)` with these parts of the view, on each device for its positions and its concepts.

    rows: arrays whose first axis is the batch, of positions (N, …) or of sequences. So is the result, and the same for
    all devices along `tensor`; or one number of all of them, where `whole`. `over_concepts` and `over_all` see to that.
    Without a mesh this is `work(view, *rows)`.
    """
    mesh = current_mesh()
    if mesh is None:
        return work(view, *rows)
    given = {part: getattr(view, part) for part in parts}
    (split,) = partition_spec(("concepts",), (view.keys.shape[0],), mesh)
    sizes = [row.shape[0] for row in (*rows, *(given[part] for part in parts if part == "query"))]
    (over,) = partition_spec(("batch",), (math.gcd(*sizes),), mesh)
    axes = tuple(name for name in ((over,) if isinstance(over, str) else over or ()) + (split,) if name)

    def own(given: dict[str, jax.Array], *rows: jax.Array) -> jax.Array:
        local = view._replace(**given, axis=split, axes=axes)
        table = given["keys" if "keys" in given else "values"]
        return work(local._replace(first=lax.axis_index(split) * table.shape[0] if split else 0), *rows)

    at = {part: PartitionSpec(over if part == "query" else split) for part in parts}
    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(at, *(PartitionSpec(over) for _ in rows)),
        out_specs=PartitionSpec() if whole else PartitionSpec(over),
        check_vma=False,  # the carries of scans start out alike on all devices, and differ after a step
    )(given, *rows)


def over_concepts(view: HeadView, mine: jax.Array) -> jax.Array:
    """The sum of what the devices found, each with its own concepts."""
    return lax.psum(mine, view.axis) if view.axis else mine


def over_all(view: HeadView, mine: jax.Array) -> jax.Array:
    """The sum over concepts and over the batch."""
    return lax.psum(mine, view.axes) if view.axes else mine


def best_of_all(view: HeadView, scores: jax.Array, index: jax.Array) -> jax.Array:
    """The concepts (N, k) of largest score among every device's own (N, k), best first; of equals, the lower one."""
    if not view.axis:
        return index
    scores, index = (lax.all_gather(a, view.axis, axis=1, tiled=True) for a in (scores, index))
    at = lax.top_k(scores, index.shape[1] // lax.axis_size(view.axis))[1]
    return jnp.take_along_axis(index, at, axis=1)


def own_rows(view: HeadView, index: jax.Array, rows: int) -> tuple[jax.Array, jax.Array | None]:
    """Rows of the table here for the concepts `index` (C stands for none), and which of them are here; None where the
    table is whole."""
    if not view.axis:
        return index, None
    at = index - view.first
    here = (at >= 0) & (at < rows) & (index < view.n_concepts)
    return jnp.where(here, at, 0), here
