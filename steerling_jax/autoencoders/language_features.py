"""Features that are more active in one language than in others, with what a training loss needs of them.

A loss reads a feature's pre-activation, which is affine in the hidden row: `x · column + bias`. So only these columns
of an encoder are held in memory, and training needs no autoencoder.

Source: SASFT, "Sparse Autoencoder-guided Supervised Finetuning to Mitigate Unexpected Code-Switching in LLMs"
(arXiv 2507.14894).

Legend: D width of hidden rows, F features, L languages, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.errors import require


class LanguageFeature(NamedTuple):
    """A feature and the language in which its mean latent is largest.

    language: its number in `LanguageFeatures.languages`. layer: the block whose output is read, from 0. feature: its
    number in that layer's autoencoder. monolinguality: its mean latent in the texts of the language, minus the mean of
    its means in the other languages. means (L,) float32: its mean pre-activation in the texts of each language.
    column (D,) float32 and bias: its pre-activation of a hidden row x is `x · column + bias`.
    """

    language: int
    layer: int
    feature: int
    monolinguality: float
    means: np.ndarray
    column: np.ndarray
    bias: float


class AutoencoderIdentity(NamedTuple):
    """An autoencoder that features are from: its layer, its number of latents, a hash of its arrays."""

    layer: int
    n_latents: int
    digest: str


@dataclass(frozen=True, eq=False)
class LanguageFeatures:
    """Features by language, and the scripts by which a change of language shows.

    Attributes:
        model: the fingerprint of the model whose hidden rows were read.
        languages: their names.
        scripts: for each language, the main scripts of its texts.
        monolingual: the features with the largest monolinguality of each language and layer.
        random: as many random features of the same layers, as a control; each is assigned to a language at random.
        autoencoders: what the features are from.
        tokens: for each script of the languages, which tokens have a letter of it, (V,) bool.
    """

    model: str
    languages: tuple[str, ...]
    scripts: tuple[frozenset[str], ...]
    monolingual: tuple[LanguageFeature, ...]
    random: tuple[LanguageFeature, ...]
    autoencoders: tuple[AutoencoderIdentity, ...]
    tokens: Mapping[str, np.ndarray]

    def unwanted_tokens(self) -> np.ndarray:
        """For each language, the tokens with a letter of another language's script and none of its own, (L, V) bool."""
        size = len(next(iter(self.tokens.values()))) if self.tokens else 0
        tables = []
        for own in self.scripts:
            inside, outside = np.zeros(size, bool), np.zeros(size, bool)
            for script, tokens in self.tokens.items():
                if script in own:
                    inside |= tokens
                else:
                    outside |= tokens
            tables.append(outside & ~inside)
        return np.stack(tables)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits: a hash of everything that a loss depends on."""
        digest = hashlib.sha256(repr((self.model, self.languages, [sorted(one) for one in self.scripts])).encode())
        for one in (*self.monolingual, *self.random):
            digest.update(repr((one.language, one.layer, one.feature, one.bias)).encode())
            digest.update(one.means.tobytes() + one.column.tobytes())
        for script, tokens in sorted(self.tokens.items()):
            digest.update(script.encode() + np.packbits(tokens).tobytes())
        return digest.hexdigest()[:16]


class FeatureTable(NamedTuple):
    """Features of one layer as arrays: columns (D, F), bias (F,), means (L, F), all float32; language (F,) int32."""

    columns: np.ndarray
    bias: np.ndarray
    means: np.ndarray
    language: np.ndarray


def feature_tables(features: Sequence[LanguageFeature]) -> dict[int, FeatureTable]:
    """The features by layer."""
    tables = {}
    for layer in sorted({one.layer for one in features}):
        own = [one for one in features if one.layer == layer]
        tables[layer] = FeatureTable(
            np.stack([one.column for one in own], axis=1),
            np.array([one.bias for one in own], np.float32),
            np.stack([one.means for one in own], axis=1),
            np.array([one.language for one in own], np.int32),
        )
    return tables


def encoder_columns(autoencoder: Autoencoder, features: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(columns (D, F), bias (F,)) float32 that give the pre-activations of some features: `x · columns + bias`.

    Raises `UserError` for an autoencoder that normalises its input, whose pre-activations are not affine.
    """
    weights, at = autoencoder.weights, np.asarray(features, np.int64)
    require(
        weights.settings.normalise == "none",
        f"{autoencoder.name or 'The autoencoder'} normalises its input, so its pre-activations are not an affine "
        "function of hidden rows; use one that does not.",
    )
    columns = np.asarray(weights.W_enc[:, at].astype(jnp.float32), np.float64)
    bias = np.asarray(weights.b_enc[at].astype(jnp.float32), np.float64)
    if weights.settings.subtract_b_dec:
        bias = bias - np.asarray(weights.b_dec.astype(jnp.float32), np.float64) @ columns
    scale = weights.latent_scale()
    if scale is not None:
        scale = np.asarray(scale[at], np.float64)
        columns, bias = columns * scale[None], bias * scale
    return columns.astype(np.float32), bias.astype(np.float32)
