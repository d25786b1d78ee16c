"""Device meshes, and arrays between devices and hosts."""

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
    """How many devices stand along each axis; −1, at most once, for as many as there are."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def sizes(self, devices: int) -> tuple[int, int, int]:
        """(data, fsdp, tensor) for so many devices. Raises `UserError` where they do not come out even."""
        sizes = (self.data, self.fsdp, self.tensor)
        wanted = f"The mesh data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}"
        require(
            all(size >= 1 or size == -1 for size in sizes) and sizes.count(-1) <= 1,
            f"{wanted} must have sizes of at least 1, and −1 at most once.",
        )
        fixed = int(np.prod([size for size in sizes if size != -1]))
        even = devices % fixed == 0 if -1 in sizes else devices == fixed
        require(even, f"{wanted} does not fit {devices} devices: the sizes must multiply to that.")
        data, fsdp, tensor = (devices // fixed if size == -1 else size for size in sizes)
        return data, fsdp, tensor


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices (or those given). Between slices of a pod, whose network is slow, only `data` is split."""
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
    """Of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def to_host(tree: Any) -> Any:
    """Arrays, to NumPy on every process, wherever their parts lie."""
    return jax.tree.map(_whole, tree)


def to_first_host(tree: Any, piece: int = 1 << 30) -> Any:
    """Arrays to NumPy on the first process, None in their place on the others. Every device holds no more than `piece`
    bytes of another's at a time (but one row of a leading axis at least)."""
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
