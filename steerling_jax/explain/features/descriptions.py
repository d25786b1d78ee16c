"""What features are about, in short: names, promoted tokens and strongest passages, for tables and for prompts."""

from __future__ import annotations

from collections.abc import Sequence

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.explain.feature_texts import promoted_tokens_of, text_latents
from steerling_jax.explain.features.example_requests import FeatureDescription
from steerling_jax.explain.features.names import name_features
from steerling_jax.explain.features.pages import latents_at_tokens, strongest_places
from steerling_jax.progress import Progress, no_progress


def describe_features(
    bundle: Bundle,
    autoencoder: Autoencoder,
    features: Sequence[int],
    texts: Sequence[str] = (),
    *,
    words: int = 8,
    passages: int = 9,
    progress: Progress = no_progress,
) -> list[FeatureDescription]:
    """A description of each feature, with at most `words` tokens and `passages` passages, at most one of a text.

    Names are those of the autoencoder's `features.json`, or else chosen and scored on the texts (`name_features`); a
    feature that no name predicts has none. Without texts, passages are the examples of that file. Raises `UserError`
    for a feature that does not exist.
    """
    promoted = promoted_tokens_of(bundle, autoencoder, features, words)
    entries = {one.id: one for one in autoencoder.features}
    names = {one: entries[one].name if one in entries and entries[one].is_named else "" for one in features}
    found: dict[int, tuple[str, ...]] = {one: entries[one].examples if one in entries else () for one in features}
    if texts:
        parts = list(text_latents(bundle, autoencoder, texts, progress))
        for one in name_features(bundle, autoencoder, features, parts, progress=progress):
            names[one.id] = names[one.id] or (one.name if one.is_named else "")
        for feature in features:
            places = strongest_places(parts, latents_at_tokens(parts, feature))[:passages]
            windows = [place.part.tokens[place.window].tolist() for place in places]
            found[feature] = tuple(bundle.tokenizer.decode(window) for window in windows)
    return [
        FeatureDescription(names[feature], tuple(tokens), found[feature])
        for feature, tokens in zip(features, promoted, strict=True)
    ]
