"""The features of several autoencoders that are most active at each token of a text.

The model reads the finished text once, without steering, as it does where features are named and measured. An
activation says how strongly a feature is present there, not what it added to a logit.

Legend: T tokens of the text, k features listed of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.explain.text_rows import rows_of


class TextActivations(NamedTuple):
    """The strongest features of an autoencoder at each token: features (T, k) int32 and values (T, k) float32, the
    largest first, 0 where fewer are kept and at tokens whose row has an extreme norm (see `explain.text_rows`)."""

    autoencoder: Autoencoder
    features: np.ndarray
    values: np.ndarray

    def strongest(self, start: int, end: int, count: int) -> list[tuple[int, float]]:
        """The `count` features with the largest activations at tokens [start, end), with these activations."""
        best: dict[int, float] = {}
        listed = zip(self.features[start:end].ravel().tolist(), self.values[start:end].ravel().tolist(), strict=True)
        for feature, value in listed:
            if value > best.get(feature, 0.0):
                best[feature] = value
        return sorted(best.items(), key=lambda one: (-one[1], one[0]))[:count]


def text_activations(
    bundle: Bundle, autoencoders: Sequence[Autoencoder], tokens: np.ndarray, count: int
) -> list[TextActivations]:
    """The `count` strongest features of each autoencoder at each of the tokens (T,), from one pass of the model."""
    if not autoencoders:
        return []
    read = rows_of(bundle, [one.layer for one in autoencoders], tokens.tolist())
    found = []
    for one, rows, usual in zip(autoencoders, read.rows, read.usual, strict=True):
        values, features = (np.asarray(part)[:, :count] for part in one.encode(rows))
        found.append(TextActivations(one, features.astype(np.int32), np.maximum(values * usual[:, None], 0.0)))
    return found
