"""The table of parameters that is printed before a run: shape, sharding, bytes on a device, weight decay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """One trained parameter, or those of the same name and shape in several layers.

    sharding: the mesh axis along each of its axes, `·,fsdp` for example; a dot for none.
    device_bytes: bytes of it on one device, without the optimizer's moments.
    decays: whether weight decay applies.
    layers: how many layers have it; 1 for a parameter that holds all layers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    sharding: str
    device_bytes: int
    decays: bool
    layers: int = 1

    @property
    def count(self) -> int:
        return self.layers * math.prod(self.shape)


def parameter_rows(run: RunConfig, mesh: Mesh) -> list[ParameterRow]:
    """All trained parameters of a run on this mesh, without allocating them."""
    params = jax.eval_shape(partial(init_state, run)).params
    shardings, decays = state_shardings(run, mesh).params, decay_mask(params)
    rows: dict[tuple[Any, ...], ParameterRow] = {}
    for (path, leaf), sharding, decay in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), jax.tree.leaves(decays), strict=True
    ):
        local = sharding.shard_shape(leaf.shape)
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/weight")
        size = math.prod(local) * leaf.dtype.itemsize
        axes = _axes(sharding.spec, leaf.shape, local)
        row = ParameterRow(name, leaf.shape, leaf.dtype.name, axes, size, decay)
        if name.startswith("layers/"):  # a decoder's layers are separate: dozens of rows would say the same
            row = replace(row, name="layers/*/" + name.split("/", 2)[2])
        key = (row.name, row.shape, row.sharding)
        before = rows.get(key)
        if before is not None:
            row = replace(row, layers=before.layers + 1, device_bytes=before.device_bytes + size)
        rows[key] = row
    return list(rows.values())


def _axes(spec: Sequence[Any], whole: tuple[int, ...], local: tuple[int, ...]) -> str:
    """The mesh axes of a sharding, without those of size 1, which change nothing."""
    axes = [
        "·" if there == here else axis if isinstance(axis, str) else "+".join(axis)
        for axis, there, here in zip(spec, whole, local)
    ]
    return ",".join(axes).rstrip("·,")


def parameter_table(rows: Sequence[ParameterRow]) -> Table:
    """A table for the terminal."""
    from rich.table import Table

    is_sharded = any(row.sharding for row in rows)
    table = Table(title="Parameters", title_justify="left", show_footer=True, box=None, padding=(0, 1, 0, 0))
    table.add_column("parameter", footer="all", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("number", justify="right", no_wrap=True, footer=f"{sum(row.count for row in rows):,}")
    table.add_column("dtype")
    if is_sharded:
        table.add_column("sharded over", no_wrap=True)
    table.add_column("per device", justify="right", no_wrap=True, footer=_size(sum(row.device_bytes for row in rows)))
    table.add_column("decay")
    for row in rows:
        shape = "×".join(map(str, row.shape)) + (f" (×{row.layers} layers)" if row.layers > 1 else "")
        sharding = [row.sharding] if is_sharded else []
        decay = "yes" if row.decays else ""
        table.add_row(row.name, shape, f"{row.count:,}", row.dtype, *sharding, _size(row.device_bytes), decay)
    return table


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
