"""The objective of pre-training and mid-training: diffusion, concept presence, residual and independence losses.

    loss = diffusion + concept_weight · presence + residual_weight · residual + independence_weight · independence

`diffusion` is the cross-entropy of the masked tokens, each weighted by 1 or by 1/t; the other terms train the concept
heads (`concept_losses`). All losses are computed on masked positions only, gathered into rows (`rows`).

Source of the terms: the Steerling authors' posts, as collected in docs/design/training.md. What these leave open is
our choice, and a setting. The other phases have objectives of their own: `steering`, `instruction`.

Legend: B sequences, T positions, M rows (masked positions), D width, S chunks of a sequence, K labels of a chunk; k̂
known features, û discovered features.
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
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.objective import Batch, Draws, Metrics, Objective, draw_noise, part_of
from steerling_jax.objectives.rows import MaskedRows, at_rows, gather_rows, masked_chunks


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and schedules of the losses.

    Pairs are values at the start and at the end of training; between these `known_forcing` follows half a cosine, the
    others a straight line.

    token_weight: the weight of a masked token in the diffusion loss, 1 or 1/t.
    epsilon_dropout: the share of masked positions whose token is predicted from k̂ + û alone. Without it the diffusion
    loss gives the concepts no gradient, because k̂ + û + epsilon is the hidden state itself.
    known_dropout, unknown_dropout: the share of those positions where k̂, or û, is left out too. The second makes known
    concepts predict tokens by themselves, which the discovered concepts otherwise do for them.
    concept_warmup: the share of training over which the gradient of the presence loss in the backbone rises from 0 to
    its full size. At initialisation every concept is predicted present everywhere, and the gradient that corrects this
    would flatten the hidden states; the heads can correct it alone.
    known_forcing, unknown_forcing: the probability that a step uses the labels' features in place of k̂, or the true
    residual in place of û (teacher forcing).
    epsilon_independence_weight: the weight of a second independence term, of the discovered features against epsilon.
    rows: the share of a sequence's positions that there are rows for; it must exceed the share of masked positions.
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
                f"objective.{name} is {pair}, but it must be two numbers between 0 and 1, the "
                "share at the start and at the end of training.",
            )

    def draw(self, batch: Batch, key: jax.Array, progress: jax.Array, config: ModelConfig) -> Draws:
        """The random draws of a step; see `Objective.draw`.

        batch: tokens and chunk_index (B, T), chunk_labels (B, S, K), all int32, −1 for none.
        """
        level_key, mask_key, path_key = jax.random.split(key, 3)
        B, T = batch["tokens"].shape
        noise = draw_noise(level_key, mask_key, batch["tokens"], progress, self.noise, self.rows, config)
        drop_key, known_key, discovered_key, force_known, force_discovered = jax.random.split(path_key, 5)
        cosine = 0.5 - 0.5 * jnp.cos(jnp.pi * progress)
        drawn = {
            "drop_epsilon": jax.random.uniform(drop_key, (B, T)) < _scheduled(self.epsilon_dropout, progress),
            "drop_known": jax.random.uniform(known_key, (B, T)) < self.known_dropout,
            "drop_discovered": jax.random.uniform(discovered_key, (B, T)) < self.unknown_dropout,
            "present": masked_chunks(noise.sequences["masked"], batch["chunk_index"], batch["chunk_labels"].shape[1]),
        }
        shared = {
            "chunks": jnp.sum(drawn["present"]),
            "use_labels": jax.random.uniform(force_known) < _scheduled(self.known_forcing, cosine),
            "use_residual": jax.random.uniform(force_discovered) < _scheduled(self.unknown_forcing, progress),
        }
        return Draws({**batch, **noise.sequences, **drawn}, {**noise.shared, **shared})

    def loss(
        self, params: Params, drawn: Draws, progress: jax.Array, *, config: ModelConfig, compute: Compute
    ) -> tuple[jax.Array, Metrics]:
        """The weighted sum of the terms. Each is a mean over the batch's masked positions or chunks.

        Independence is not a sum over rows, so each micro-batch has its own, weighted by its share of the rows.
        """
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
        """The features (M, D) that the output projection reads, and the concepts' own losses."""
        assert config.concept is not None
        batch = drawn.sequences
        labels = batch["chunk_labels"]
        parts = decompose(params, rows.hidden, config=config, compute=compute, stop_discovered_gradient=True)
        known_view, spec = view_concepts(params, rows.hidden, "known", config, compute)
        known = parts.known.features
        labelled = label_features(known_view, labels, rows.chunk, compute)
        discovered = jnp.zeros_like(rows.hidden) if parts.discovered is None else parts.discovered.features
        composed = training_features(rows, known, discovered, labelled, drawn)
        # The warm-up scales the gradient that reaches the backbone through the query; the head's own tables get all.
        warmup = jnp.minimum(progress / max(self.concept_warmup, 1e-6), 1.0)
        warmed = known_view._replace(query=scale_gradient(known_view.query, warmup))
        presence = presence_loss(warmed, rows, labels, spec.block, compute.operands)
        terms = {"presence": presence * part_of(jnp.sum(batch["present"]), drawn.shared["chunks"])}
        if parts.discovered is not None:
            part = part_of(jnp.sum(rows.valid), drawn.shared["rows"])
            terms["residual"] = part * residual_loss(discovered, rows, labelled)
            terms["independence"] = part * independence_loss(known, discovered, rows.valid)
            if self.epsilon_independence_weight:
                terms["epsilon_independence"] = part * independence_loss(parts.residual, discovered, rows.valid)
        return composed, terms


# The metric that serves as the diffusion loss, by the weight of a token.
TOKEN_WEIGHTS = {"one": "diffusion", "inverse_t": "bound"}


def check_token_weight(weight: str) -> None:
    """Raises `UserError` unless `weight` is a token weight."""
    allowed = " or ".join(map(repr, TOKEN_WEIGHTS))
    require(weight in TOKEN_WEIGHTS, f"objective.token_weight is {weight!r}, but it must be {allowed}.")


# The setting that weights each of the concepts' terms.
_WEIGHTS = {
    "presence": "concept_weight",
    "residual": "residual_weight",
    "independence": "independence_weight",
    "epsilon_independence": "epsilon_independence_weight",
}


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
    """The loss of any objective on a whole batch, and its metrics; draws included."""
    return objective.loss(
        params, objective.draw(batch, key, progress, config), progress, config=config, compute=compute
    )


def diffusion_losses(params: Params, features: jax.Array, rows: MaskedRows, drawn: Draws, compute: Compute) -> Metrics:
    """The rows' part of the batch's cross-entropy, for features (M, D), in nats.

    diffusion: the mean over masked tokens. bound: each weighted by 1/t and divided by the number of tokens, which
    estimates the bound on the negative log-likelihood of a token.
    """
    nats = cross_entropy(params, features, rows.target, compute) * rows.valid
    return {
        "diffusion": part_of(jnp.sum(nats), drawn.shared["rows"]),
        "bound": part_of(jnp.sum(nats / rows.level), drawn.shared["tokens"]),
    }


def training_features(
    rows: MaskedRows, known: jax.Array, discovered: jax.Array, labelled: jax.Array, drawn: Draws
) -> jax.Array:
    """The features (M, D) that the output projection reads in training.

    Where epsilon is kept they are the hidden rows, to which k̂ + û + epsilon adds up. Where it is dropped they are
    k̂ + û, with teacher forcing and with dropout of k̂ and û.
    """

    def drops(name: str) -> jax.Array:
        return at_rows(drawn.sequences[name], rows.position)[:, None]

    k = jnp.where(drawn.shared["use_labels"] & (rows.chunk >= 0)[:, None], labelled, known)
    u = jnp.where(drawn.shared["use_residual"], rows.hidden - labelled, discovered)
    k = jnp.where(drops("drop_known"), 0.0, k)
    u = jnp.where(drops("drop_discovered"), 0.0, u)
    return jnp.where(drops("drop_epsilon"), (k + u).astype(rows.hidden.dtype), rows.hidden)


def _scheduled(pair: tuple[float, float], through: Any) -> jax.Array:
    return pair[0] + (pair[1] - pair[0]) * jnp.asarray(through)
