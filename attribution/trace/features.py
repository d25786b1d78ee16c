"""The features of autoencoders behind the tokens of a trace.

The features of a bottleneck, and of an autoencoder of an autoregressive model's last block, are parts of logits. Those
of other blocks have activations, which are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.bottleneck import bottleneck_of
from steerling_jax.autoencoders.model_fit import check_fit_together, check_fits
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.concept import unnamed
from steerling_jax.decoding.trace import Trace
from steerling_jax.explain.feature_contributions import trace_feature_contributions
from steerling_jax.explain.feature_texts import promoted_tokens_of
from steerling_jax.explain.features.contribution_table import FeatureContributions
from steerling_jax.explain.features.text_activations import TextActivations, text_activations
from steerling_jax.explain.logit_shares import Reference
from steerling_jax.models.backbone import BOTTLENECK
from steerling_jax.models.decoder.config import DecoderConfig

ACTIVE = 8  # features of a token whose activations are listed, for each autoencoder
_WORDS = 6  # tokens of a feature's card


class TraceFeatures(NamedTuple):
    """The features of a trace: the parts of its tokens' logits, with the autoencoder whose features they are, and the
    activations of the other autoencoders' features. parts, source: None where no features add up to the logits."""

    parts: FeatureContributions | None
    source: Autoencoder | None
    activations: tuple[TextActivations, ...]


NO_FEATURES = TraceFeatures(None, None, ())


def check_autoencoders(bundle: Bundle, autoencoders: Sequence[Autoencoder]) -> None:
    """Raises `UserError` unless each autoencoder reads a block of the model, and no two the same."""
    for one in autoencoders:
        check_fits(one, bundle)
    check_fit_together(autoencoders)


def trace_features(
    bundle: Bundle, trace: Trace, reference: Reference, autoencoders: Sequence[Autoencoder] = ()
) -> TraceFeatures:
    """The features behind the tokens of a trace.

    reference: "raw" splits logits, the others split logits minus their mean under the model's distribution.
    """
    source, exact = part_source(bundle, autoencoders)
    # The logits of guided text are of two passes, and those of clamped text of other rows.
    if not trace.commits or trace.guidance > 0 or trace.clamps is not None:
        source = None
    parts = None
    if source is not None:
        of = "raw" if reference == "raw" else "model"
        own = None if exact else source
        parts = trace_feature_contributions(bundle, trace, autoencoder=own, reference=of)
    others = [one for one in autoencoders if one is not source]
    return TraceFeatures(parts, source, tuple(text_activations(bundle, others, trace.committed, ACTIVE)))


def part_source(bundle: Bundle, autoencoders: Sequence[Autoencoder]) -> tuple[Autoencoder | None, bool]:
    """The autoencoder whose features are parts of logits, if there is one, and whether they are all of them.

    It is the model's bottleneck, or else that of the last block of an autoregressive model.
    """
    if BOTTLENECK in bundle.params:
        return bottleneck_of(bundle), True
    for one in autoencoders:
        plain = one.weights.settings.normalise == "none" and one.weights.W_skip is None
        if isinstance(bundle.config, DecoderConfig) and one.layer == bundle.backbone.n_layers - 1 and plain:
            return one, False
    return None, False


def head_of(autoencoder: Autoencoder) -> str:
    """What a document calls the features of an autoencoder, beside "known" and "discovered": "feature:3" of block 3."""
    return f"feature:{'bottleneck' if autoencoder.layer is None else autoencoder.layer}"


def strongest_features(parts: FeatureContributions, positions: list[int], count: int) -> list[tuple[int, float]]:
    """The `count` features with the largest sums of contributions, by size, over tokens at `positions`."""
    rows = np.flatnonzero(np.isin(parts.positions, positions))
    ids, at = np.unique(parts.features[rows].reshape(-1), return_inverse=True)
    sums = np.zeros(len(ids))
    np.add.at(sums, at.reshape(-1), parts.contributions[rows].reshape(-1))
    order = np.argsort(-np.abs(sums), kind="stable")[:count]
    return [(int(ids[i]), float(sums[i])) for i in order if sums[i] != 0]


def features_of_token(parts: FeatureContributions, position: int, count: int) -> dict[str, Any]:
    """A token's `count` strongest features and the sum of the others, which add up to what is split with the bias and,
    for an autoencoder of the last block, with the residual."""
    row = int(np.flatnonzero(parts.positions == position)[0])
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
    residual = {"feature_residual": float(parts.residual[row])} if parts.residual.any() else {}
    return {
        "features": listed,
        "other_features": float(values.sum() - values[order].sum()),
        "feature_bias": float(parts.bias[row]),
        **residual,
    }


def feature_card(autoencoder: Autoencoder, feature: int, promotes: Sequence[str]) -> dict[str, Any]:
    """What is known of a feature, as JSON. Its name and description are from `features.json` beside the autoencoder;
    `is_named` is whether there is a name."""
    entry = next((one for one in autoencoder.features if one.id == feature), None)
    named = entry is not None and entry.is_named and entry.name != unnamed(feature, "feature")
    return {
        "name": entry.name if entry is not None and named else f"#{feature}",
        "description": "" if entry is None else entry.description,
        "group": "",
        "is_named": named,
        "promotes": list(promotes),
    }


def feature_cards(bundle: Bundle, autoencoder: Autoencoder, features: Sequence[int]) -> dict[str, dict[str, Any]]:
    """`feature_card` of several features, by number."""
    promoted = promoted_tokens_of(bundle, autoencoder, features, _WORDS) if features else []
    rows = zip(features, promoted, strict=True)
    return {str(one): feature_card(autoencoder, one, words) for one, words in rows}
