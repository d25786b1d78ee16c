"""Which features of autoencoders belong to a language: monolinguality over parallel texts.

Source: SASFT (arXiv 2507.14894).

Legend: D width, L languages, S latents, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.language_features import (
    AutoencoderIdentity,
    LanguageFeature,
    LanguageFeatures,
    encoder_columns,
)
from steerling_jax.bundle import Bundle
from steerling_jax.errors import require
from steerling_jax.evaluation.scripts import letter_scripts, main_scripts
from steerling_jax.explain.feature_classifier import autoencoder_digest
from steerling_jax.explain.text_rows import text_rows
from steerling_jax.models.steerling.fingerprint import fingerprint
from steerling_jax.progress import Progress, no_progress
from steerling_jax.tokenizer import Tokenizer


class _LanguageMeans:
    """Sums over the tokens of each language: latents (L, S), hidden rows (L, D), and the number of tokens (L,)."""

    def __init__(self, languages: int, autoencoder: Autoencoder):
        self._autoencoder = autoencoder
        self._latents = np.zeros((languages, autoencoder.n_latents))
        self._rows = np.zeros((languages, autoencoder.width))
        self._tokens = np.zeros(languages)

    def add(self, language: int, rows: np.ndarray) -> None:
        values, indices = (np.asarray(part) for part in self._autoencoder.encode(rows))
        np.add.at(self._latents[language], indices.reshape(-1), values.reshape(-1))
        self._rows[language] += rows.sum(axis=0, dtype=np.float64)
        self._tokens[language] += len(rows)

    @property
    def latents(self) -> np.ndarray:
        """Mean latents (L, S)."""
        return self._latents / np.maximum(self._tokens, 1)[:, None]

    def features(self, owners: Sequence[int], numbers: Sequence[int], scores: np.ndarray) -> list[LanguageFeature]:
        """The features `numbers`, each for a language of `owners`. scores: monolinguality (L, S)."""
        columns, bias = encoder_columns(self._autoencoder, numbers)
        # A pre-activation is affine in the row, so its mean is that of the mean row: no row has to be read again.
        rows = self._rows / np.maximum(self._tokens, 1)[:, None]
        means = (rows @ columns.astype(np.float64) + bias[None]).astype(np.float32)
        layer = self._autoencoder.layer
        assert layer is not None
        return [
            LanguageFeature(owner, layer, f, float(scores[owner, f]), means[:, i], columns[:, i].copy(), float(bias[i]))
            for i, (owner, f) in enumerate(zip(owners, numbers, strict=True))
        ]


def find_language_features(
    bundle: Bundle,
    autoencoders: Sequence[Autoencoder],
    texts: Sequence[str],
    languages: Sequence[str],
    *,
    count: int,
    seed: int = 0,
    progress: Progress = no_progress,
) -> LanguageFeatures:
    """The `count` most monolingual features of each language and layer, and as many random ones.

    texts, languages: parallel texts, each with its language. Means are over all tokens of a language, without hidden
    rows of extreme norm. A feature is offered only to the language in which its mean latent is largest.

    Raises `UserError` for fewer than two languages, for a language without such features, and for an autoencoder that
    does not read the output of a block.
    """
    names = tuple(sorted(set(languages)))
    require(len(names) > 1, f"All texts are in the language {names[0]!r}; features are compared between languages, so "
            "give texts in at least two.")  # fmt: skip
    for one in autoencoders:
        require(one.layer is not None, "Features of languages are read from the output of a block, but the autoencoder "
                "does not say which block it reads; give one whose files name the layer.")  # fmt: skip
    sums = [_LanguageMeans(len(names), one) for one in autoencoders]
    for part in text_rows(bundle, [one.layer for one in autoencoders], texts, progress):
        for layer_sums, rows, usual in zip(sums, part.rows, part.usual, strict=True):
            layer_sums.add(names.index(languages[part.text]), rows[usual])
    monolingual, random = [], []
    for number, (layer_sums, autoencoder) in enumerate(zip(sums, autoencoders, strict=True)):
        means = layer_sums.latents
        scores = monolinguality(means)
        owners, numbers = _most_monolingual(means, scores, count, names, autoencoder)
        monolingual += layer_sums.features(owners, numbers, scores)
        key = jax.random.fold_in(jax.random.key(seed), number)
        others = np.setdiff1d(np.flatnonzero(means.max(axis=0) > 0), numbers)
        require(len(others) >= len(numbers), f"Only {len(others)} other features of layer {autoencoder.layer} fire in "
                f"the texts, too few for {len(numbers)} random ones; give more texts, or a smaller count.")  # fmt: skip
        drawn = others[np.asarray(jax.random.permutation(key, len(others)))[: len(numbers)]]
        random += layer_sums.features(owners, drawn.tolist(), scores)
    scripts = tuple(
        main_scripts(text for text, language in zip(texts, languages, strict=True) if language == name)
        for name in names
    )
    return LanguageFeatures(
        fingerprint(bundle.params, bundle.config),
        names,
        scripts,
        tuple(monolingual),
        tuple(random),
        tuple(AutoencoderIdentity(one.layer or 0, one.n_latents, autoencoder_digest(one)) for one in autoencoders),
        script_tokens(bundle.tokenizer, bundle.config.vocab_size, frozenset().union(*scripts)),
    )


def monolinguality(means: np.ndarray) -> np.ndarray:
    """ν (L, S) of mean latents (L, S): a language's mean minus the mean of the other languages' means."""
    return means - (means.sum(axis=0, keepdims=True) - means) / (len(means) - 1)


def script_tokens(tokenizer: Tokenizer, vocab_size: int, scripts: frozenset[str]) -> dict[str, np.ndarray]:
    """For each script, which tokens have a letter of it, (V,) bool. Parts of a UTF-8 character have no letter."""
    tables = {script: np.zeros(vocab_size, bool) for script in sorted(scripts)}
    for token in range(vocab_size):
        for script in letter_scripts(tokenizer.decode([token])):
            if script in tables:
                tables[script][token] = True
    return tables


def _most_monolingual(
    means: np.ndarray, scores: np.ndarray, count: int, names: Sequence[str], autoencoder: Autoencoder
) -> tuple[list[int], list[int]]:
    """(languages, features): the `count` features of each language with the largest scores, by language."""
    best, fires = means.argmax(axis=0), means.max(axis=0) > 0
    owners, numbers = [], []
    for language, name in enumerate(names):
        own = np.flatnonzero((best == language) & fires)
        require(len(own) >= count, f"Only {len(own)} features of layer {autoencoder.layer} are most active in the "
                f"language {name!r}, but the count is {count}; give more texts in it, or a smaller count.")  # fmt: skip
        chosen = own[np.argsort(-scores[language, own], kind="stable")[:count]]
        owners += [language] * count
        numbers += chosen.tolist()
    return owners, numbers
