"""Logical axes of arrays, and their sharding on the mesh that is set where a function is traced.

A program is compiled for a mesh inside `jax.set_mesh(mesh)`. Without a mesh these functions change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

Axes = tuple[str | None, ...]

# Logical axis to the mesh axes that it is sharded over. Other axes are not sharded.
MESH_AXES: dict[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "vocab": "tensor",
    "logits": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "value_heads": "tensor",
    "mlp": "tensor",
    "concepts": "tensor",
    "embed": "fsdp",
    "rank": "fsdp",
}


def partition_spec(axes: Axes, sizes: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The sharding of an array with these logical axes and sizes.

    Mesh axes of size 1, and those that do not divide an array's axis, are left out.
    """
    return PartitionSpec(*(_split(axis, size, mesh) for axis, size in zip(axes, sizes, strict=True)))


def _split(axis: str | None, size: int, mesh: Mesh | AbstractMesh) -> str | tuple[str, ...] | None:
    mesh_axes = MESH_AXES.get(axis or "", ())
    several = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes
    names = tuple(name for name in several if mesh.shape.get(name, 1) > 1)
    if not names or size % math.prod(mesh.shape[name] for name in names):
        return None
    return names[0] if isinstance(mesh_axes, str) else names


def current_mesh() -> AbstractMesh | None:
    """The mesh set by `jax.set_mesh`; None for a single device and inside a `shard_map`, whose axes are manual."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or any(kind is not AxisType.Auto for kind in mesh.axis_types):
        return None
    return mesh


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
    """`x`, with the sharding of its logical axes; `x` itself without a mesh.

    The axis "logits" is sharded even where its size is not a multiple of the mesh axis (XLA pads it): logits are the
    largest arrays of a step, and vocabularies are rarely such multiples.
    """
    mesh = current_mesh()
    if mesh is None:
        return x
    # 0 is a multiple of every mesh axis.
    sizes = [0 if axis == "logits" else size for axis, size in zip(axes, x.shape, strict=True)]
    return lax.with_sharding_constraint(x, partition_spec(axes, sizes, mesh))
