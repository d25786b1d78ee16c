"""Construction of device meshes, and transfer of sharded arrays to hosts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from steerling_jax.errors import require


@dataclass(frozen=True)
class MeshShape:
    """The number of devices along each axis of a mesh; −1, at most once, for all remaining devices."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def sizes(self, devices: int) -> tuple[int, int, int]:
        """The sizes (data, fsdp, tensor) for so many devices. Raises `UserError` unless their product is `devices`."""
        sizes = (self.data, self.fsdp, self.tensor)
        described = f"The mesh data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}"
        require(
            all(size >= 1 or size == -1 for size in sizes) and sizes.count(-1) <= 1,
            f"{described} must have sizes of at least 1, and −1 at most once.",
        )
        fixed = int(np.prod([size for size in sizes if size != -1]))
        even = devices % fixed == 0 if -1 in sizes else devices == fixed
        require(even, f"{described} does not fit {devices} devices: the sizes must multiply to that.")
        data, fsdp, tensor = (devices // fixed if size == -1 else size for size in sizes)
        return data, fsdp, tensor


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of `devices`, by default all of them.

    Where the devices belong to several slices of TPUs, only `data` extends over slices: the network between them is
    slow, and data parallelism communicates least. Raises `UserError` for a shape that does not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = shape.sizes(len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        require(
            sizes[0] % slices == 0,
            f"The mesh has data={sizes[0]}, but there are {slices} slices: data must be a multiple of that.",
        )
        inside = (sizes[0] // slices, *sizes[1:])
        grid = mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices, allow_split_physical_axes=True)
    return Mesh(grid, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def to_host(tree: Any) -> Any:
    """A tree of arrays as NumPy arrays on every process, whatever their sharding; all processes must call it."""
    return jax.tree.map(_whole, tree)


def to_first_host(tree: Any, piece: int = 1 << 30) -> Any:
    """A tree of arrays as NumPy arrays on the first process, None in their place on the others; all must call it.

    Arrays are gathered in slices of about `piece` bytes along their first axis (at least one row), because a gathered
    slice is replicated on every device.
    """
    first = jax.process_index() == 0

    def one(leaf: jax.Array) -> np.ndarray | None:
        if not leaf.ndim or _is_here(leaf):
            return _whole(leaf) if first else None
        whole = np.empty(leaf.shape, leaf.dtype) if first else None
        rows = max(1, piece // (leaf.nbytes // leaf.shape[0]))
        for start in range(0, leaf.shape[0], rows):
            part = _whole(jax.lax.slice_in_dim(leaf, start, min(start + rows, leaf.shape[0])))
            if whole is not None:
                whole[start : start + rows] = part
        return whole

    return jax.tree.map(one, tree)


def _is_here(leaf: jax.Array) -> bool:
    return leaf.is_fully_addressable or leaf.is_fully_replicated


def _whole(leaf: jax.Array) -> np.ndarray:
    return np.asarray(leaf if _is_here(leaf) else multihost_utils.process_allgather(leaf, tiled=True))
