"""TPU generations: what their maker publishes of a chip, and the devices of a topology, present or not.

Source of the figures: the pages "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x" of Google Cloud's documentation (2026).
They are the maker's, peaks that no program reaches.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from steerling_jax.errors import UserError, first_line, require
from steerling_jax.models.steerling.flops import PEAK_FLOPS


@dataclass(frozen=True)
class Chip:
    """One chip, which is `devices` devices to JAX. hbm: bytes. hbm_rate: bytes a second. link_rate: bytes a second
    between chips, both directions together. network_rate: bytes a second to other slices. axes: of the torus."""

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
        """bfloat16 products a second."""
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
    """The chip that `topology` (`v5p:4x4x8`) is made of. `UserError` where the name is not of that form."""
    chip, _ = _parts(topology)
    return chip


def device_count(topology: str, slices: int = 1) -> int:
    """Devices as JAX counts them."""
    chip, sides = _parts(topology)
    return slices * chip.devices * math.prod(sides)


def topology_devices(topology: str, slices: int = 1) -> Sequence[Any]:
    """The devices of `slices` slices, to compile for. `UserError` for a topology that there is not, or without the
    TPU compiler."""
    from jax.experimental import topologies

    _, sides = _parts(topology)
    require(slices >= 1, f"--slices is {slices}, but it must be at least 1.")
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if all(side == 1 for side in sides):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:  # the compiler library is found, loaded and asked in one call, which raises many kinds
        raise UserError(
            f"The TPU compiler does not know the topology {topology!r} ({first_line(error)}): choose other sides."
        ) from error


def check_compiler() -> None:
    """`UserError` where the TPU compiler is not installed."""
    require(
        compiler_version() is not None,
        "Compiling for TPUs needs their compiler, which is not installed: pip install 'steerling-jax[tpu]', or name "
        "its libtpu.so in TPU_LIBRARY_PATH.",
    )


def compiler_version() -> str | None:
    """The version of the TPU compiler that JAX will load, None where there is none."""
    named = os.environ.get("TPU_LIBRARY_PATH")
    places = [str(Path(named).parent.parent)] if named and Path(named).is_file() else sys.path
    return next((found.version for found in distributions(name="libtpu", path=places)), None)


def _parts(topology: str) -> tuple[Chip, list[int]]:
    found = _TOPOLOGY.fullmatch(topology)
    known = ", ".join(CHIPS)
    if not found or found.group(1) not in CHIPS:
        raise UserError(
            f"The topology {topology!r} is not known: give a generation ({known}) and the chips along each side, "
            "v5e:16x16 or v5p:4x4x8 say."
        )
    chip, sides = CHIPS[found.group(1)], [int(side) for side in found.group(2).split("x")]
    require(
        len(sides) == chip.axes and all(sides),
        f"The topology {topology!r} has {len(sides)} sides, but {chip.name} chips are joined along {chip.axes}: "
        f"{'v5e:4x4' if chip.axes == 2 else 'v5p:2x2x4'} is of that form.",
    )
    return chip, sides
