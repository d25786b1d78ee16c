"""The table of parameters that a run shows before it begins: what is trained, where it lies, what decays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from steerling_jax.objectives.optimizer import decay_mask
from steerling_jax.objectives.training_step import state_shardings
from steerling_jax.train.run.run_config import RunConfig
from steerling_jax.train.run.step import init_state

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class ParameterRow:
    """One parameter. split: the mesh axes along its own, `·,fsdp` say, a dot for none. device_bytes: what a device
    holds of it, without the optimizer's moments."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    split: str
    device_bytes: int
    decays: bool

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def parameter_rows(run: RunConfig, mesh: Mesh) -> list[ParameterRow]:
    """All parameters of a run on this mesh, without making them."""
    params = jax.eval_shape(partial(init_state, run)).params
    places, decays = state_shardings(run, mesh).params, decay_mask(params)
    rows = []
    for (path, leaf), place, decay in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(places), jax.tree.leaves(decays), strict=True
    ):
        local = place.shard_shape(leaf.shape)
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/weight")
        size = math.prod(local) * leaf.dtype.itemsize
        rows.append(ParameterRow(name, leaf.shape, leaf.dtype.name, _split(place.spec, leaf.shape, local), size, decay))
    return rows


def _split(spec: Sequence[Any], whole: tuple[int, ...], local: tuple[int, ...]) -> str:
    """Axes of one device split nothing."""
    axes = [
        "·" if there == here else axis if isinstance(axis, str) else "+".join(axis)
        for axis, there, here in zip(spec, whole, local)
    ]
    return ",".join(axes).rstrip("·,")


def parameter_table(rows: Sequence[ParameterRow]) -> Table:
    """For a person."""
    from rich.table import Table

    split = any(row.split for row in rows)
    table = Table(title="Parameters", title_justify="left", show_footer=True, box=None, padding=(0, 1, 0, 0))
    table.add_column("parameter", footer="all", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("number", justify="right", no_wrap=True, footer=f"{sum(row.count for row in rows):,}")
    table.add_column("dtype")
    if split:
        table.add_column("split over", no_wrap=True)
    table.add_column("on each", justify="right", no_wrap=True, footer=_size(sum(row.device_bytes for row in rows)))
    table.add_column("decay")
    for row in rows:
        shape = "×".join(map(str, row.shape))
        where = [row.split] if split else []
        decay = "yes" if row.decays else ""
        table.add_row(row.name, shape, f"{row.count:,}", row.dtype, *where, _size(row.device_bytes), decay)
    return table


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
