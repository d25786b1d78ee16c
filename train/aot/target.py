"""The devices that a program is compiled for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from steerling_jax.errors import UserError, error_summary
from steerling_jax.parallel.sharding import MeshShape, make_mesh
from steerling_jax.train.aot.chips import Chip


@dataclass(frozen=True)
class Target:
    """A mesh of devices of one kind. topology: of each slice, `v5e:16x16` for example."""

    topology: str
    chip: Chip
    mesh: Mesh

    @property
    def slices(self) -> list[int]:
        """The number of the slice of each device, in the order of the mesh."""
        return [_slice_of(device) for device in self.mesh.devices.flat]

    @property
    def hbm(self) -> float:
        """Bytes of HBM of one device."""
        return self.chip.hbm / self.chip.devices


def mesh_for(shape: MeshShape, devices: Sequence[Any]) -> Mesh:
    """A mesh of devices that need not exist. With several slices and data=1, the axis `data` is set to their number.

    Raises `UserError` where the mesh cannot be mapped to the topology.
    """
    slices = len({_slice_of(device) for device in devices})
    if slices > 1 and shape.data == 1:
        shape = dataclasses.replace(shape, data=slices)
    try:
        return make_mesh(shape, devices)
    except (NotImplementedError, ValueError, AssertionError) as error:
        sizes = ", ".join(f"{field.name}={getattr(shape, field.name)}" for field in dataclasses.fields(shape))
        raise UserError(
            f"The mesh {sizes} cannot be mapped to {len(devices)} devices of this topology ({error_summary(error)}): "
            "choose other sizes."
        ) from error


def _slice_of(device: Any) -> int:
    return getattr(device, "slice_index", 0)
