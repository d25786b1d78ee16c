"""What a contrast of positive and negative texts finds: a feature of each layer, and a built-in concept.

Legend: D width, C known concepts, n texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError, require
from steerling_jax.evaluation.feature_rules import best_rule, firing_differences
from steerling_jax.explain.text_features import read_text_features
from steerling_jax.inference import forward
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.progress import Progress
from steerling_jax.steering.config import SteeringConfig
from steerling_jax.steering.plan import SteeringPlan, prepare_steering
from steerling_jax.steering.resolve import suppression

_LENGTH = 128  # tokens of a text in which concepts are read


class Candidate(NamedTuple):
    """The feature of a layer with the largest Δ, and two directions (D,) of the same length: the feature's, as long as
    its mean strongest latent in positive texts, and that of the difference of mean hidden rows."""

    layer: int
    feature: int
    difference: float
    direction: np.ndarray
    means: np.ndarray


class ConceptCandidate(NamedTuple):
    """A known concept, and how much larger its mean strongest activation is in positive texts than in negative ones."""

    concept: int
    name: str
    difference: float


def find_candidates(
    bundle: Bundle,
    autoencoders: Sequence[Autoencoder],
    positive: Sequence[str],
    negative: Sequence[str],
    progress: Progress,
) -> list[Candidate]:
    """The feature of each layer that fires in the most positive texts more than in negative ones.

    Raises `UserError` for an autoencoder of the rows after the final norm, which no block puts out.
    """
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


def find_concept(
    bundle: Bundle, positive: Sequence[str], negative: Sequence[str], name: str | None, progress: Progress
) -> ConceptCandidate | None:
    """The known concept with the largest difference, or the one of a name; None for a model without known concepts.

    Raises `UserError` for a name that the model lacks, or that names several concepts.
    """
    config = bundle.config
    if not isinstance(config, ModelConfig) or config.concept is None:
        require(name is None, f"--concept names {name!r}, but {bundle.name} has no known concepts.", "concept")
        return None
    texts = [*positive, *negative]
    strongest = np.zeros((len(texts), config.concept.n_concepts))
    for number, text in enumerate(texts):
        progress("reading concepts", number, len(texts))
        strongest[number] = strongest_concepts(bundle, text)
    progress("reading concepts", len(texts), len(texts))
    differences = strongest[: len(positive)].mean(axis=0) - strongest[len(positive) :].mean(axis=0)
    if name is None:
        concept = int(np.argmax(differences))
    else:
        ids = bundle.concepts.resolve(name, "known")
        if len(ids) != 1:
            raise UserError(f"--concept names {name!r}, which are {len(ids)} concepts; name one.", "concept")
        concept = ids[0]
    names = bundle.concept_names
    return ConceptCandidate(concept, f"#{concept}" if names is None else names[concept], float(differences[concept]))


def strongest_concepts(bundle: Bundle, text: str) -> np.ndarray:
    """The largest activation (C,) of each known concept over the first 128 tokens of a text, 0 where it is not among
    the selected ones of any token."""
    assert isinstance(bundle.config, ModelConfig)
    assert bundle.config.concept is not None
    ids = np.asarray(bundle.tokenizer.encode(text)[:_LENGTH], np.int32)
    # One length, so that all texts share a program; a model with blocks sees masks after the text, as on a canvas.
    padded = np.pad(ids, (0, _LENGTH - len(ids)), constant_values=bundle.config.mask_token_id)
    parts = forward(bundle, padded).decomposition
    assert parts.known_topk_indices is not None
    assert parts.known_topk_logits is not None
    largest = np.zeros(bundle.config.concept.n_concepts)
    indices, logits = (a[0, : len(ids)].reshape(-1) for a in (parts.known_topk_indices, parts.known_topk_logits))
    np.maximum.at(largest, np.asarray(indices), np.asarray(jax.nn.sigmoid(logits), np.float64))
    return largest


def concept_plan(bundle: Bundle, concept: int, strength: float, suppress: bool) -> SteeringPlan:
    """The preset that amplifies a concept, or the one that suppresses it."""
    steering = (
        suppression((concept,), (concept,), strength)
        if suppress
        else SteeringConfig((concept,), mai_lm_target=strength)
    )
    return prepare_steering(bundle.params, steering, config=bundle.config, compute=bundle.compute)
