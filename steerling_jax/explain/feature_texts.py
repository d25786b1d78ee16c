"""Features of an autoencoder on texts: their latents, and which tell two sets of texts apart.

Rows of extreme norm are left out; see `text_rows`.

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
from steerling_jax.autoencoders.model_fit import check_features
from steerling_jax.bundle import Bundle
from steerling_jax.decoding.tables import Table, Tabular, counted
from steerling_jax.errors import require
from steerling_jax.evaluation.feature_rules import firing_shares
from steerling_jax.explain.text_features import read_text_features
from steerling_jax.explain.text_rows import TextRows, rows_of, text_rows
from steerling_jax.models.output_projection import output_projection
from steerling_jax.progress import Progress, no_progress


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
    for part in text_rows(bundle, [autoencoder.layer], texts, progress):
        yield _latents(autoencoder, part)


def latents_of(bundle: Bundle, autoencoder: Autoencoder, ids: np.ndarray, number: int = 0) -> TextLatents:
    """The latents of token ids (T,) that are read together, without the model's bottleneck if it has one."""
    return _latents(autoencoder, rows_of(bundle, [autoencoder.layer], ids.tolist(), number))


def _latents(autoencoder: Autoencoder, part: TextRows) -> TextLatents:
    values, indices = (np.asarray(a) for a in autoencoder.encode(part.rows[0]))
    return TextLatents(part.text, part.tokens, values * part.usual[0][:, None], indices)


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
    (read,) = read_text_features(bundle, [autoencoder], [*positive, *negative], progress)
    split = len(positive)
    in_positive, in_negative = (firing_shares(read.strongest[part]) for part in (slice(split), slice(split, None)))
    strength = np.asarray(read.strongest[:split].mean(axis=0))
    # Among equal differences, the stronger feature first.
    order = np.lexsort((-strength, in_negative - in_positive))[:count]
    promoted = promoted_tokens_of(bundle, autoencoder, order.tolist(), words)
    return FeatureContrast(
        order.astype(np.int32),
        in_positive[order],
        in_negative[order],
        strength[order],
        tuple(map(tuple, promoted)),
    )


_FEATURES = 16  # features whose logits (16, V) are in memory together


def promoted_tokens_of(
    bundle: Bundle, autoencoder: Autoencoder, features: Sequence[int], count: int, *, least: bool = False
) -> list[list[str]]:
    """The tokens whose logits the directions of features raise most, or with `least` lower most, as text.

    For an autoencoder of an inner block this leaves out what the later layers do with the direction.
    """
    check_features(autoencoder, features)
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
