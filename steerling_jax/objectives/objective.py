"""What every objective shares: a batch with everything random drawn, and rows of positions taken out of it.

An objective draws for the whole batch first and counts there, so that its loss is a sum over sequences: micro-batches
add up to the batch, and no number depends on how many there are.

Legend: B sequences, T positions, S chunks a sequence.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.objectives.noise import NoiseConfig

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@struct.dataclass
class Draws:
    """sequences: arrays whose first axis is the batch, of a part of it where it is split. shared: scalars, the same for
    all parts: counts over the whole batch, and what is drawn once a step."""

    sequences: Batch
    shared: Batch

    def split(self, parts: int) -> Batch:
        """Sequences as (parts, B / parts, …). Part m has the sequences m, m + parts, …: a batch that lies on devices in
        order stays where it is."""

        def one(leaf: jax.Array) -> jax.Array:
            return jnp.moveaxis(leaf.reshape(-1, parts, *leaf.shape[1:]), 1, 0)

        return jax.tree.map(one, self.sequences)


class Objective(Protocol):
    """What a phase of training minimises: a small frozen dataclass, all of whose fields are settings."""

    kind: ClassVar[str]  # its name in `run.json`

    @property
    def noise(self) -> NoiseConfig:
        """How much of what is learned from is masked, and whether a clean copy goes along."""
        ...

    def draw(self, batch: Batch, key: jax.Array, progress: jax.Array, config: ModelConfig) -> Draws:
        """Everything random of a step on `batch`; progress () in [0, 1) through the run."""
        ...

    def loss(
        self, params: Params, drawn: Draws, progress: jax.Array, *, config: ModelConfig, compute: Compute
    ) -> tuple[jax.Array, Metrics]:
        """The loss of these sequences as their part of the batch's, and metrics, float32 scalars: all of them sums over
        sequences."""
        ...


def first_masked(masked: jax.Array, share: float) -> jax.Array:
    """masked (B, T) bool without what is past the first `share` · T of each sequence: what there is room for."""
    room = masked.shape[1] if share >= 1 else int(masked.shape[1] * share)
    return masked & (jnp.cumsum(masked, axis=1) <= room)


def part_of(local: jax.Array, total: jax.Array) -> jax.Array:
    """What a mean over `local` items counts in the mean over `total`, () float32."""
    return local / jnp.maximum(total, 1)
