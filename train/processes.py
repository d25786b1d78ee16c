"""Several processes that train one model: how they find each other, what each one reads, what they agree on.

Every process runs the same program on the same global arrays, of which it holds a part. With one process all of this
is as if it were not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from steerling_jax.errors import UserError, require
from steerling_jax.sharding import batch_sharding


def join(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins the other processes; on TPU pods, GKE and Slurm the platform knows what is None. Before any other use of
    JAX. Raises `UserError` where they cannot be found."""
    try:
        jax.distributed.initialize(coordinator, count, index)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"The processes did not find each other ({str(error).splitlines()[0]}): give --coordinator HOST:PORT, "
            "--process-count and --process-index, the same coordinator and count to all."
        ) from error


def is_first() -> bool:
    """Whether this is the process that writes what only one may write."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


class Share:
    """A batch's rows that belong to this process, by the mesh."""

    def __init__(self, mesh: Mesh, batch_size: int):
        ways = mesh.shape["data"] * mesh.shape["fsdp"]
        require(
            batch_size % ways == 0,
            f"data.batch_size is {batch_size}, but it must be a multiple of {ways}, the devices along data and fsdp.",
        )
        self.mesh, self.batch_size, self.sharding = mesh, batch_size, batch_sharding(mesh)
        parts = self.sharding.addressable_devices_indices_map((batch_size,)).values()
        self.rows = sorted({row for part in parts if part for row in range(*part[0].indices(batch_size))})

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """The process's rows of a batch, to global arrays."""
        return {
            name: jax.make_array_from_process_local_data(self.sharding, value, (self.batch_size, *value.shape[1:]))
            for name, value in batch.items()
        }


class Agreement:
    """A question with yes and no, that all processes must answer alike, since what follows are collectives.

    Alone, the answer is the one just given. Together, it is whether anyone said yes one question ago: nobody waits.
    """

    def __init__(self, mesh: Mesh):
        self._places = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._anyone: Any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._shape = (mesh.size,)
        self._last: jax.Array | None = None

    def ask(self, mine: bool) -> bool:
        if jax.process_count() == 1:
            return mine
        before, votes = self._last, np.full(self._shape, mine, np.int32)
        self._last = self._anyone(jax.make_array_from_callback(self._shape, self._places, lambda part: votes[part]))
        return before is not None and bool(before)
