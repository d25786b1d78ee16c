"""Instruction tuning of decoders with a term against unwanted changes of language, by features of autoencoders.

Source: SASFT (arXiv 2507.14894). A model that starts to write in another language has, before that, a high
pre-activation of that language's features. So on samples of other languages, pre-activations are held down to what is
usual there:

    L = cross-entropy + weight · Σ ReLU(pre_f − mean_{lang, f}) / (pairs + 1)

The sum is over all pairs of an answer's position and a feature f of another language than the sample's; `pairs` is
their number in the batch, and `mean_{lang, f}` the feature's mean pre-activation in texts of the sample's language.
Positions are those that predict a token of the answer, where a change of language would be decided.

The controls are settings of the same objective: random features, the probability of tokens in other scripts, and none.

Legend: B sequences, T positions, D width, F features of a layer, L languages, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from steerling_jax.autoencoders.language_features import FeatureTable, LanguageFeatures, feature_tables
from steerling_jax.errors import UserError, require
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.families import AnyConfig, model_backbone
from steerling_jax.objectives.next_token import NextTokenObjective, over_positions
from steerling_jax.objectives.objective import Batch, Draws, Metrics, part_of

Penalty = Literal["features", "random_features", "script_tokens", "none"]
PENALTIES: tuple[Penalty, ...] = ("features", "random_features", "script_tokens", "none")


@dataclass(frozen=True, kw_only=True)
class LanguageObjective(NextTokenObjective):
    """Settings of the objective.

    features: the features of languages (`io.language_features_file.read_language_features`), with which also the
    controls know the languages and their scripts.
    penalty: what is added to the cross-entropy. "features": the term above on the monolingual features.
    "random_features": the same on the random ones. "script_tokens": the probability of all tokens that have a letter of
    another language's script and none of the sample's own, meaned over the answers' positions. "none": nothing.
    weight: the factor of what is added, λ. The paper has 5e-4 to 1e-3 for its features; pre-activations have no common
    scale, so another model needs another weight.
    """

    kind: ClassVar[str] = "language"

    features: LanguageFeatures
    masked: float = 0.0
    penalty: Penalty = "features"
    weight: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.penalty in PENALTIES, f"objective.penalty is {self.penalty!r}, but it must be one of {PENALTIES}.")
        require(
            0 <= self.weight < float("inf"), f"objective.weight is {self.weight}, but it must be at least 0 and finite."
        )

    @cached_property
    def tables(self) -> dict[int, FeatureTable]:
        """The features of the penalty by layer; none for a penalty without features."""
        if self.penalty == "features":
            return feature_tables(self.features.monolingual)
        return feature_tables(self.features.random) if self.penalty == "random_features" else {}

    def check_fits(self, config: DecoderConfig) -> None:
        """Raises `UserError` if the features are of a model of another shape, or if no token can be penalised."""
        for layer, table in self.tables.items():
            width = len(table.columns)
            if width != config.width or layer >= config.n_layers:
                raise UserError(
                    f"objective.features reads rows of width {width} of layer {layer}, but the model has width "
                    f"{config.width} and layers 0 to {config.n_layers - 1}; make features with this model."
                )
        if self.penalty == "script_tokens":
            unwanted = self.features.unwanted_tokens()
            require(
                unwanted.shape[1] in (0, config.vocab_size),
                f"objective.features has {unwanted.shape[1]} tokens, but the model {config.vocab_size}; make features "
                "with this model.",
            )
            require(
                bool(unwanted.any()),
                "objective.penalty is 'script_tokens', but no token is of another language's script; use 'features'.",
            )

    def check_start(self, fingerprint: str, name: str) -> None:
        """Raises `UserError` unless the features are of the model with this fingerprint, called `name`."""
        require(
            self.features.model == fingerprint,
            f"objective.features was made with another model than {name}, from which the run starts; make features of "
            "that model with `steerling sae languages`.",
        )

    def draw(self, batch: Batch, key: jax.Array, progress: jax.Array, config: AnyConfig) -> Draws:
        """As `NextTokenObjective.draw`, with the language of each sample, and the number of pairs in the batch.

        batch: also language (B,) int32.
        """
        drawn = super().draw(batch, key, progress, config)
        language, counted = batch["language"], drawn.sequences["counted"]
        pairs = jnp.zeros((), jnp.int32)
        for table in self.tables.values():
            foreign = jnp.asarray(table.language)[None, :] != language[:, None]
            pairs += jnp.sum(jnp.sum(counted, axis=1, keepdims=True) * foreign)
        return Draws({**drawn.sequences, "language": language}, {**drawn.shared, "pairs": pairs})

    def loss(
        self, params: Params, drawn: Draws, progress: jax.Array, *, config: AnyConfig, compute: Compute
    ) -> tuple[jax.Array, Metrics]:
        """The mean cross-entropy of the answers' tokens plus the weighted penalty; both are metrics, the penalty
        (`penalty`) without its weight."""
        sequences, shared = drawn.sequences, drawn.shared
        backbone = model_backbone(config, compute)
        result = backbone.run(params, backbone.embed(params, sequences["noisy"]), capture=tuple(self.tables))
        counted, language = sequences["counted"], sequences["language"]
        unwanted = None
        if self.penalty == "script_tokens":
            unwanted = jnp.asarray(self.features.unwanted_tokens())[language]

        def scores(hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = backbone.logits(params, hidden)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return nats, jnp.zeros_like(nats) if unwanted is None else probability_of(logits, unwanted)

        nats, mass = over_positions(scores, result.hidden, sequences["target"])
        mean = part_of(jnp.sum(nats * counted), shared["next"])
        penalty = part_of(jnp.sum(mass * counted), shared["next"])
        if self.tables:
            excess = [
                pre_activation_excess(result.captured[layer], language, counted, table)
                for layer, table in self.tables.items()
            ]
            penalty = sum(excess) / (shared["pairs"] + 1)
        return mean + self.weight * penalty, {"next": mean, "penalty": jnp.asarray(penalty)}


def pre_activation_excess(hidden: jax.Array, language: jax.Array, counted: jax.Array, table: FeatureTable) -> jax.Array:
    """Σ ReLU(pre_f − mean_{lang, f}) over counted positions and features f of other languages than the sample's.

    hidden (B, T, D): outputs of the table's layer. language (B,) int32: of each sample. counted (B, T) bool. Returns a
    float32 scalar.
    """
    columns, means = jnp.asarray(table.columns), jnp.asarray(table.means)
    pre = jnp.einsum("btd,df->btf", hidden.astype(jnp.float32), columns, precision=jax.lax.Precision.HIGHEST)
    pre = pre + jnp.asarray(table.bias)[None, None, :]
    # Only features of other languages count: a Korean text may have as much of the Korean ones as it needs.
    foreign = jnp.asarray(table.language)[None, :] != language[:, None]
    pairs = counted[:, :, None] & foreign[:, None, :]
    return jnp.sum(jnp.where(pairs, jax.nn.relu(pre - means[language][:, None, :]), 0.0))


def probability_of(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """The probability (B, n) of a set of tokens (B, V) bool, for logits (B, n, V)."""
    return jnp.sum(jax.nn.softmax(logits, axis=-1), axis=-1, where=tokens[:, None, :])
