"""Training with several processes: initialisation, the rows that each one reads, and decisions that all must share.

Every process runs the same program on the same global arrays, of which it holds a part. All must run the same
collectives in the same order: a process that branches differently from the others waits for ever. With one process,
nothing here communicates.
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

SHUTDOWN_SECONDS = 30  # how long the processes wait for each other at exit; JAX's default is 5 minutes


def initialise_processes(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Connects this process to the others. Call it before any other use of JAX.

    On TPU pods, GKE and Slurm, JAX finds the values that are None. Raises `UserError` where the processes do not find
    each other.
    """
    # JAX's preemption service would install its own SIGTERM handler, and the one of the train command would not see
    # the signal. `ProcessAgreement` makes all processes stop at the same step.
    jax.config.update("jax_enable_preemption_service", False)
    # On CPUs, programs with collectives may deadlock when several are dispatched before the first has finished.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        # A process that fails alone waits at exit for the others, which may wait for it in a collective: after this
        # time JAX ends them all.
        jax.distributed.initialize(coordinator, count, index, shutdown_timeout_seconds=SHUTDOWN_SECONDS)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"The processes did not find each other ({error_summary(error)}): give --coordinator HOST:PORT, "
            "--process-count and --process-index, with the same coordinator and count for all of them."
        ) from error


def is_first_process() -> bool:
    """Whether this is process 0, which writes the files that only one process may write."""
    return jax.process_index() == 0


def run_on_first_process(work: Callable[[], None]) -> None:
    """Runs `work` on the first process while the others wait. Where it fails, every process raises an exception.

    Without that agreement the other processes would go on to the next collective and wait there for ever, whatever the
    first process raised: so all exceptions are caught here, and raised again after the agreement.
    """
    failure = None
    if is_first_process():
        try:
            work()
        except Exception as error:
            failure = error
    if gather_problem(None if failure is None else str(failure)) is not None:
        raise failure or UserError("The first process failed; see its error message.")


class ProcessShare:
    """The rows of each batch that this process reads, from the mesh."""

    def __init__(self, mesh: Mesh, batch_size: int, accumulate: int = 1):
        """Raises `UserError` where the devices cannot share a batch, or one of its `accumulate` parts, equally."""
        devices = mesh.shape["data"] * mesh.shape["fsdp"]
        parts = f" times accumulate ({accumulate})" if accumulate > 1 else ""
        require(
            batch_size % (devices * accumulate) == 0,
            f"data.batch_size is {batch_size}, but it must be a multiple of {devices}, the devices along data and fsdp"
            f"{parts}.",
        )
        self.mesh, self.batch_size, self.sharding = mesh, batch_size, batch_sharding(mesh)
        indices = self.sharding.addressable_devices_indices_map((batch_size,)).values()
        self.rows = sorted({row for index in indices if index for row in range(*index[0].indices(batch_size))})

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Global arrays of a batch, from the rows of this process."""
        return {
            name: jax.make_array_from_process_local_data(self.sharding, value, (self.batch_size, *value.shape[1:]))
            for name, value in batch.items()
        }


class ProcessAgreement:
    """Answers yes-or-no questions alike on all processes: yes where any process says yes.

    Whether to stop and whether to save depends on a signal or a clock that one process sees before the others, but
    both are collectives, so all processes must decide the same at the same step. Asking is a small collective on the
    devices, which queues behind the training step; waiting for its result would make the host wait for that step. So
    `ask` returns the result of the previous call, which is ready: decisions come one step late, and nothing waits.
    With one process the answers are those just given.
    """

    def __init__(self, mesh: Mesh):
        # One vote for each device, as a device is the unit that holds a part of a global array.
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any: Any = jax.jit(partial(jnp.max, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._devices = mesh.size
        self._previous: jax.Array | None = None

    def ask(self, *votes: bool) -> tuple[bool, ...]:
        """For each question, whether any process voted yes in the previous call. All processes call it together."""
        if jax.process_count() == 1:
            return votes
        previous, table = self._previous, np.tile(np.array(votes, np.int32), (self._devices, 1))
        self._previous = self._any(jax.make_array_from_callback(table.shape, self._sharding, lambda part: table[part]))
        return (False,) * len(votes) if previous is None else tuple(bool(vote) for vote in np.asarray(previous))


class SaveTimer:
    """Says when `minutes` have passed since the last save (None: never). Only the first process measures: the clocks of
    the processes differ, and one decision is enough."""

    def __init__(self, minutes: float | None):
        self._seconds = None if minutes is None else 60 * minutes
        self._start = time.monotonic()

    def restart(self) -> None:
        self._start = time.monotonic()

    def is_due(self) -> bool:
        """Whether the time has passed. True once; then it starts again, as the decision takes effect a step later."""
        if self._seconds is None or not is_first_process() or time.monotonic() - self._start < self._seconds:
            return False
        self.restart()
        return True
