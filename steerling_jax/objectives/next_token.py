"""The objective of a first stage of training: every position predicts a token from the tokens before it.

A diffusion step with a clean context runs 2T positions and has a loss at about T / 2 of them, which makes it slow to
learn from. Here one copy with causal attention runs T positions and each of them has a loss. The diffusion objective
then starts from these parameters (`start_from`); Gong et al., "Scaling Diffusion Language Models via Adaptation from
Autoregressive Models" (2024), adapt a trained model in the same way.

    a visible token at position i predicts token i + 1
    a mask token at position i predicts token i, as in diffusion

The second line is ours: without it the mask token would be new to the network when the diffusion stage starts.

Legend: B sequences, T positions, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from steerling_jax.errors import require
from steerling_jax.models.attention import block_causal_mask
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import embed_tokens, run_backbone
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import cross_entropy
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.objective import Batch, Draws, Metrics, part_of


@dataclass(frozen=True)
class NextTokenObjective:
    """Settings of the objective.

    masked: the share of tokens that are replaced by the mask token.

    Only the backbone and the token embedding are trained: concept heads, if the model has any, get no gradient.
    """

    kind: ClassVar[str] = "next_token"

    masked: float = 0.15

    def __post_init__(self) -> None:
        require(0 <= self.masked < 1, f"objective.masked is {self.masked}, but it must be at least 0 and below 1.")

    @property
    def noise(self) -> NoiseConfig:
        """One copy, without noise levels; for `Objective.noise`."""
        return NoiseConfig()

    def draw(self, batch: Batch, key: jax.Array, progress: jax.Array, config: ModelConfig) -> Draws:
        """Draws the masked positions; see `Objective.draw`. batch: tokens (B, T) int32."""
        tokens = batch["tokens"]
        masked = jax.random.uniform(key, tokens.shape) < self.masked
        last = jnp.arange(tokens.shape[1]) == tokens.shape[1] - 1
        sequences = {
            "noisy": jnp.where(masked, config.mask_token_id, tokens),
            "target": jnp.where(masked, tokens, jnp.roll(tokens, -1, axis=1)),
            "masked": masked,
            "counted": masked | ~last[None],  # a visible last token has no next one in its sequence
        }
        counted = sequences["counted"]
        return Draws(sequences, {"next": jnp.sum(counted & ~masked), "own": jnp.sum(counted & masked)})

    def loss(
        self, params: Params, drawn: Draws, progress: jax.Array, *, config: ModelConfig, compute: Compute
    ) -> tuple[jax.Array, Metrics]:
        """The mean cross-entropy of all positions, in nats; as metrics, of visible (`next`) and of masked (`own`)
        positions."""
        sequences, counts = drawn.sequences, drawn.shared
        positions = jnp.arange(sequences["noisy"].shape[1])
        hidden = run_backbone(
            params,
            embed_tokens(params, sequences["noisy"], compute),
            config=config,
            compute=compute,
            # Causal within diffusion blocks too, or a position would see the token that it is to predict.
            attention=block_causal_mask(positions, positions, 1),
        ).hidden
        rows = hidden.reshape(-1, hidden.shape[-1])
        nats = cross_entropy(params, rows, sequences["target"].reshape(-1), compute)
        nats = nats * sequences["counted"].reshape(-1)
        masked = sequences["masked"].reshape(-1)
        metrics = {
            "next": part_of(jnp.sum(nats * ~masked), counts["next"]),
            "own": part_of(jnp.sum(nats * masked), counts["own"]),
        }
        return part_of(jnp.sum(nats), counts["next"] + counts["own"]), metrics
