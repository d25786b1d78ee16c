"""The features behind the tokens of a trace, in a model with a bottleneck.

Their parts are of the text as it is: a text that was steered has other rows, which have no features here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.trace import Trace
from steerling_jax.explain.feature_contributions import feature_contributions
from steerling_jax.explain.features.contribution_table import FeatureContributions
from steerling_jax.explain.logit_shares import Reference
from steerling_jax.models.backbone import BOTTLENECK
from steerling_jax.models.decoder.config import DecoderConfig


def token_features(bundle: Bundle, trace: Trace, reference: Reference) -> FeatureContributions | None:
    """The features of each token of the canvas but the first; None without a bottleneck, and for a steered text.

    reference: "raw" splits logits, the others split logits minus their mean under the model's distribution.
    """
    if BOTTLENECK not in bundle.params or not isinstance(bundle.config, DecoderConfig) or trace.edits:
        return None
    of = "raw" if reference == "raw" else "model"
    return feature_contributions(bundle, trace.committed.tolist(), reference=of)


def strongest_features(parts: FeatureContributions, positions: list[int], count: int) -> list[tuple[int, float]]:
    """The `count` features with the largest sums of contributions, by size, over tokens at `positions`."""
    rows = np.asarray(positions, int) - 1  # the first token of a text has no row that predicts it
    ids, at = np.unique(parts.features[rows].reshape(-1), return_inverse=True)
    sums = np.zeros(len(ids))
    np.add.at(sums, at.reshape(-1), parts.contributions[rows].reshape(-1))
    order = np.argsort(-np.abs(sums), kind="stable")[:count]
    return [(int(ids[i]), float(sums[i])) for i in order if sums[i] != 0]


def features_of_token(parts: FeatureContributions, position: int, count: int) -> dict[str, Any]:
    """A token's `count` strongest features and the sum of the others, which with the bias add up to what is split."""
    row = position - 1
    values = parts.contributions[row].astype(np.float64)
    order = [i for i in np.argsort(-np.abs(values), kind="stable")[:count] if values[i] != 0]
    listed = [
        {
            "feature": int(parts.features[row, i]),
            "latent": float(parts.values[row, i]),
            "contribution": float(values[i]),
        }
        for i in order
    ]
    return {
        "features": listed,
        "other_features": float(values.sum() - values[order].sum()),
        "feature_bias": float(parts.bias[row]),
    }
