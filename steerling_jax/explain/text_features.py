"""The features that fire in each of many texts, in several layers at once.

Legend: N texts, S latents of an autoencoder, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.errors import require
from steerling_jax.explain.text_rows import text_rows
from steerling_jax.progress import Progress, no_progress


class LayerFeatures(NamedTuple):
    """What one layer's autoencoder reads in N texts.

    last (N, S) bool: the latents above 0 at the last token. strongest (N, S) float32: the largest latent over all
    tokens. mean (N, D) float32: the mean hidden row. Rows of extreme norm are left out of all three.
    """

    last: csr_array
    strongest: csr_array
    mean: np.ndarray

    def select(self, texts: np.ndarray) -> LayerFeatures:
        """Those of some of the texts, given by number or as (N,) bool."""
        return LayerFeatures(self.last[texts], self.strongest[texts], self.mean[texts])


def read_text_features(
    bundle: Bundle,
    autoencoders: Sequence[Autoencoder],
    texts: Sequence[str | Sequence[int]],
    progress: Progress = no_progress,
) -> list[LayerFeatures]:
    """The features of texts by each autoencoder, from one pass of the model over each text.

    Only latents above 0 are stored, so memory grows with the number of latents that fire, not with N · S.
    Raises `UserError` without texts or autoencoders, and for an empty text.
    """
    require(len(texts) > 0, "There are no texts to read.", "texts")
    require(len(autoencoders) > 0, "There is no autoencoder to read the texts with.", "autoencoders")
    readers = [_Reader(one.n_latents) for one in autoencoders]
    parts = text_rows(bundle, [one.layer for one in autoencoders], texts, progress)
    current = -1
    for part in parts:
        if part.text != current:
            current = part.text
            for reader in readers:
                reader.begin()
        for reader, autoencoder, rows, usual in zip(readers, autoencoders, part.rows, part.usual, strict=True):
            values, indices = (np.asarray(a) for a in autoencoder.encode(rows))
            reader.add(values * usual[:, None], indices, rows[usual])
    return [reader.result() for reader in readers]


class _Reader:
    """Collects one layer's features, text by text."""

    def __init__(self, n_latents: int) -> None:
        self._S = n_latents
        self._last: list[np.ndarray] = []
        self._strongest: list[dict[int, float]] = []
        self._sums: list[np.ndarray] = []
        self._rows: list[int] = []

    def begin(self) -> None:
        self._last.append(np.zeros(0, np.int64))
        self._strongest.append({})
        self._sums.append(np.zeros(1, np.float64))
        self._rows.append(0)

    def add(self, values: np.ndarray, indices: np.ndarray, rows: np.ndarray) -> None:
        """Latents (T, k) of a part of the text, and its rows of usual norm."""
        self._last[-1] = np.unique(indices[-1][values[-1] > 0])
        strongest = np.zeros(self._S, np.float32)
        np.maximum.at(strongest, indices.reshape(-1), values.reshape(-1))
        fired, before = np.flatnonzero(strongest), self._strongest[-1]
        for feature, value in zip(fired.tolist(), strongest[fired].tolist(), strict=True):
            before[feature] = max(value, before.get(feature, 0.0))
        self._sums[-1] = self._sums[-1] + rows.sum(axis=0, dtype=np.float64)
        self._rows[-1] += len(rows)

    def result(self) -> LayerFeatures:
        shape = (len(self._last), self._S)
        last = _table([np.ones(len(one), bool) for one in self._last], self._last, shape)
        strongest = _table(
            [np.fromiter(one.values(), np.float32) for one in self._strongest],
            [np.fromiter(one.keys(), np.int64) for one in self._strongest],
            shape,
        )
        means = [total / max(1, count) for total, count in zip(self._sums, self._rows, strict=True)]
        return LayerFeatures(last, strongest, np.stack(means).astype(np.float32))


def _table(data: list[np.ndarray], indices: list[np.ndarray], shape: tuple[int, int]) -> csr_array:
    """A table with the entries `data` of each row at the columns `indices`."""
    ends = np.concatenate([[0], np.cumsum([len(one) for one in indices])])
    table = csr_array((np.concatenate(data), np.concatenate(indices), ends), shape=shape)
    table.sort_indices()
    return table
