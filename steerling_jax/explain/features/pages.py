"""A feature's page: what it is about on some texts, what its direction promotes, its name and the features near it.

Legend: S features, J of them, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.model_fit import check_features
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.concept import Concept
from steerling_jax.errors import require
from steerling_jax.explain.feature_texts import TextLatents, text_latents
from steerling_jax.explain.features.direct_logits import direct_logits, histogram
from steerling_jax.explain.features.names import name_features
from steerling_jax.progress import Progress, no_progress

_AROUND = 12  # tokens before and after the strongest one that a passage shows
_NEAREST = 5
_BINS = 30  # of the histogram of latents


class Passage(NamedTuple):
    """A place where a feature is strong: the number of its text, the latent, and the tokens around the strongest one
    as (text, latent), with the place of the strongest."""

    text: int
    value: float
    pieces: tuple[tuple[str, float], ...]
    at: int


@dataclass(frozen=True)
class FeaturePage:
    """What a feature is about, on some texts.

    density: the share of the tokens at which it is kept. mean, largest: of its latent, where kept. latents: a histogram
    of it, where kept, as (middle of the bin, tokens). promoted, suppressed: the tokens whose logits its direction
    raises and lowers most, with these logits in promoted_logits and suppressed_logits; logits: a histogram of all.
    passages: its strongest ones, at most one of a text. entry: its name with how well it predicts, on texts that did
    not serve to choose it, where the feature is active (`explain.features.names`). nearest: the features whose
    directions are most like its own, with the cosines. tokens: how many were read.
    """

    feature: int
    density: float
    mean: float
    largest: float
    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]
    passages: tuple[Passage, ...]
    latents: tuple[tuple[float, int], ...]
    promoted_logits: tuple[float, ...]
    suppressed_logits: tuple[float, ...]
    logits: tuple[tuple[float, int], ...]
    entry: Concept
    nearest: tuple[tuple[int, float], ...]
    tokens: int


def feature_pages(
    bundle: Bundle,
    autoencoder: Autoencoder,
    features: Sequence[int],
    texts: Sequence[str],
    *,
    passages: int = 5,
    words: int = 10,
    progress: Progress = no_progress,
) -> list[FeaturePage]:
    """A page for each of the features. Raises `UserError` for a feature that does not exist, and without texts."""
    require(len(texts) > 0, "There are no texts; give some in which features may be strong.", "texts")
    check_features(autoencoder, features)
    parts = list(text_latents(bundle, autoencoder, texts, progress))
    entries = name_features(bundle, autoencoder, features, parts, progress=progress)
    directions = direct_logits(bundle, autoencoder, features, words)
    nearest = nearest_features(autoencoder, features)
    tokens = sum(len(part.tokens) for part in parts)
    pages = []
    for feature, entry, logits, near in zip(features, entries, directions, nearest, strict=True):
        latents = latents_at_tokens(parts, int(feature))
        values = np.concatenate([one[one > 0] for one in latents])
        found = strongest_places(parts, latents)
        promoted, suppressed = (list(zip(*end, strict=True)) or [(), ()] for end in logits[:2])
        pages.append(
            FeaturePage(
                feature=int(feature),
                density=len(values) / tokens,
                mean=float(values.mean()) if len(values) else 0.0,
                largest=found[0].value if found else 0.0,
                promoted=promoted[0],
                suppressed=suppressed[0],
                passages=tuple(_passage(bundle, place) for place in found[:passages]),
                latents=histogram(values, _BINS),
                promoted_logits=promoted[1],
                suppressed_logits=suppressed[1],
                logits=logits.histogram,
                entry=entry,
                nearest=near,
                tokens=tokens,
            )
        )
    return pages


class Place(NamedTuple):
    """The token `at` of a text, or of a part of it, at which a feature has the latent `value`; values (T,) are its
    latents at all tokens of the part."""

    value: float
    part: TextLatents
    values: np.ndarray
    at: int

    @property
    def window(self) -> slice:
        """The tokens that are shown around it."""
        return slice(max(0, self.at - _AROUND), self.at + _AROUND + 1)


def strongest_places(parts: Sequence[TextLatents], latents: Sequence[np.ndarray]) -> list[Place]:
    """Where a feature is strongest in each text in which it is kept, the largest latent first.

    latents: (T,) of each part of a text.
    """
    best: dict[int, Place] = {}
    for part, values in zip(parts, latents, strict=True):
        at = int(values.argmax())
        before = best.get(part.text)
        if values[at] > 0 and (before is None or before.value < values[at]):
            best[part.text] = Place(float(values[at]), part, values, at)
    return sorted(best.values(), key=lambda place: -place.value)


def latents_at_tokens(parts: Sequence[TextLatents], feature: int) -> list[np.ndarray]:
    """The latents (T,) of a feature in each part of the texts, 0 where it is not kept."""
    return [np.where(part.indices == feature, part.values, 0.0).sum(axis=1) for part in parts]


def _passage(bundle: Bundle, place: Place) -> Passage:
    window = place.window
    around = zip(place.part.tokens[window].tolist(), place.values[window].tolist(), strict=True)
    pieces = tuple((bundle.tokenizer.piece(token), float(value)) for token, value in around)
    return Passage(place.part.text, place.value, pieces, place.at - window.start)


def nearest_features(
    autoencoder: Autoencoder, features: Sequence[int], count: int = _NEAREST
) -> list[tuple[tuple[int, float], ...]]:
    """Of each feature, the `count` others with the largest cosine of the directions: (feature, cosine)."""
    found = []
    for feature in features:
        values, ids = jax.device_get(_nearest(autoencoder.weights.W_dec, feature, count=count))
        found.append(tuple(zip(ids.tolist(), values.tolist(), strict=True)))
    return found


@partial(jax.jit, static_argnames="count")
def _nearest(decoder: jax.Array, feature: jax.Array, *, count: int) -> tuple[jax.Array, jax.Array]:
    """The largest cosines (count,) of row `feature` of the decoder (S, D) with the others, and these rows' numbers."""
    rows = decoder.astype(jnp.float32)
    lengths = jnp.maximum(jnp.linalg.norm(rows, axis=1), 1e-12)
    cosines = (rows @ rows[feature]) / (lengths * lengths[feature])
    return lax.top_k(cosines.at[feature].set(-jnp.inf), min(count, len(rows) - 1))
