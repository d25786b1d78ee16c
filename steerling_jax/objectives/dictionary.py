"""The objective of models whose discovered concepts are a dictionary: for a frozen backbone, and end to end.

    loss = d · diffusion + l · likeness + r · reconstruction + a · auxiliary + c · presence + k · known

All terms read the bottleneck's own sum, `composed = k̂ + û + offset` (`decompose`); there is no epsilon in it.
- diffusion: the cross-entropy of the masked tokens.
- likeness: KL(p ‖ q) of the distribution p that the hidden state itself gives and q that of `composed`.
- reconstruction: the share of the hidden states' variance that `composed` leaves.
- auxiliary: dead concepts of the dictionary explain what it leaves (`dictionary_losses.auxiliary_loss`).
- presence: the labels of chunks (`concept_losses.presence_loss`).
- known: the share of the hidden states' variance that known concepts and the offset leave by themselves. It trains the
  known embeddings alone: they carry as much as their activations can, and the dictionary the rest.

A model is trained in stages, each a run of its own that starts from the one before: the backbone without concepts
(`pretraining`), the heads on the frozen backbone, and then everything. Within a run the weights d, l and r change once,
at `switch`.

Legend: B sequences, T positions, M rows (masked positions), D width, C discovered concepts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax

from steerling_jax.concepts.heads import view_concepts
from steerling_jax.errors import require, require_share
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.config import ModelConfig, concept_counts
from steerling_jax.models.steerling.decompose import Parts, decompose
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.objectives.concept_losses import presence_loss
from steerling_jax.objectives.dictionary_losses import auxiliary_loss, divergence, offer_dead, unexplained, uses
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.objective import Batch, Draws, Metrics, draw_noise, part_of
from steerling_jax.objectives.pretraining import TOKEN_WEIGHTS, check_token_weight, diffusion_losses
from steerling_jax.objectives.rows import MaskedRows, at_rows, gather_rows, masked_chunks

USES = "uses"  # in how many rows each concept was used, (C,) float32, among the metrics of `DictionaryObjective.loss`
IDLE = "idle"  # the steps since each concept was used, (C,) int32, among `Draws.shared`


@dataclass(frozen=True)
class DictionaryObjective:
    """Weights of the losses, and what is trained.

    Pairs are weights before and from the share `switch` of the run on.

    backbone: 'frozen' trains the concept heads alone, on the hidden states of the given model; 'trained' everything.
    initial: 'data' makes a new dictionary from the hidden states of the first batches, 'given' keeps the one that the
    run starts from.
    diffusion, likeness, reconstruction: see the module. token_weight: of a masked token in `diffusion`, 1 or 1/t.
    known_weight, concept_weight, auxiliary_weight: of the terms known, presence and auxiliary.
    discovered_dropout: the share of masked positions whose token is predicted without the dictionary in `diffusion`.
    auxiliary_concepts: dead concepts that explain a row together (None: half the width). dead_after: a concept is dead
    when it was not used in so many steps. most_dead: dead concepts that are offered in a step.
    rows: the share of a sequence's positions that there are rows for; it must exceed the share of masked positions.
    """

    kind: ClassVar[str] = "dictionary"

    noise: NoiseConfig = field(default_factory=NoiseConfig)
    backbone: Literal["frozen", "trained"] = "frozen"
    initial: Literal["data", "given"] = "data"
    switch: float = 0.5
    diffusion: tuple[float, float] = (0.0, 0.0)
    likeness: tuple[float, float] = (0.0, 1.0)
    reconstruction: tuple[float, float] = (1.0, 0.1)
    token_weight: Literal["one", "inverse_t"] = "one"
    known_weight: float = 1.0
    concept_weight: float = 0.1
    auxiliary_weight: float = 1 / 32
    discovered_dropout: float = 0.0
    auxiliary_concepts: int | None = None
    dead_after: int = 200
    most_dead: int = 256
    rows: float = 1.0

    def __post_init__(self) -> None:
        check_token_weight(self.token_weight)
        require_share("objective.rows", self.rows)
        for name, allowed in (("backbone", ("frozen", "trained")), ("initial", ("data", "given"))):
            value = getattr(self, name)
            require(
                value in allowed, f"objective.{name} is {value!r}, but it must be {' or '.join(map(repr, allowed))}."
            )
        for name in ("diffusion", "likeness", "reconstruction"):
            pair = getattr(self, name)
            require(
                isinstance(pair, Sequence) and len(pair) == 2 and all(weight >= 0 for weight in pair),
                f"objective.{name} is {pair}, but it must be two weights, before and after the switch, of at least 0.",
            )
        for name in ("switch", "discovered_dropout"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"objective.{name} is {value}, but it must be between 0 and 1.")
        for name in ("dead_after", "most_dead"):
            value = getattr(self, name)
            require(value >= 1, f"objective.{name} is {value}, but it must be at least 1.")

    @property
    def heads_only(self) -> bool:
        """Whether the backbone is frozen."""
        return self.backbone == "frozen"

    def draw(self, batch: Batch, key: jax.Array, progress: jax.Array, config: ModelConfig) -> Draws:
        """The random draws of a step; see `Objective.draw`. The batch is that of pre-training."""
        level_key, mask_key, drop_key, offer_key = jax.random.split(key, 4)
        noise = draw_noise(level_key, mask_key, batch["tokens"], progress, self.noise, self.rows, config)
        drawn = {
            "present": masked_chunks(noise.sequences["masked"], batch["chunk_index"], batch["chunk_labels"].shape[1]),
            "drop_discovered": jax.random.uniform(drop_key, batch["tokens"].shape) < self.discovered_dropout,
        }
        order = jax.random.uniform(offer_key, (concept_counts(config)[1],))
        shared = {"chunks": jnp.sum(drawn["present"]), "order": order}
        return Draws({**batch, **noise.sequences, **drawn}, {**noise.shared, **shared})

    def loss(
        self, params: Params, drawn: Draws, progress: jax.Array, *, config: ModelConfig, compute: Compute
    ) -> tuple[jax.Array, Metrics]:
        """The weighted sum of the terms. Each is a mean over the batch's masked positions or chunks; the shares of
        variance are each micro-batch's own, weighted by its share of the rows.

        `drawn.shared` has IDLE; the metrics have USES, which is an array.
        """
        if self.heads_only:
            heads = {name: params[name] for name in ("known_head", "unknown_head")}
            params = {**lax.stop_gradient(params), **heads}
        batch = drawn.sequences
        context = self.noise.clean_context
        hidden = denoise(params, batch["tokens"], batch["noisy"], config=config, compute=compute, clean_context=context)
        rows = gather_rows(hidden, batch, batch["levels"], batch["masked"], config.diff_block_size, self.rows)
        parts = decompose(params, rows.hidden, config=config, compute=compute)
        part = part_of(jnp.sum(rows.valid), drawn.shared["rows"])
        terms = self._variance_terms(params, parts, rows, drawn, config, compute)
        terms = {name: part * value for name, value in terms.items()}
        terms |= self._token_terms(params, parts, rows, drawn, progress, compute)
        view, spec = view_concepts(params, rows.hidden, "known", config, compute)
        presence = presence_loss(view, rows, batch["chunk_labels"], spec.block, compute.operands)
        terms["presence"] = presence * part_of(jnp.sum(batch["present"]), drawn.shared["chunks"])
        weighted = {**_WEIGHTS, TOKEN_WEIGHTS[self.token_weight]: "diffusion"}
        loss = jnp.zeros(())
        for name, setting in weighted.items():
            if name in terms:
                loss = loss + self._weight(setting, progress) * terms[name]
        assert parts.discovered is not None
        idle = drawn.shared[IDLE]
        counts = {
            USES: uses(parts.discovered, rows.valid, len(idle)),
            "dead": part * jnp.mean((idle >= self.dead_after).astype(jnp.float32)),
            "rows_dropped": jnp.sum(batch["left_out"]).astype(jnp.float32),
        }
        return loss, {**terms, **counts, "loss": loss}

    def _weight(self, setting: str, progress: jax.Array) -> Any:
        weight = getattr(self, setting)
        return weight if isinstance(weight, float | int) else jnp.where(progress < self.switch, *weight)

    def _variance_terms(
        self, params: Params, parts: Parts, rows: MaskedRows, drawn: Draws, config: ModelConfig, compute: Compute
    ) -> Metrics:
        """The terms that are shares of the hidden states' variance."""
        terms = {"reconstruction": unexplained(rows.hidden, parts.concept_features, rows.valid)}
        fixed = lax.stop_gradient(rows.hidden)
        known = parts.known
        view, spec = view_concepts(params, fixed, "known", config, compute)
        weights = lax.stop_gradient(known.topk_weights)
        alone = bn.mix_concepts(view, known.topk_indices, weights, spec.block, compute)
        if parts.offset is not None:
            alone = alone + lax.stop_gradient(parts.offset)
        terms["known"] = unexplained(fixed, alone, rows.valid)
        if self.auxiliary_weight:
            view, _ = view_concepts(params, fixed, "discovered", config, compute)
            ids, dead = offer_dead(drawn.shared[IDLE], drawn.shared["order"], self.dead_after, self.most_dead)
            k = self.auxiliary_concepts or config.n_embd // 2
            terms["auxiliary"] = auxiliary_loss(view, parts.residual, rows.valid, ids, dead, k, compute.operands)
        return terms

    def _token_terms(
        self, params: Params, parts: Parts, rows: MaskedRows, drawn: Draws, progress: jax.Array, compute: Compute
    ) -> Metrics:
        """The terms that need logits; each is computed only where its weight is not 0."""
        features = parts.concept_features

        def likeness() -> Metrics:
            nats = divergence(params, rows.hidden, features, compute) * rows.valid
            return {"likeness": part_of(jnp.sum(nats), drawn.shared["rows"])}

        def diffusion() -> Metrics:
            read = features
            if self.discovered_dropout:
                assert parts.discovered is not None
                drop = at_rows(drawn.sequences["drop_discovered"], rows.position)[:, None]
                read = jnp.where(drop, features - parts.discovered.features, features)
            return diffusion_losses(params, read, rows, drawn, compute)

        return self._where_used(self.likeness, likeness, progress) | self._where_used(
            self.diffusion, diffusion, progress
        )

    def _where_used(self, weights: tuple[float, float], term: Callable[[], Metrics], progress: jax.Array) -> Metrics:
        if not any(weights):
            return {}
        if all(weights):
            return term()
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(term))
        return lax.cond((progress < self.switch) == bool(weights[0]), term, lambda: zeros)


# The setting that weights each term, beside the diffusion term, which is one of two metrics (`TOKEN_WEIGHTS`).
_WEIGHTS = {
    "likeness": "likeness",
    "reconstruction": "reconstruction",
    "known": "known_weight",
    "presence": "concept_weight",
    "auxiliary": "auxiliary_weight",
}
