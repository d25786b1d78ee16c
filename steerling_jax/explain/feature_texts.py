"""Features of an autoencoder on texts: their latents, and which tell two sets of texts apart.

Rows of extreme norm are left out (a model's first position may have a norm a hundred times that of others): they would
own the strongest passages of many features.

Legend: T tokens of a text, D width, V vocabulary, S latents, k latents kept of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.bottleneck import detach_bottleneck
from steerling_jax.bundle import Bundle, encode
from steerling_jax.decoding.tables import Table, Tabular, counted
from steerling_jax.errors import require
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.output_projection import output_projection
from steerling_jax.progress import Progress, no_progress

_NORM_LIMIT = 6.0  # times the median norm of the text's rows
_LONGEST = 512  # tokens of a text that are read together; longer texts are read in parts


class TextLatents(NamedTuple):
    """A text, or a part of a long one: its number, token ids (T,), and the latents kept at each token, (T, k)."""

    text: int
    tokens: np.ndarray
    values: np.ndarray
    indices: np.ndarray


def text_latents(
    bundle: Bundle, autoencoder: Autoencoder, texts: Sequence[str], progress: Progress = no_progress
) -> Iterator[TextLatents]:
    """The latents of texts, as the model reads them. Values are 0 at rows of extreme norm.

    autoencoder: of a block's output, or of the rows after the final norm where its `layer` is None.
    """
    plain = detach_bottleneck(bundle)
    longest = min(_LONGEST, bundle.config.context_length)
    for number, text in enumerate(texts):
        progress("reading texts", number, len(texts))
        ids = np.asarray([*plain.tokenizer.prefix, *plain.tokenizer.encode(text)], np.int32)
        require(len(ids) > 0, f"Text {number + 1} is empty; remove it.", "texts")
        for start in range(0, len(ids), longest):
            yield latents_of(plain, autoencoder, ids[start : start + longest], number)
    progress("reading texts", len(texts), len(texts))


def latents_of(bundle: Bundle, autoencoder: Autoencoder, ids: np.ndarray, number: int = 0) -> TextLatents:
    """The latents of token ids (T,) that are read together, without the model's bottleneck if it has one."""
    plain = detach_bottleneck(bundle)
    longest = min(_LONGEST, bundle.config.context_length)
    tokens = encode(plain, ids.tolist(), "texts")
    size = max(len(tokens), min(longest, max(16, 1 << (len(tokens) - 1).bit_length())))
    padded = jnp.asarray(np.pad(tokens, (0, size - len(tokens))))[None]
    rows = _rows(plain.params, padded, jnp.asarray([len(tokens)]), backbone=plain.backbone, layer=autoencoder.layer)
    rows = np.asarray(rows)[0, : len(tokens)]
    norms = np.linalg.norm(rows, axis=1)
    values, indices = (np.asarray(a) for a in autoencoder.encode(rows))
    within = norms <= _NORM_LIMIT * np.median(norms)
    return TextLatents(number, tokens, values * within[:, None], indices)


@partial(jax.jit, static_argnames=("backbone", "layer"))
def _rows(params: Params, tokens: jax.Array, lengths: jax.Array, *, backbone: Backbone, layer: int | None) -> jax.Array:
    capture = () if layer is None else (layer,)
    result = backbone.run(params, backbone.embed(params, tokens), lengths=lengths, capture=capture)
    return (result.hidden if layer is None else result.captured[layer]).astype(jnp.float32)


@dataclass(frozen=True, repr=False)
class FeatureContrast(Tabular):
    """The features that fire in more texts of one set than of another, the largest difference first.

    features (n,) int32. positive, negative (n,): the share of the texts of each set in which the feature is kept at any
    token. strength (n,): its mean over the positive texts of the largest latent. promoted: the tokens that each
    promotes most.
    """

    features: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    strength: np.ndarray
    promoted: tuple[tuple[str, ...], ...]

    @property
    def difference(self) -> np.ndarray:
        """positive − negative, (n,)."""
        return self.positive - self.negative

    def table(self) -> Table:
        """A row for each feature."""
        columns = {
            "feature": self.features,
            "difference": self.difference,
            "positive": self.positive,
            "negative": self.negative,
            "strength": self.strength,
            "promotes": [" ".join(word.strip() for word in row) for row in self.promoted],
        }
        return Table(f"{counted(len(self.features), 'feature')} that tell the texts apart", columns)


def contrast_features(
    bundle: Bundle,
    autoencoder: Autoencoder,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    count: int = 10,
    words: int = 6,
    progress: Progress = no_progress,
) -> FeatureContrast:
    """Ranks features by the share of positive texts in which they fire, minus the share of negative ones.

    Source: the classifier without training of Qwen-Scope (2026). Raises `UserError` for a set without texts.
    """
    for name, texts in (("positive", positive), ("negative", negative)):
        require(len(texts) > 0, f"There are no {name} texts; a contrast needs texts of both sets.", name)
    strongest = np.zeros((len(positive) + len(negative), autoencoder.n_latents), np.float32)
    for part in text_latents(bundle, autoencoder, [*positive, *negative], progress):
        np.maximum.at(strongest[part.text], part.indices.reshape(-1), part.values.reshape(-1))
    fires, split = strongest > 0, len(positive)
    in_positive, in_negative = fires[:split].mean(axis=0), fires[split:].mean(axis=0)
    # Among equal differences, the stronger feature first.
    order = np.lexsort((-strongest[:split].mean(axis=0), in_negative - in_positive))[:count]
    promoted = promoted_tokens_of(bundle, autoencoder, order.tolist(), words)
    return FeatureContrast(
        order.astype(np.int32),
        in_positive[order],
        in_negative[order],
        strongest[:split].mean(axis=0)[order],
        tuple(map(tuple, promoted)),
    )


_FEATURES = 16  # features whose logits (16, V) are in memory together


def promoted_tokens_of(
    bundle: Bundle, autoencoder: Autoencoder, features: Sequence[int], count: int, *, least: bool = False
) -> list[list[str]]:
    """The tokens whose logits the directions of features raise most, or with `least` lower most, as text.

    For an autoencoder of an inner block this leaves out what the later layers do with the direction.
    """
    S = autoencoder.n_latents
    for feature in features:
        require(0 <= feature < S, f"There is no feature {feature}; this autoencoder has 0 to {S - 1}.", "features")
    table = output_projection(bundle.params, bundle.config).table
    pieces: list[list[str]] = []
    for first in range(0, len(features), _FEATURES):
        part = np.asarray(features[first : first + _FEATURES], np.int32)
        padded = np.pad(part, (0, _FEATURES - len(part)))
        ids = _promoted(autoencoder.weights.W_dec, table, padded, count=count, least=least)
        pieces += [[bundle.tokenizer.piece(int(token)) for token in row] for row in np.asarray(ids)[: len(part)]]
    return pieces


@partial(jax.jit, static_argnames=("count", "least"))
def _promoted(decoder: jax.Array, table: jax.Array, features: jax.Array, *, count: int, least: bool) -> jax.Array:
    """Token ids (J, count) of the largest products of rows of the decoder and of the table (V, D)."""
    logits = decoder[features].astype(jnp.float32) @ table.astype(jnp.float32).T
    return lax.top_k(-logits if least else logits, min(count, table.shape[0]))[1]
