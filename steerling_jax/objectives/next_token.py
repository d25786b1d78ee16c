"""The objective of autoregressive training: every position predicts a token from the tokens before it.

For decoders (Llama, Qwen3, …) it is the objective of training and, with conversations, of instruction tuning: then the
tokens of answers alone have a loss.

For Steerling models it is a first stage. A diffusion step with a clean context runs 2T positions and has a loss at
about T / 2 of them, which makes it slow to learn from. Here one copy with causal attention runs T positions and each of
them has a loss. The diffusion objective then starts from these parameters (`start_from`); Gong et al., "Scaling
Diffusion Language Models via Adaptation from Autoregressive Models" (2024), adapt a trained model in the same way.

    a visible token at position i predicts token i + 1
    a mask token at position i predicts token i, as in diffusion

The second line is ours: without it the mask token would be new to the network when the diffusion stage starts. Decoders
have no mask token.

Legend: B sequences, T positions, D width, n positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from steerling_jax.errors import require
from steerling_jax.models.attention import block_causal_mask
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.families import AnyConfig, model_backbone
from steerling_jax.models.steerling.backbone import embed_tokens, run_backbone
from steerling_jax.models.steerling.decompose import cross_entropy
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.objective import Batch, Draws, Metrics, part_of

_CHUNK = 256  # positions of a sequence whose logits are in memory together


@dataclass(frozen=True)
class NextTokenObjective:
    """Settings of the objective.

    masked: the share of tokens that are replaced by the mask token; 0 for decoders.

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

    def draw(self, batch: Batch, key: jax.Array, progress: jax.Array, config: AnyConfig) -> Draws:
        """Draws the masked positions; see `Objective.draw`.

        batch: tokens (B, T) int32, and in instruction tuning answer (B, T) int32, which is −1 for tokens that are not
        part of the answer: nothing has to predict these.
        """
        tokens = batch["tokens"]
        is_last = jnp.arange(tokens.shape[1]) == tokens.shape[1] - 1
        counted = jnp.broadcast_to(~is_last[None], tokens.shape)  # the last token has no next one in its sequence
        if "answer" in batch:
            counted &= jnp.roll(batch["answer"], -1, axis=1) >= 0
        sequences = {"noisy": tokens, "target": jnp.roll(tokens, -1, axis=1), "counted": counted}
        if isinstance(config, DecoderConfig):
            return Draws(sequences, {"next": jnp.sum(counted)})
        masked = jax.random.uniform(key, tokens.shape) < self.masked
        counted = masked | counted
        sequences = {
            "noisy": jnp.where(masked, config.mask_token_id, tokens),
            "target": jnp.where(masked, tokens, sequences["target"]),
            "masked": masked,
            "counted": counted,
        }
        return Draws(sequences, {"next": jnp.sum(counted & ~masked), "own": jnp.sum(counted & masked)})

    def loss(
        self, params: Params, drawn: Draws, progress: jax.Array, *, config: AnyConfig, compute: Compute
    ) -> tuple[jax.Array, Metrics]:
        """The mean cross-entropy of all positions that have a loss, in nats; as metrics, of visible (`next`) and, in
        Steerling models, of masked (`own`) positions."""
        sequences, counts = drawn.sequences, drawn.shared
        if isinstance(config, DecoderConfig):
            backbone = model_backbone(config, compute)
            hidden = backbone.run(params, backbone.embed(params, sequences["noisy"])).hidden
            nats = _chunked_cross_entropy(params, hidden, sequences["target"], backbone) * sequences["counted"]
            mean = part_of(jnp.sum(nats), counts["next"])
            return mean, {"next": mean}
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


def _chunked_cross_entropy(params: Params, hidden: jax.Array, targets: jax.Array, backbone: Backbone) -> jax.Array:
    """−log p(target) in nats, (B, T) float32, for hidden states (B, T, D) and the token ids targets (B, T)."""

    def nats(hidden: jax.Array, targets: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(backbone.logits(params, hidden), targets)

    return over_positions(nats, hidden, targets)


def over_positions(work: Callable[[jax.Array, jax.Array], Any], hidden: jax.Array, targets: jax.Array) -> Any:
    """`work(hidden, targets)`, arrays (B, T), for hidden states (B, T, D) and token ids (B, T), in parts of positions.

    The logits of a long sequence would fill the memory (4096 tokens of Qwen3: 2.5 GB in float32), so they are computed
    for n positions of every sequence at a time, and again in the backward pass. Chunks divide the positions, not the
    batch, so that each device keeps its sequences.
    """
    B, T, D = hidden.shape
    if T <= 2 * _CHUNK:
        return work(hidden, targets)
    pad = -T % _CHUNK
    hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0))).reshape(B, -1, _CHUNK, D)
    targets = jnp.pad(targets, ((0, 0), (0, pad))).reshape(B, -1, _CHUNK)
    chunks = jnp.moveaxis(hidden, 1, 0), jnp.moveaxis(targets, 1, 0)
    out = jax.lax.map(jax.checkpoint(lambda chunk: work(*chunk)), chunks)
    return jax.tree.map(lambda part: jnp.moveaxis(part, 0, 1).reshape(B, -1)[:, :T], out)
