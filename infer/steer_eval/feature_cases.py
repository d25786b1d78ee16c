"""Steering by a feature that a contrast of texts finds, beside other directions of the same length and a prompt.

Layer and strength are chosen on one half of the prompts and measured on the other.

Legend: D width, L layers, n prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.decoding.generation import generate_many
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.errors import require
from steerling_jax.evaluation.binary_scores import auc_score
from steerling_jax.evaluation.feature_rules import best_rule, firing_differences
from steerling_jax.evaluation.intervals import Estimate, bootstrap
from steerling_jax.evaluation.text_metrics import repeated
from steerling_jax.evaluation.text_probes import logistic_probe
from steerling_jax.evaluation.words import count_table, vocabulary, words_of
from steerling_jax.explain.text_features import read_text_features
from steerling_jax.infer.steer_eval.neutral_loss import neutral_loss
from steerling_jax.models.edits import LayerEdit
from steerling_jax.progress import Progress

BROKEN = 0.5  # a text more of whose 3-grams are repeated is broken
RANDOM_DIRECTIONS = 3
NEUTRAL = 24  # negative texts whose loss is measured


class Candidate(NamedTuple):
    """The feature of a layer with the largest Δ, and two directions (D,) of the same length: the feature's, as long as
    its mean strongest latent in positive texts, and that of the difference of mean hidden rows."""

    layer: int
    feature: int
    difference: float
    direction: np.ndarray
    means: np.ndarray


class ArmFigures(NamedTuple):
    """Texts written under one condition. found: the share that the judge takes for positive, over prompts.

    damage: nats a token that the edit adds to the loss of neutral texts. repeated: the mean share of repeated 3-grams.
    failures: texts without the effect, or broken ones.
    """

    name: str
    layer: int | None
    strength: float | None
    found: Estimate
    damage: float
    repeated: float
    failures: int
    texts: list[str]


@dataclass(frozen=True)
class CaseSettings:
    """strengths: multiples of the feature's usual latent. suppress: the texts should be less like the positive ones.

    limit: the most nats a token of damage that a chosen condition has. seed: of texts, halves and random directions.
    """

    strengths: tuple[float, ...]
    new_tokens: int
    suppress: bool
    limit: float
    seed: int


@dataclass(frozen=True)
class SteeringCase:
    """candidates: of each layer. judge_auc: of the judge on texts that it was not fitted to. tuning: every condition on
    the first half of the prompts. chosen: the candidate and strength. arms: on the second half."""

    candidates: list[Candidate]
    judge_auc: float
    tuning: list[ArmFigures]
    chosen: tuple[Candidate, float]
    arms: list[ArmFigures]


def run_case(
    bundle: Bundle,
    autoencoders: Sequence[Autoencoder],
    positive: Sequence[str],
    negative: Sequence[str],
    prompts: Sequence[str],
    settings: CaseSettings,
    progress: Progress,
) -> SteeringCase:
    """Finds, chooses and measures. The negative texts are also the neutral ones. Raises `UserError` for too few texts,
    and for an autoencoder of the rows after the final norm, which no block puts out."""
    for name, texts in (("positive", positive), ("negative", negative), ("prompts", prompts)):
        require(len(texts) >= 4, f"There are {len(texts)} texts in the file of --{name}; give at least 4.", name)
    candidates = find_candidates(bundle, autoencoders, positive, negative, progress)
    judge, judge_auc = make_judge(positive, negative)
    order = np.random.default_rng(settings.seed).permutation(len(prompts))
    half = len(order) // 2
    first = [prompts[int(i)] for i in order[:half]]
    second = [prompts[int(i)] for i in order[half:]]
    neutral = negative[:NEUTRAL]
    before = neutral_loss(bundle, neutral, (), settings.seed)
    key = jax.random.key(settings.seed)

    def arm(
        name: str, texts: Sequence[str], vectors: Sequence[np.ndarray], layer: int | None, strength: float | None
    ) -> ArmFigures:
        """The figures of a condition; several vectors are used in turn, for all prompts each."""
        written, damage = [], []
        for vector in vectors or [None]:
            edits = () if vector is None else (push(vector, layer or 0, bundle.backbone.n_layers),)
            written.append(write_texts(bundle, texts, edits, settings))
            damage.append(neutral_loss(bundle, neutral, edits, settings.seed) - before)
        shares = np.mean([judge(one) for one in written], axis=0)
        loops = [[repeated(words_of(text), 3) or 0.0 for text in one] for one in written]
        missed = [judge(one) == settings.suppress for one in written]
        failed = int(np.sum(np.array(missed) | (np.array(loops) > BROKEN)))
        found = bootstrap(lambda at: float(shares[at].mean()), len(shares), key)
        flat = [text for one in written for text in one]
        return ArmFigures(name, layer, strength, found, float(np.mean(damage)), float(np.mean(loops)), failed, flat)

    tuning = [arm("nothing", first, [], None, None)]
    sign = -1.0 if settings.suppress else 1.0
    pairs = [(one, strength) for one in candidates for strength in settings.strengths]
    for number, (one, strength) in enumerate(pairs):
        progress("choosing layer and strength", number, len(pairs))
        tuning.append(arm("feature", first, [sign * strength * one.direction], one.layer, strength))
    progress("choosing layer and strength", len(pairs), len(pairs))
    chosen = pairs[choose(tuning[1:], settings)]
    one, strength = chosen
    length = float(np.linalg.norm(one.direction)) * strength
    normal = np.asarray(jax.random.normal(key, (RANDOM_DIRECTIONS, len(one.direction))))
    directions = [length * row / np.linalg.norm(row) for row in normal]
    arms = [
        arm("nothing", second, [], None, None),
        arm("feature", second, [sign * strength * one.direction], one.layer, strength),
        arm("random directions", second, directions, one.layer, strength),
        arm("difference of means", second, [sign * strength * one.means], one.layer, strength),
        arm("prompt", [f"{(negative if settings.suppress else positive)[0]}\n\n{text}" for text in second], [],
            None, None),
    ]  # fmt: skip
    return SteeringCase(candidates, judge_auc, tuning, chosen, arms)


def find_candidates(
    bundle: Bundle,
    autoencoders: Sequence[Autoencoder],
    positive: Sequence[str],
    negative: Sequence[str],
    progress: Progress,
) -> list[Candidate]:
    """The feature of each layer that fires in the most positive texts more than in negative ones."""
    labels = np.arange(len(positive) + len(negative)) < len(positive)
    layers = read_text_features(bundle, autoencoders, [*positive, *negative], progress)
    differences = firing_differences([one.strongest for one in layers], labels)
    candidates = []
    for place, (autoencoder, features) in enumerate(zip(autoencoders, layers, strict=True)):
        require(autoencoder.layer is not None, "Steering needs an autoencoder of a block's output; this one reads the "
                "rows after the final norm.", "autoencoder")  # fmt: skip
        assert autoencoder.layer is not None
        rule = best_rule(differences, 1, [place])
        feature = int(rule.features[0])
        latents = features.strongest[:, [feature]].toarray()[:, 0][labels]
        usual = float(latents[latents > 0].mean()) if (latents > 0).any() else 0.0
        direction = usual * np.asarray(autoencoder.weights.W_dec[feature], np.float32)
        means = features.mean[labels].mean(axis=0) - features.mean[~labels].mean(axis=0)
        means *= np.linalg.norm(direction) / max(float(np.linalg.norm(means)), 1e-12)
        candidates.append(Candidate(autoencoder.layer, feature, float(rule.differences[0]), direction, means))
    return candidates


def make_judge(positive: Sequence[str], negative: Sequence[str]) -> tuple[Callable[[Sequence[str]], np.ndarray], float]:
    """A judge of texts by their words, (n,) bool, and its AUC when fitted to every second text and tested on others."""
    texts = [words_of(text) for text in (*positive, *negative)]
    labels = np.arange(len(texts)) < len(positive)

    def fit(chosen: np.ndarray) -> Callable[[list[list[str]]], np.ndarray]:
        own = [texts[i] for i in np.flatnonzero(chosen)]
        columns = vocabulary(own, least=2)
        scores = logistic_probe(count_table(own, columns), labels[chosen])
        return lambda others: scores(count_table(others, columns))

    even = np.arange(len(texts)) % 2 == 0
    area = auc_score(fit(even)([texts[i] for i in np.flatnonzero(~even)]), labels[~even])
    judge = fit(np.ones(len(texts), bool))
    return lambda others: judge([words_of(text) for text in others]) > 0, area


def push(vector: np.ndarray, layer: int, n_layers: int) -> LayerEdit:
    """The edit that adds a vector (D,) to the output of a block at every position.

    It names all layers, so that edits of different blocks share the decoder's programs.
    """
    return LayerEdit(push=jnp.asarray(vector)[None, None, None, :], layers=jnp.arange(n_layers) == layer)


def write_texts(
    bundle: Bundle, prompts: Sequence[str], edits: tuple[LayerEdit, ...], settings: CaseSettings
) -> list[str]:
    """A continuation of each prompt; the same seeds under every condition."""
    seeds = [settings.seed + i for i in range(len(prompts))]
    config = GenerationConfig(max_new_tokens=settings.new_tokens)
    texts = generate_many(bundle, list(prompts), config, seeds=seeds, edits=edits, record_hidden=False)
    return [one.text for one in texts]


def choose(tuning: Sequence[ArmFigures], settings: CaseSettings) -> int:
    """The condition with the largest effect among those within the limit of damage, or the one with the least damage;
    the weaker strength among equals."""
    sign = -1.0 if settings.suppress else 1.0
    within = [i for i, one in enumerate(tuning) if one.damage <= settings.limit]
    if not within:
        return int(np.argmin([one.damage for one in tuning]))
    return max(within, key=lambda i: (sign * tuning[i].found.mean, -(tuning[i].strength or 0.0), -i))
