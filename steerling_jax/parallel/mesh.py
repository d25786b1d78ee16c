"""The device mesh as the model's functions see it: named axes of arrays, and the mesh that is set where they run.

A step is compiled for a mesh inside `jax.set_mesh(mesh)`. Outside of one nothing here does anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

Axes = tuple[str | None, ...]

# Logical axis to mesh axes; what is not here stays whole.
MESH_AXES: dict[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "vocab": "tensor",
    "logits": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "concepts": "tensor",
    "embed": "fsdp",
    "rank": "fsdp",
}


def partition_spec(axes: Axes, sizes: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Logical axes, of such sizes, to the mesh axes that split them. Axes of one device, or that do not
    divide a size, are left out."""
    return PartitionSpec(*(_split(axis, size, mesh) for axis, size in zip(axes, sizes, strict=True)))


def _split(axis: str | None, size: int, mesh: Mesh | AbstractMesh) -> str | tuple[str, ...] | None:
    found = MESH_AXES.get(axis or "", ())
    names = tuple(name for name in ((found,) if isinstance(found, str) else found) if mesh.shape.get(name, 1) > 1)
    if not names or size % math.prod(mesh.shape[name] for name in names):
        return None
    return names[0] if isinstance(found, str) else names


def current_mesh() -> AbstractMesh | None:
    """The mesh set by `jax.set_mesh`, if it has several devices and is not being mapped over already."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or any(kind is not AxisType.Auto for kind in mesh.axis_types):
        return None
    return mesh


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
    """`x`, laid out on the mesh by its logical axes. Logits are split even where they do not come out even."""
    mesh = current_mesh()
    if mesh is None:
        return x
    sizes = [0 if axis == "logits" else size for axis, size in zip(axes, x.shape, strict=True)]
    return lax.with_sharding_constraint(x, partition_spec(axes, sizes, mesh))
