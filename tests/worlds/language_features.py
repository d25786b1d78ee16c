"""Language features with random arrays, for the small decoder: three languages of two scripts."""

from __future__ import annotations

import numpy as np

from steerling_jax.autoencoders.language_features import AutoencoderIdentity, LanguageFeature, LanguageFeatures
from tests.worlds.small_decoder import VOCABULARY

LANGUAGES = ("de", "en", "ko")
LATIN, HANGUL = frozenset({"Latin"}), frozenset({"Hangul"})


def make_features(
    model: str = "none", *, width: int = 32, vocab_size: int = VOCABULARY, layers: tuple[int, ...] = (0, 1)
) -> LanguageFeatures:
    """One feature of each language and layer. Tokens 0 to 9 are Latin, 5 to 14 Hangul."""
    rng = np.random.default_rng(0)

    def feature(language: int, layer: int, number: int) -> LanguageFeature:
        column = rng.normal(0, width**-0.5, width).astype(np.float32)
        return LanguageFeature(language, layer, number, 0.5, rng.normal(0, 0.1, 3).astype(np.float32), column, 0.25)

    tokens = np.arange(vocab_size)
    monolingual, random = (
        tuple(feature(language, layer, first + language) for layer in layers for language in range(3))
        for first in (0, 10)
    )
    return LanguageFeatures(
        model,
        LANGUAGES,
        (LATIN, LATIN, HANGUL),
        monolingual,
        random,
        tuple(AutoencoderIdentity(layer, 64, "d1ge57") for layer in layers),
        {"Latin": tokens < 10, "Hangul": (tokens >= 5) & (tokens < 15)},
    )
