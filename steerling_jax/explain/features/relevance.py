"""Features about something: a description in words, scored against the names and the promoted tokens of features.

Legend: S features, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.concept import Concept
from steerling_jax.errors import require
from steerling_jax.explain.feature_texts import promoted_tokens_of
from steerling_jax.explain.naming.units import stem, text_units

_PROMOTED = 12  # tokens of each feature
# Some feature promotes each of these, and they say nothing about a subject.
_FUNCTION_WORDS = """
    a an and any are as at be but by for from has have in into is it its not of on or such that the their them these
    they this those to was were which who will with
"""
_IN_PROMOTED = 0.5  # of a word of a name: a promoted token is one of many


class RelevantFeature(NamedTuple):
    """A feature and its score, from 0 to 1: the weighted share of the description's words that it has."""

    feature: int
    score: float


def features_about(bundle: Bundle, autoencoder: Autoencoder, description: str, count: int) -> list[RelevantFeature]:
    """The `count` features with the largest scores above 0, see `relevance`. Names are those of the autoencoder's
    `features.json`; without one, promoted tokens decide alone.

    Raises `UserError` for a description without words, and where no feature has any of them.
    """
    require(count >= 1, f"count is {count}, but it must be at least 1.", "count")
    entries = {one.id: one for one in autoencoder.features}
    S = autoencoder.n_latents
    promoted = promoted_tokens_of(bundle, autoencoder, range(S), _PROMOTED)
    scores = relevance(description, [_name_of(entries.get(i)) for i in range(S)], promoted)
    ranked = sorted(range(S), key=lambda i: (-scores[i], i))[:count]
    relevant = [RelevantFeature(i, scores[i]) for i in ranked if scores[i] > 0]
    require(
        bool(relevant),
        f"No feature has a word of {description!r} in its name or among the tokens that it promotes; use other words, "
        "or texts with --positive and --negative.",
        "description",
    )
    return relevant


def relevance(description: str, names: Sequence[str], promoted: Sequence[Sequence[str]]) -> list[float]:
    """A score for each feature, from 0 to 1, from its name and the tokens that it promotes, (S,) each.

    Each word of the description has a weight, the logarithm of S over the number of features that have it at all. The
    score is the weight of the words in the name, plus half of that of words among the promoted tokens only, over the
    weight of all words that any feature has. Words are compared without their endings, and function words do not count.
    A promoted token is often the beginning of a word, and counts from four letters on.

    Raises `UserError` for a description without words.
    """
    spelled = [(unit, word) for unit, word in text_units(description) if word[0].isalnum()]
    words = list(dict.fromkeys(unit for unit, word in spelled if word not in _FUNCTION_WORDS.split()))
    require(bool(words), f"The description {description!r} has no words; describe what the features are about.",
            "description")  # fmt: skip
    in_names = [{unit for unit, _ in text_units(name)} for name in names]
    in_tokens = [{stem(token.strip()) for token in tokens if token.strip()} for tokens in promoted]
    found: list[dict[str, float]] = []
    holders: Counter[str] = Counter()
    for name, tokens in zip(in_names, in_tokens, strict=True):
        hits = {}
        for word in words:
            if word in name:
                hits[word] = 1.0
            elif word in tokens or any(len(token) >= 4 and word.startswith(token) for token in tokens):
                hits[word] = _IN_PROMOTED
        found.append(hits)
        holders.update(hits)
    weights = {word: math.log((1 + len(names)) / number) for word, number in holders.items()}
    total = sum(weights.values())
    return [sum(weights[word] * value for word, value in hits.items()) / total if total else 0.0 for hits in found]


def _name_of(entry: Concept | None) -> str:
    return "" if entry is None else " ".join((entry.name if entry.is_named else "", *entry.words, entry.description))
