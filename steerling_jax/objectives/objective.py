"""The interface of training objectives: random draws for a whole batch, then a loss that is a sum over sequences.

Drawing and counting come first and see the whole batch, so that the losses of micro-batches add up to the loss of the
batch, and no number depends on how many micro-batches there are.

Legend: B sequences, T positions, S chunks a sequence.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.objectives.noise import NoiseConfig, mask_tokens, noise_levels

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@struct.dataclass
class Draws:
    """A batch together with everything random in a step on it.

    sequences: arrays whose first axis is the batch, or a micro-batch. shared: scalars that are the same for all
    micro-batches: counts over the whole batch, and what is drawn once for the step.
    """

    sequences: Batch
    shared: Batch

    def split(self, parts: int) -> Batch:
        """The sequences as micro-batches, (parts, B / parts, …).

        Part m holds the sequences m, m + parts, …: each device then has its share of every part, so a batch that is
        sharded over devices in order does not move.
        """

        def one(leaf: jax.Array) -> jax.Array:
            return jnp.moveaxis(leaf.reshape(-1, parts, *leaf.shape[1:]), 1, 0)

        return jax.tree.map(one, self.sequences)


class Objective(Protocol):
    """The loss that a phase of training minimises: a frozen dataclass whose fields are its settings."""

    kind: ClassVar[str]  # its name in `run.json`

    @property
    def noise(self) -> NoiseConfig:
        """The noise of the positions that the loss is computed on, and whether a clean copy is run with them."""
        ...

    def draw(self, batch: Batch, key: jax.Array, progress: jax.Array, config: ModelConfig) -> Draws:
        """Draws everything that is random in a step on `batch`; progress () in [0, 1) is the position in the run."""
        ...

    def loss(
        self, params: Params, drawn: Draws, progress: jax.Array, *, config: ModelConfig, compute: Compute
    ) -> tuple[jax.Array, Metrics]:
        """These sequences' part of the batch's loss, and metrics; all are float32 scalars that add up over
        micro-batches."""
        ...


def first_masked(masked: jax.Array, share: float) -> jax.Array:
    """masked (B, T) bool, without the masked positions after the first `share` · T of each sequence, for which there
    are no rows."""
    room = masked.shape[1] if share >= 1 else int(masked.shape[1] * share)
    return masked & (jnp.cumsum(masked, axis=1) <= room)


class DrawnNoise(NamedTuple):
    """The noise of a step: masked (B, T) bool, and what an objective's `Draws` hold of it.

    sequences: noisy tokens (B, T), levels (B, n), masked (B, T) without what has no row, and how many these are,
    left_out (B,). shared: rows, the number of masked positions with a row; tokens, an estimate of the number of tokens.
    """

    masked: jax.Array
    sequences: Batch
    shared: Batch


def draw_noise(
    level_key: jax.Array,
    mask_key: jax.Array,
    tokens: jax.Array,
    progress: jax.Array,
    noise: NoiseConfig,
    share: float,
    config: ModelConfig,
) -> DrawnNoise:
    """Draws the noise levels of all blocks of tokens (B, T) and masks them; rows for `share` · T of each sequence."""
    (B, T), W = tokens.shape, config.diff_block_size
    levels = noise_levels(level_key, (B, -(-T // W)), progress, noise)
    noisy, masked = mask_tokens(mask_key, tokens, levels, config)
    in_rows = first_masked(masked, share)
    # A masked token stands for 1/t tokens.
    weight = in_rows / jnp.repeat(levels, W, axis=1)[:, :T]
    left_out = jnp.sum(masked & ~in_rows, axis=1)
    sequences = {"noisy": noisy, "levels": levels, "masked": in_rows, "left_out": left_out}
    return DrawnNoise(masked, sequences, {"rows": jnp.sum(in_rows), "tokens": jnp.sum(weight)})


def part_of(local: jax.Array, total: jax.Array) -> jax.Array:
    """`local / total`, 0 for an empty batch: a sum over some sequences as its part of the batch's mean; () float32."""
    return local / jnp.maximum(total, 1)
