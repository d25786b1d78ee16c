"""The objective of steering training: the model learns to write text that follows an injected concept.

    loss = diffusion + respond_weight · respond + express_weight · express

In a chunk that has the concept c, γ·e_c is added to the layer outputs at masked positions, exactly as steering injects
it in decoding: γ times the unit embedding, where γ is a strength in logits of the token that the direction promotes
most. `diffusion` is the cross-entropy of the masked tokens, as in pre-training. On the injected ("pushed") positions t,
`respond` is `−mean log k_ct`, with k_ct the activation of c, and `express` is `−mean log Σ_{w ∈ lift(c)} p(w)`.

The direction has no gradient, so the model is trained to follow it: the layers, the token embeddings and the known
head's scores are trained; the concepts' embeddings and the discovered head are not.

Source: the Steerling authors' posts, as collected in docs/design/training.md; strengths and shares are our choice.

Legend: B sequences, T positions, M rows, S chunks of a sequence, W lifted tokens of a concept, V vocabulary, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from jax import lax

from steerling_jax.concepts.heads import view_concepts
from steerling_jax.errors import require, require_share
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.edits import LayerEdit, from_layer, inject
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.backbone import lm_head_weight, lm_logits
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import logit_features
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.objective import Batch, Draws, Metrics, draw_noise, part_of
from steerling_jax.objectives.pretraining import TOKEN_WEIGHTS, check_token_weight
from steerling_jax.objectives.rows import MaskedRows, at_rows, gather_rows
from steerling_jax.parallel.lookup import look_up


@dataclass(frozen=True)
class SteeringObjective:
    """Settings of the objective.

    token_weight: the weight of a masked token in the diffusion loss, 1 or 1/t.
    strength: the smallest and largest strength in logits; drawn for each chunk, uniformly in its logarithm.
    pushed: the share of the chunks with a concept that are pushed; the other chunks are ordinary text.
    inject_layer: as in `SteeringConfig`, numbered from 1; None for half the layers.
    least_lift, support, most_lifted: which tokens a concept lifts, as `lift.lifted_tokens` takes them.
    rows: the share of a sequence's positions that there are rows for; it must exceed the share of masked positions.
    """

    kind: ClassVar[str] = "steering"

    noise: NoiseConfig = field(default_factory=NoiseConfig)
    token_weight: Literal["one", "inverse_t"] = "one"
    respond_weight: float = 1.0
    express_weight: float = 1.0
    strength: tuple[float, float] = (2.0, 8.0)
    pushed: float = 0.5
    inject_layer: int | None = None
    least_lift: float = 2.0
    support: int = 5
    most_lifted: int = 20
    rows: float = 1.0

    def __post_init__(self) -> None:
        check_token_weight(self.token_weight)
        require_share("objective.rows", self.rows)
        require_share("objective.pushed", self.pushed)
        low, high = self.strength
        require(0 < low <= high, f"objective.strength is {self.strength}, but it must be two numbers, 0 < low ≤ high.")
        for name in ("support", "most_lifted"):
            require(getattr(self, name) >= 1, f"objective.{name} is {getattr(self, name)}, but it must be at least 1.")

    def draw(self, batch: Batch, key: jax.Array, progress: jax.Array, config: ModelConfig) -> Draws:
        """The random draws of a step; see `Objective.draw`.

        batch: tokens and chunk_index (B, T); concept (B, S), the one of each chunk's concepts that may be pushed, −1
        for none; lifted (B, S, W), the tokens that this concept lifts, −1 unused; all int32.
        """
        level_key, mask_key, choice_key, strength_key = jax.random.split(key, 4)
        noise = draw_noise(level_key, mask_key, batch["tokens"], progress, self.noise, self.rows, config)
        concept = batch["concept"]
        chosen = (concept >= 0) & (jax.random.uniform(choice_key, concept.shape) < self.pushed)
        low, high = map(math.log, self.strength)
        strength = jnp.exp(low + (high - low) * jax.random.uniform(strength_key, concept.shape))
        pushed = _of_chunk(chosen, batch["chunk_index"], False) & noise.masked
        drawn = {"pushed": pushed, "strength": jnp.where(chosen, strength, 0.0)}
        shared = {"pushed": jnp.sum(pushed & noise.sequences["masked"])}
        return Draws({**batch, **noise.sequences, **drawn}, {**noise.shared, **shared})

    def loss(
        self, params: Params, drawn: Draws, progress: jax.Array, *, config: ModelConfig, compute: Compute
    ) -> tuple[jax.Array, Metrics]:
        """The weighted sum of the terms, each a mean over the batch's masked or pushed positions."""
        batch, shared = drawn.sequences, drawn.shared
        hidden = denoise(
            params,
            batch["tokens"],
            batch["noisy"],
            config=config,
            compute=compute,
            clean_context=self.noise.clean_context,
            edits=[self.injection(params, batch, config, compute)],
        )
        rows = gather_rows(hidden, batch, batch["levels"], batch["masked"], config.diff_block_size, self.rows)
        logits = lm_logits(params, logit_features(params, rows.hidden, config, compute), compute)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, rows.target) * rows.valid
        pushed = at_rows(batch["pushed"], rows.position) * rows.valid
        chunk = jnp.maximum(rows.chunk, 0).reshape(rows.position.shape)
        concept = jnp.maximum(at_rows(batch["concept"], chunk), 0)
        respond = jnp.sum(pushed * respond_nats(params, rows, concept, config, compute))
        express = jnp.sum(pushed * express_nats(logits, at_rows(batch["lifted"], chunk)))
        metrics = {
            "diffusion": part_of(jnp.sum(nats), shared["rows"]),
            "bound": part_of(jnp.sum(nats / rows.level), shared["tokens"]),
            "respond": part_of(respond, shared["pushed"]),
            "express": part_of(express, shared["pushed"]),
            "rows_dropped": jnp.sum(batch["left_out"]).astype(jnp.float32),
        }
        loss = metrics[TOKEN_WEIGHTS[self.token_weight]]
        loss = loss + self.respond_weight * metrics["respond"] + self.express_weight * metrics["express"]
        return loss, metrics

    def injection(self, params: Params, batch: Batch, config: ModelConfig, compute: Compute) -> LayerEdit:
        """What is added at the pushed positions; without gradient."""
        table, head = (lax.stop_gradient(w) for w in (_known_embeddings(params), lm_head_weight(params)))
        rows = look_up(table, jnp.maximum(batch["concept"], 0), "float32")
        unit = rows / (jnp.linalg.norm(rows, axis=-1, keepdims=True) + 1e-12)  # (B, S, D)
        peak = jnp.max(jnp.einsum("bsd,vd->bsv", unit, head.astype(jnp.float32)), axis=-1)
        push = (batch["strength"] / jnp.maximum(peak, 1e-6))[..., None] * unit
        direction = _of_chunk(push.astype(compute.dtype), batch["chunk_index"], 0.0)
        direction = jnp.where(batch["pushed"][..., None], direction, 0.0)
        layer = config.n_layers // 2 if self.inject_layer is None else self.inject_layer
        return inject(direction, layers=from_layer(layer, config.n_layers))


def respond_nats(
    params: Params, rows: MaskedRows, concept: jax.Array, config: ModelConfig, compute: Compute
) -> jax.Array:
    """−log k in nats, float32 (M,), of each row's own concept, ids `concept` (M,)."""
    view, _ = view_concepts(params, rows.hidden, "known", config, compute)
    # −log sigmoid(z) = softplus(−z), which does not overflow.
    return jax.nn.softplus(-bn.logits_of(view, concept[:, None], compute.operands)[:, 0])


def express_nats(logits: jax.Array, members: jax.Array) -> jax.Array:
    """−log Σ p(w) over the tokens members (M, W), −1 unused, float32 (M,), for logits (M, V); finite without any."""
    picked = jnp.take_along_axis(logits, jnp.maximum(members, 0), axis=1)
    inside = jax.nn.logsumexp(jnp.where(members >= 0, picked, -1e9), axis=1)  # −inf would have NaN as its gradient
    return jax.nn.logsumexp(logits, axis=1) - inside


def _known_embeddings(params: Params) -> jax.Array:
    return params["known_head"]["concept_embedding"]["weight"]


def _of_chunk(values: jax.Array, chunk_index: jax.Array, otherwise: float | bool) -> jax.Array:
    """The values (B, S, …) of each position's chunk, (B, T, …); `otherwise` at positions of no chunk."""
    taken = jnp.take_along_axis(
        values, jnp.maximum(chunk_index, 0).reshape(*chunk_index.shape, *[1] * (values.ndim - 2)), axis=1
    )
    inside = (chunk_index >= 0).reshape(*chunk_index.shape, *[1] * (values.ndim - 2))
    return jnp.where(inside, taken, otherwise)
