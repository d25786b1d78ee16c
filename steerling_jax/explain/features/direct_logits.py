"""What the direction of a feature does to the logits by itself: the tokens that it raises and lowers most.

For an autoencoder of an inner block this leaves out what the later layers do with the direction.

Legend: J features, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.model_fit import check_features
from steerling_jax.bundle import Bundle
from steerling_jax.models.output_projection import output_projection

_FEATURES = 16  # features whose logits (16, V) are in memory together
_BINS = 50  # of the histogram of all logits


class DirectLogits(NamedTuple):
    """The largest and the smallest logits of a feature's direction of length 1, with the texts of their tokens, and a
    histogram of all V as (middle of the bin, number of tokens)."""

    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    histogram: tuple[tuple[float, int], ...]


def direct_logits(bundle: Bundle, autoencoder: Autoencoder, features: Sequence[int], count: int) -> list[DirectLogits]:
    """The logits of the directions of features, with `count` tokens at either end.

    Raises `UserError` for a feature that does not exist.
    """
    check_features(autoencoder, features)
    table = output_projection(bundle.params, bundle.config).table
    found = []
    for first in range(0, len(features), _FEATURES):
        part = np.asarray(features[first : first + _FEATURES], np.int32)
        padded = np.pad(part, (0, _FEATURES - len(part)))
        for row in np.asarray(_products(autoencoder.weights.W_dec, table, padded))[: len(part)]:
            ends = []
            for values in (-row, row):
                ids = np.argsort(values, kind="stable")[:count]
                ends.append(tuple((bundle.tokenizer.piece(int(token)), float(row[token])) for token in ids))
            found.append(DirectLogits(ends[0], ends[1], histogram(row, _BINS)))
    return found


def histogram(values: np.ndarray, bins: int) -> tuple[tuple[float, int], ...]:
    """(middle, count) of bins of equal width; empty for no values."""
    if not len(values):
        return ()
    counts, edges = np.histogram(values, bins)
    return tuple(zip(((edges[1:] + edges[:-1]) / 2).tolist(), counts.tolist(), strict=True))


@jax.jit
def _products(decoder: jax.Array, table: jax.Array, features: jax.Array) -> jax.Array:
    """The products (J, V) of rows of the decoder, of length 1, with those of the table (V, D)."""
    directions = decoder[features].astype(jnp.float32)
    directions /= jnp.maximum(jnp.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    return directions @ table.astype(jnp.float32).T
