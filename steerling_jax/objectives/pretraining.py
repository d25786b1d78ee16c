"""The objective of pre-training and mid-training: diffusion, concept presence, residual and independence losses.

Source of the terms: the Steerling authors' posts, as collected in docs/training.md. Where sources are silent the
choice is ours and a setting. Losses are computed on masked positions only, gathered into rows (`rows.py`); those of
concepts are in `concept_losses.py`. The other phases have objectives of their own: `steering_objective.py`,
`instruction_objective.py`.

Legend: B sequences, T positions, M rows (masked positions kept), D width, S chunks a sequence, K labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from steerling_jax.concepts.heads import view_concepts
from steerling_jax.errors import require, require_share
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import cross_entropy, decompose
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.objectives.concept_losses import (
    independence_loss,
    label_features,
    presence_loss,
    residual_loss,
    scale_gradient,
)
from steerling_jax.objectives.noise import NoiseConfig, mask_tokens, noise_levels
from steerling_jax.objectives.objective import Batch, Draws, Metrics, Objective, first_masked, part_of
from steerling_jax.objectives.rows import MaskedRows, at_rows, gather_rows, masked_chunks


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and schedules. Pairs are (at the start, at the end) of training.

    token_weight: of a masked token in the diffusion loss, 1 or 1/t.
    epsilon_dropout: share of masked positions whose prediction is `lm_head(k̂ + û)` alone. Without it the diffusion loss
    sends no gradient to the concepts, because composed equals hidden.
    known_dropout, unknown_dropout: share of those positions where k̂, or û, is left out too. The second makes known
    concepts predict words by themselves, which else the discovered ones do for them.
    concept_warmup: share of training over which the presence loss gains its hold on the backbone. At first every
    concept is claimed everywhere, and the gradient that takes this back would flatten the hidden states; the heads
    alone can do it.
    known_forcing, unknown_forcing: probability that a step uses the labels' features, or the true residual.
    epsilon_independence_weight: of a second independence term, of the discovered features against epsilon.
    rows: share of a sequence's positions kept as rows; enough for the expected number of masked ones.
    """

    kind: ClassVar[str] = "pretraining"

    noise: NoiseConfig = field(default_factory=NoiseConfig)
    token_weight: Literal["one", "inverse_t"] = "one"
    concept_weight: float = 1.0
    concept_warmup: float = 0.05
    residual_weight: float = 1.0
    independence_weight: float = 1.0
    epsilon_independence_weight: float = 0.0
    epsilon_dropout: tuple[float, float] = (0.1, 0.3)
    known_dropout: float = 0.1
    unknown_dropout: float = 0.0
    known_forcing: tuple[float, float] = (1.0, 0.5)
    unknown_forcing: tuple[float, float] = (1.0, 0.5)
    rows: float = 1.0

    def __post_init__(self) -> None:
        check_token_weight(self.token_weight)
        require_share("objective.rows", self.rows)
        for name in ("epsilon_dropout", "known_forcing", "unknown_forcing"):
            pair = getattr(self, name)
            require(
                isinstance(pair, Sequence) and len(pair) == 2 and all(0 <= share <= 1 for share in pair),
                f"objective.{name} is {pair}, but it must be two shares, at the start and at the end of training.",
            )

    def draw(self, batch: Batch, key: jax.Array, progress: jax.Array, config: ModelConfig) -> Draws:
        """batch: tokens, chunk_index (B, T), chunk_labels (B, S, K), all int32."""
        level_key, mask_key, path_key = jax.random.split(key, 3)
        tokens, W = batch["tokens"], config.diff_block_size
        B, T = tokens.shape
        levels = noise_levels(level_key, (B, -(-T // W)), progress, self.noise)
        noisy, masked = mask_tokens(mask_key, tokens, levels, config)
        kept = first_masked(masked, self.rows)
        weight = kept / jnp.repeat(levels, W, axis=1)[:, :T]
        drop_key, known_key, discovered_key, force_known, force_discovered = jax.random.split(path_key, 5)
        cosine = 0.5 - 0.5 * jnp.cos(jnp.pi * progress)
        drawn = {
            "noisy": noisy,
            "levels": levels,
            "masked": kept,
            "left_out": jnp.sum(masked & ~kept, axis=1),
            "drop_epsilon": jax.random.uniform(drop_key, (B, T)) < _scheduled(self.epsilon_dropout, progress),
            "drop_known": jax.random.uniform(known_key, (B, T)) < self.known_dropout,
            "drop_discovered": jax.random.uniform(discovered_key, (B, T)) < self.unknown_dropout,
            "present": masked_chunks(kept, batch["chunk_index"], batch["chunk_labels"].shape[1]),
        }
        shared = {
            "rows": jnp.sum(kept),
            "tokens": jnp.sum(weight),  # every token counts once: a masked one stands for 1/t of them
            "chunks": jnp.sum(drawn["present"]),
            "use_labels": jax.random.uniform(force_known) < _scheduled(self.known_forcing, cosine),
            "use_residual": jax.random.uniform(force_discovered) < _scheduled(self.unknown_forcing, progress),
        }
        return Draws({**batch, **drawn}, shared)

    def loss(
        self, params: Params, drawn: Draws, progress: jax.Array, *, config: ModelConfig, compute: Compute
    ) -> tuple[jax.Array, Metrics]:
        """Terms are means over the batch's masked positions or chunks; independence is each part's own, weighted by its
        rows."""
        batch = drawn.sequences
        hidden = denoise(
            params,
            batch["tokens"],
            batch["noisy"],
            config=config,
            compute=compute,
            clean_context=self.noise.clean_context,
        )
        rows = gather_rows(hidden, batch, batch["levels"], batch["masked"], config.diff_block_size, self.rows)
        left_out = jnp.sum(batch["left_out"]).astype(jnp.float32)
        if config.concept is None:
            metrics = diffusion_losses(params, rows.hidden, rows, drawn, compute)
            return metrics[TOKEN_WEIGHTS[self.token_weight]], {**metrics, "rows_dropped": left_out}
        features, terms = self._concept_terms(params, rows, drawn, progress, config, compute)
        metrics = diffusion_losses(params, features, rows, drawn, compute)
        loss = metrics[TOKEN_WEIGHTS[self.token_weight]]
        for name, term in terms.items():
            loss = loss + getattr(self, _WEIGHTS[name]) * term
        return loss, {**metrics, **terms, "loss": loss, "rows_dropped": left_out}

    def _concept_terms(
        self, params: Params, rows: MaskedRows, drawn: Draws, progress: jax.Array, config: ModelConfig, compute: Compute
    ) -> tuple[jax.Array, Metrics]:
        """What goes to the output projection (M, D), and the concepts' own losses."""
        assert config.concept is not None
        batch = drawn.sequences
        labels = batch["chunk_labels"]
        parts = decompose(params, rows.hidden, config=config, compute=compute, stop_discovered_gradient=True)
        known_view, spec = view_concepts(params, rows.hidden, "known", config, compute)
        known = parts.known.features
        labelled = label_features(known_view, labels, rows.chunk, compute)
        discovered = jnp.zeros_like(rows.hidden) if parts.discovered is None else parts.discovered.features
        composed = training_features(rows, known, discovered, labelled, drawn)
        hold = jnp.minimum(progress / max(self.concept_warmup, 1e-6), 1.0)
        held = known_view._replace(query=scale_gradient(known_view.query, hold))
        presence = presence_loss(held, rows, labels, spec.block, compute.operands)
        terms = {"presence": presence * part_of(jnp.sum(batch["present"]), drawn.shared["chunks"])}
        if parts.discovered is not None:
            part = part_of(jnp.sum(rows.valid), drawn.shared["rows"])
            terms["residual"] = part * residual_loss(discovered, rows, labelled)
            terms["independence"] = part * independence_loss(known, discovered, rows.valid)
            if self.epsilon_independence_weight:
                terms["epsilon_independence"] = part * independence_loss(parts.residual, discovered, rows.valid)
        return composed, terms


# The metric that is the diffusion loss, by the weight of a token; the weight of each of the concepts' terms.
TOKEN_WEIGHTS = {"one": "diffusion", "inverse_t": "bound"}


def check_token_weight(weight: str) -> None:
    """Raises `UserError` for a name that means nothing."""
    known = " or ".join(map(repr, TOKEN_WEIGHTS))
    require(weight in TOKEN_WEIGHTS, f"objective.token_weight is {weight!r}, but it must be {known}.")


_WEIGHTS = {
    "presence": "concept_weight", "residual": "residual_weight", "independence": "independence_weight",
    "epsilon_independence": "epsilon_independence_weight",
}  # fmt: skip


def loss_fn(
    params: Params,
    batch: Batch,
    key: jax.Array,
    progress: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
    objective: Objective,
) -> tuple[jax.Array, Metrics]:
    """Any objective's loss of a whole batch, and its metrics."""
    return objective.loss(
        params, objective.draw(batch, key, progress, config), progress, config=config, compute=compute
    )


def diffusion_losses(params: Params, features: jax.Array, rows: MaskedRows, drawn: Draws, compute: Compute) -> Metrics:
    """The rows' part of the cross-entropy on the batch's masked tokens: as a mean (`diffusion`), and weighted by 1/t,
    which estimates the likelihood bound (`bound`)."""
    nats = cross_entropy(params, features, rows.target, compute) * rows.valid
    return {
        "diffusion": part_of(jnp.sum(nats), drawn.shared["rows"]),
        "bound": part_of(jnp.sum(nats / rows.level), drawn.shared["tokens"]),
    }


def training_features(
    rows: MaskedRows, known: jax.Array, discovered: jax.Array, labelled: jax.Array, drawn: Draws
) -> jax.Array:
    """What goes to the output projection, (M, D): hidden itself where epsilon is kept (the identity), and k̂ + û
    where it is dropped, with dropout of k̂ and teacher forcing."""

    def drops(name: str) -> jax.Array:
        return at_rows(drawn.sequences[name], rows.position)[:, None]

    k = jnp.where(drawn.shared["use_labels"] & (rows.chunk >= 0)[:, None], labelled, known)
    u = jnp.where(drawn.shared["use_residual"], rows.hidden - labelled, discovered)
    k = jnp.where(drops("drop_known"), 0.0, k)
    u = jnp.where(drops("drop_discovered"), 0.0, u)
    return jnp.where(drops("drop_epsilon"), (k + u).astype(rows.hidden.dtype), rows.hidden)


def _scheduled(pair: tuple[float, float], through: Any) -> jax.Array:
    return pair[0] + (pair[1] - pair[0]) * jnp.asarray(through)
