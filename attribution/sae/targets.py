"""The target features of `steerling sae cover`: given by name or number, by a description, or by two sets of texts."""

from __future__ import annotations

import argparse
from typing import NamedTuple

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.model_features import with_features
from steerling_jax.autoencoders.model_fit import check_features
from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError
from steerling_jax.explain.feature_texts import contrast_features
from steerling_jax.explain.features.relevance import features_about
from steerling_jax.io.text_tables import read_text_table
from steerling_jax.progress import Progress


class Target(NamedTuple):
    """A target feature, and the score by which it was chosen: its relevance, or the difference of the contrast; None
    where it was given itself."""

    feature: int
    score: float | None


def choose_targets(
    bundle: Bundle, autoencoder: Autoencoder, args: argparse.Namespace, progress: Progress
) -> list[Target]:
    """The targets that the options request, the best first. Raises `UserError` where there is none."""
    if args.feature:
        return _given(bundle, autoencoder, args.feature)
    if args.about is not None:
        ranked = features_about(bundle, autoencoder, args.about, args.targets)
        return [Target(one.feature, one.score) for one in ranked]
    sets = [read_text_table(path, args.column).texts for path in (args.positive, args.negative)]
    contrast = contrast_features(bundle, autoencoder, *sets, count=args.targets, words=1, progress=progress)
    targets = [
        Target(int(feature), float(difference))
        for feature, difference in zip(contrast.features, contrast.difference, strict=True)
        if difference > 0
    ]
    if not targets:
        raise UserError(f"No feature fires more often in {args.positive} than in {args.negative}; give other texts.")
    return targets


def _given(bundle: Bundle, autoencoder: Autoencoder, texts: list[str]) -> list[Target]:
    """Features by number, name, or "feature:17"."""
    catalogue = with_features(bundle, autoencoder).concepts
    features = []
    for text in texts:
        head, rest = catalogue.locate(text)
        features += catalogue.resolve(rest if head == "feature" else text, "feature")
    check_features(autoencoder, features)
    return [Target(feature, None) for feature in dict.fromkeys(features)]
