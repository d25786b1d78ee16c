"""Training data search by features: the passages whose features are most like those of a text.

A passage's *signature* is the mean latent of each feature over its tokens. Two signatures are compared by their cosine,
after each feature is weighted by the logarithm of the inverse share of the passages that have it: a feature that is
kept everywhere says nothing about a passage.

Legend: m passages, S features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.errors import require
from steerling_jax.explain.feature_texts import text_latents
from steerling_jax.explain.features.passages import passages_of
from steerling_jax.progress import Progress, no_progress

_SHARED = 5  # features of a hit that are named


class FeatureHit(NamedTuple):
    """A passage like the query. text: the number of its text. score: the weighted cosine. passage: what it says.
    features: those that add most to the score, with the share of the score that each adds."""

    text: int
    score: float
    passage: str
    features: tuple[tuple[int, float], ...]


def search_by_features(
    bundle: Bundle,
    autoencoder: Autoencoder,
    query: str,
    texts: Sequence[str],
    *,
    count: int = 5,
    progress: Progress = no_progress,
) -> list[FeatureHit]:
    """The `count` passages of 64 tokens whose features are most like those of `query`, at most one of a text.

    Raises `UserError` without texts, and where the query has no features.
    """
    require(len(texts) > 0, "There are no texts to search; give some.", "texts")
    S = autoencoder.n_latents
    own = passages_of(bundle, list(text_latents(bundle, autoencoder, [query])), S)
    passages = passages_of(bundle, list(text_latents(bundle, autoencoder, texts, progress)), S)
    m = len(passages.texts)
    shares = np.asarray(passages.means.astype(bool).sum(axis=0)).ravel() / m
    weights = np.log(1 / np.maximum(shares, 1 / m)) * (shares > 0)
    vector = np.asarray(own.means.mean(axis=0)).ravel() * weights
    require(bool(vector.any()), "The text has no features that the texts to search have; give a longer one.", "query")
    weighted = sparse.csr_array(passages.means.multiply(weights[None, :]))
    lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    products = sparse.csr_array(weighted.multiply(vector[None, :]))
    scores = np.asarray(products.sum(axis=1)).ravel() / np.maximum(lengths * np.linalg.norm(vector), 1e-12)
    hits: list[FeatureHit] = []
    seen: set[int] = set()
    for i in np.argsort(-scores, kind="stable"):
        if len(hits) == count or scores[i] <= 0:
            break
        if (text := int(passages.owner[i])) in seen:
            continue
        seen.add(text)
        parts = products[[i]].toarray()[0]
        strongest = [int(j) for j in np.argsort(-parts, kind="stable")[:_SHARED] if parts[j] > 0]
        shared = tuple((j, float(parts[j] / parts.sum())) for j in strongest)
        hits.append(FeatureHit(text, float(scores[i]), passages.texts[i], shared))
    return hits
