"""TPU generations: published figures of a chip, and the devices of a topology, which need not be present.

Source of the figures: the pages "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x" of Google Cloud's documentation (2026).
They are peaks, which no program reaches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steerling_jax.errors import UserError, error_summary, require
from steerling_jax.models.steerling.flops import PEAK_FLOPS


@dataclass(frozen=True)
class Chip:
    """Figures of one chip.

    hbm: bytes. hbm_rate: bytes a second.
    link_rate: bytes a second to other chips of the slice, over all links and both directions together.
    network_rate: bytes a second to other slices.
    axes: of the torus that links the chips.
    devices: JAX devices of a chip.
    """

    name: str
    kind: str
    hbm: float
    hbm_rate: float
    link_rate: float
    network_rate: float
    axes: int
    devices: int = 1

    @property
    def flops(self) -> float:
        """bfloat16 FLOPs a second of matrix products."""
        return PEAK_FLOPS[self.kind] * self.devices


GIB = 2**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "TPU v5e", 16 * GIB, 819e9, 400e9, 6.4e12 / 8 / 256, 2),
        Chip("v5p", "TPU v5p", 95 * GIB, 2765e9, 1200e9, 50e9 / 8, 3),
        Chip("v6e", "TPU v6e", 32 * GIB, 1638e9, 800e9, 100e9 / 8, 2),
        Chip("tpu7x", "TPU7x", 192 * GIB, 7380e9, 1200e9, 100e9 / 8, 3, devices=2),
    )
}

_TOPOLOGY = re.compile(r"([a-z0-9]+):(\d+(?:x\d+)*)")


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as `v5p:4x4x8`. Raises `UserError` where the name has another form."""
    chip, _ = _parse(topology)
    return chip


def device_count(topology: str, slices: int = 1) -> int:
    """The number of JAX devices of `slices` slices."""
    chip, sides = _parse(topology)
    return slices * chip.devices * math.prod(sides)


def topology_devices(topology: str, slices: int = 1) -> Sequence[Any]:
    """The devices of `slices` slices, to compile for. Raises `UserError` where the TPU compiler is not installed or
    does not support the topology."""
    from jax.experimental import topologies

    _, sides = _parse(topology)
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if all(side == 1 for side in sides):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:  # finding, loading and querying the library is one call, which raises many types
        raise UserError(
            f"The TPU compiler does not support the topology {topology!r} ({error_summary(error)}): choose other sides."
        ) from error


def _parse(topology: str) -> tuple[Chip, list[int]]:
    """(chip, sides). Raises `UserError` for another form."""
    match = _TOPOLOGY.fullmatch(topology)
    known = ", ".join(CHIPS)
    if not match or match.group(1) not in CHIPS:
        raise UserError(
            f"The topology {topology!r} is not known: give a generation ({known}) and the number of chips along each "
            "side, such as v5e:16x16 or v5p:4x4x8."
        )
    chip, sides = CHIPS[match.group(1)], [int(side) for side in match.group(2).split("x")]
    require(
        len(sides) == chip.axes and all(sides),
        f"The topology {topology!r} has {len(sides)} sides, but {chip.name} chips are linked along {chip.axes} axes: "
        f"give {chip.axes} sides of at least 1, such as {'v5e:4x4' if chip.axes == 2 else 'v5p:2x2x4'}.",
    )
    return chip, sides
