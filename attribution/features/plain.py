"""What `steerling features` shows, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerling_jax.explain.feature_contributions import FeatureContributions
    from steerling_jax.explain.feature_texts import FeatureContrast
    from steerling_jax.explain.features.pages import FeaturePage
    from steerling_jax.explain.features.repetition import RepetitionFeatures
    from steerling_jax.explain.features.search import FeatureHit


def contributions_as_json(parts: FeatureContributions) -> dict[str, Any]:
    """All parts: for each token its logit, its bias, and every feature with its latent and contribution."""
    tokens = []
    for i in range(len(parts)):
        order = (-parts.contributions[i]).argsort(kind="stable")
        features = [
            {"feature": parts.features[i, j], "value": parts.values[i, j], "contribution": parts.contributions[i, j]}
            for j in order
            if parts.values[i, j] > 0
        ]
        tokens.append(
            {
                "position": parts.positions[i],
                "token_id": parts.token_ids[i],
                "token": parts.pieces[i],
                "probability": parts.probabilities[i],
                "logit": parts.logits[i],
                "reference_logit": parts.reference_logits[i],
                "bias": parts.bias[i],
                "residual": parts.residual[i],
                "error": parts.error[i],
                "features": features,
            }
        )
    return {"reference": parts.reference, "tokens": tokens, "promoted": dict(parts.promoted)}


def page_as_json(page: FeaturePage, places: Sequence[str]) -> dict[str, Any]:
    """A page, with each passage as a list of tokens and latents. places: where each text is from."""
    passages = [
        {
            "text": one.text,
            "place": places[one.text],
            "value": one.value,
            "at": one.at,
            "tokens": [{"token": piece, "value": value} for piece, value in one.pieces],
        }
        for one in page.passages
    ]
    names = ("feature", "density", "mean", "largest", "tokens", "promoted", "promoted_logits", "suppressed",
             "suppressed_logits", "latents", "logits")  # fmt: skip
    entry = page.entry
    return {name: getattr(page, name) for name in names} | {
        "name": entry.name if entry.is_named else None,
        "words": entry.words,
        "quality": entry.quality,
        "nearest": [{"feature": feature, "cosine": cosine} for feature, cosine in page.nearest],
        "passages": passages,
    }


def hits_as_json(hits: Sequence[FeatureHit], places: Sequence[str]) -> list[dict[str, Any]]:
    """The passages of a search, the most alike first."""
    return [
        {
            "text": hit.text,
            "place": places[hit.text],
            "score": hit.score,
            "passage": hit.passage,
            "features": [{"feature": feature, "share": share} for feature, share in hit.features],
        }
        for hit in hits
    ]


def contrast_as_json(contrast: FeatureContrast) -> list[dict[str, Any]]:
    """A value for each ranked feature."""
    return _ranked(contrast, "difference", "positive", "negative", "strength", "promoted")


def repetition_as_json(found: RepetitionFeatures) -> dict[str, Any]:
    """The ranked features, and the number of repeated tokens that they were ranked on."""
    features = _ranked(found, "rise", "first", "last", "largest", "promoted")
    return {"repeated_tokens": found.pairs, "features": features}


def _ranked(found: FeatureContrast | RepetitionFeatures, *fields: str) -> list[dict[str, Any]]:
    """The values of ranked features in these fields, an entry for each feature."""
    columns = {"feature": found.features} | {name: getattr(found, name) for name in fields}
    return [{name: column[i] for name, column in columns.items()} for i in range(len(found.features))]
