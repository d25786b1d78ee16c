"""The objective of instruction tuning: the cross-entropy of answers, one sampler block at a time, as decoding sees it.

The decoder's canvas is the prompt followed by masks. It fills sampler blocks of `diff_block_size` positions from the
end of the prompt on, and these need not coincide with the diffusion blocks of attention (docs/design/decoding.md). A
training step takes one sampler block of each sequence's answer: the tokens before it are clean, the block is noisy, and
everything after it is masked. Where the two grids differ, block-causal attention sees the first few of those masks. So
one pass of one copy computes exactly the hidden states that the decoder computes.

The loss is on the block's masked tokens alone. Positions after the end of the answer within the block are masked, as in
decoding, and have no loss.

Legend: B sequences, T positions, M rows; k̂ known features, û discovered features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from steerling_jax.errors import require, require_share
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import embed_tokens, run_backbone
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import cross_entropy, decompose
from steerling_jax.objectives.noise import NoiseConfig, noise_levels
from steerling_jax.objectives.objective import Batch, Draws, Metrics, part_of
from steerling_jax.objectives.pretraining import TOKEN_WEIGHTS, check_token_weight
from steerling_jax.objectives.rows import MaskedRows, at_rows


@dataclass(frozen=True)
class InstructionObjective:
    """Settings of the objective.

    token_weight: the weight of a masked token, 1 or 1/t. floor: the smallest noise level of a block; levels are uniform
    in [floor, 1]. epsilon_dropout: the share of positions predicted from the concepts alone, so that the logits go on
    depending on them; in a strict model that is every position.
    """

    kind: ClassVar[str] = "instruction"

    token_weight: Literal["one", "inverse_t"] = "one"
    floor: float = 0.02
    epsilon_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_token_weight(self.token_weight)
        require_share("objective.floor", self.floor)
        require(
            0 <= self.epsilon_dropout <= 1,
            f"objective.epsilon_dropout is {self.epsilon_dropout}, but it must be between 0 and 1.",
        )

    @property
    def noise(self) -> NoiseConfig:
        """The noise of the one block. Earlier blocks are clean in the same copy, so no second copy is needed."""
        return NoiseConfig(floor=self.floor)

    def draw(self, batch: Batch, key: jax.Array, progress: jax.Array, config: ModelConfig) -> Draws:
        """The random draws of a step; see `Objective.draw`.

        batch: tokens (B, T) int32; answer (B, T) int32, the number of the sampler block of each token of the answer,
        from 0, and −1 for all other tokens. A block's first position must be at most T − `diff_block_size`.
        """
        level_key, mask_key, block_key, drop_key = jax.random.split(key, 4)
        tokens, answer = batch["tokens"], batch["answer"]
        B, T = tokens.shape
        level = noise_levels(level_key, (B, 1), progress, self.noise)
        blocks = jnp.max(answer, axis=1, keepdims=True) + 1
        # One block of each answer, uniformly.
        block = jnp.minimum((jax.random.uniform(block_key, (B, 1)) * blocks).astype(jnp.int32), blocks - 1)
        masked = (answer == block) & (jax.random.uniform(mask_key, (B, T)) < level)
        drawn = {
            "canvas": canvas(tokens, answer, block, masked, config.mask_token_id),
            "begin": _begin(answer, block),
            "masked": masked,
            "level": level[:, 0],
            "drop_epsilon": jax.random.uniform(drop_key, (B, T)) < self.epsilon_dropout,
        }
        shared = {"rows": jnp.sum(masked), "tokens": jnp.sum(masked / level)}
        return Draws({**batch, **drawn}, shared)

    def loss(
        self, params: Params, drawn: Draws, progress: jax.Array, *, config: ModelConfig, compute: Compute
    ) -> tuple[jax.Array, Metrics]:
        """The mean cross-entropy over the batch's masked answer tokens; the metrics are those of pre-training."""
        embeds = embed_tokens(params, drawn.sequences["canvas"], compute)
        hidden = run_backbone(params, embeds, config=config, compute=compute).hidden
        rows = block_rows(hidden, drawn, config.diff_block_size)
        features = rows.hidden
        if config.concept is not None and config.concept.is_strict:
            features = concept_features(params, features, config, compute)
        elif config.concept is not None and self.epsilon_dropout:
            dropped = at_rows(drawn.sequences["drop_epsilon"], rows.position)[:, None]
            features = jnp.where(dropped, concept_features(params, features, config, compute), features)
        nats = cross_entropy(params, features, rows.target, compute) * rows.valid
        metrics = {
            "diffusion": part_of(jnp.sum(nats), drawn.shared["rows"]),
            "bound": part_of(jnp.sum(nats / rows.level), drawn.shared["tokens"]),
        }
        return metrics[TOKEN_WEIGHTS[self.token_weight]], metrics


def canvas(tokens: jax.Array, answer: jax.Array, block: jax.Array, masked: jax.Array, mask_id: int) -> jax.Array:
    """tokens (B, T) as the decoder's canvas while it fills sampler block `block` (B, 1): masks at `masked` (B, T) bool
    within the block, and everywhere after it."""
    inside = answer == block
    later = jnp.arange(tokens.shape[1])[None, :] >= _begin(answer, block)[:, None]
    return jnp.where(masked | (later & ~inside), mask_id, tokens)


def block_rows(hidden: jax.Array, drawn: Draws, size: int) -> MaskedRows:
    """The rows of the `size` positions from each block's start on, out of hidden (B, T, D)."""
    batch = drawn.sequences
    position = batch["begin"][:, None] + jnp.arange(size, dtype=jnp.int32)[None, :]
    return MaskedRows(
        hidden=at_rows(hidden, position),
        target=at_rows(batch["tokens"], position),
        chunk=jnp.full(position.size, -1, jnp.int32),
        level=jnp.repeat(batch["level"], size),
        valid=at_rows(batch["masked"], position).astype(jnp.float32),
        position=position,
    )


def concept_features(params: Params, hidden: jax.Array, config: ModelConfig, compute: Compute) -> jax.Array:
    """The concepts' features k̂ + û, and a dictionary's offset, of hidden rows (M, D), in the dtype of these."""
    parts = decompose(params, hidden, config=config, compute=compute, stop_discovered_gradient=True)
    return parts.concept_features.astype(hidden.dtype)


def _begin(answer: jax.Array, block: jax.Array) -> jax.Array:
    """The first position (B,) int32 of each sequence's block (B, 1)."""
    return jnp.argmax(answer == block, axis=1).astype(jnp.int32)
