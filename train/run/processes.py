"""Several processes that train one model: how they find each other, what each one reads, what they agree on.

Every process runs the same program on the same global arrays, of which it holds a part. With one process all of this
is as if it were not there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from steerling_jax.errors import UserError, error_summary, require
from steerling_jax.io.checkpoints.digests import gather_problem
from steerling_jax.parallel.sharding import batch_sharding


def join(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins the other processes; on TPU pods, GKE and Slurm the platform knows what is None. Before any other use of
    JAX. Raises `UserError` where they cannot be found."""
    # JAX's own preemption service takes SIGTERM over and tells nobody before training asks it; `Agreement` is ours.
    jax.config.update("jax_enable_preemption_service", False)
    # On CPUs, programs that wait for other processes may lock each other out when they are dispatched ahead.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        jax.distributed.initialize(coordinator, count, index)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"The processes did not find each other ({error_summary(error)}): give --coordinator HOST:PORT, "
            "--process-count and --process-index, the same coordinator and count to all."
        ) from error


def is_first() -> bool:
    """Whether this is the process that writes what only one may write."""
    return jax.process_index() == 0


def by_the_first(work: Callable[[], None]) -> None:
    """Has the first process do what only one may do; the others wait. Where it refuses, all of them raise `UserError`,
    so that none waits for ever."""
    refusal = None
    if is_first():
        try:
            work()
        except UserError as error:
            refusal = error
    if gather_problem(None if refusal is None else str(refusal)) is not None:
        raise refusal or UserError("The first process does not go on: see what it says.")


class ProcessShare:
    """A batch's rows that belong to this process, by the mesh."""

    def __init__(self, mesh: Mesh, batch_size: int, accumulate: int = 1):
        ways = mesh.shape["data"] * mesh.shape["fsdp"]
        times = f" times accumulate ({accumulate})" if accumulate > 1 else ""
        require(
            batch_size % (ways * accumulate) == 0,
            f"data.batch_size is {batch_size}, but it must be a multiple of {ways}, the devices along data and fsdp"
            f"{times}.",
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


class ProcessAgreement:
    """Questions with yes and no, that all processes must answer alike, since what follows are collectives.

    Alone, the answers are those just given. Together, they are whether anyone said yes one call ago: nobody waits.
    """

    def __init__(self, mesh: Mesh):
        self._places = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._anyone: Any = jax.jit(partial(jnp.max, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._devices = mesh.size
        self._last: jax.Array | None = None

    def ask(self, *mine: bool) -> tuple[bool, ...]:
        """The answers of all to as many questions."""
        if jax.process_count() == 1:
            return mine
        before, votes = self._last, np.tile(np.array(mine, np.int32), (self._devices, 1))
        self._last = self._anyone(jax.make_array_from_callback(votes.shape, self._places, lambda part: votes[part]))
        return (False,) * len(mine) if before is None else tuple(bool(vote) for vote in np.asarray(before))


class Timer:
    """Tells the first process that it is time to save, in place of the others: their clocks may differ."""

    def __init__(self, minutes: float | None):
        self._seconds = None if minutes is None else 60 * minutes
        self._begin = time.monotonic()

    def restart(self) -> None:
        self._begin = time.monotonic()

    def rings(self) -> bool:
        """Whether so many minutes have passed since the last call of `restart`, or since it rang."""
        if self._seconds is None or not is_first() or time.monotonic() - self._begin < self._seconds:
            return False
        self.restart()
        return True
