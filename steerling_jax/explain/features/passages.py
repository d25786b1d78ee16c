"""Texts in passages of a few tokens, with the mean latent of each feature in each: what names and search read.

Legend: m passages, S features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from steerling_jax.bundle import Bundle
from steerling_jax.explain.feature_texts import TextLatents
from steerling_jax.explain.naming.units import readable

PASSAGE_TOKENS = 64


@dataclass(frozen=True)
class Passages:
    """m passages. texts: their texts. owner (m,): the number of the text that each is of. means (m, S): the mean latent
    of each feature over the tokens of a passage."""

    texts: tuple[str, ...]
    owner: np.ndarray
    means: sparse.csr_array

    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the passages on which names are chosen, and of those on which they are scored.

        No text is on both sides; a single text is cut in the middle.
        """
        side = self.owner % 2 if len(np.unique(self.owner)) > 1 else np.arange(len(self.owner)) * 2 // len(self.owner)
        return np.flatnonzero(side == 0), np.flatnonzero(side == 1)


def passages_of(bundle: Bundle, parts: Sequence[TextLatents], n_latents: int) -> Passages:
    """The passages of texts whose latents were read."""
    texts: list[str] = []
    owner, rows, columns, values = [], [], [], []
    for part in parts:
        for start in range(0, len(part.tokens), PASSAGE_TOKENS):
            end = min(start + PASSAGE_TOKENS, len(part.tokens))
            kept = part.values[start:end] > 0
            values.append(part.values[start:end][kept] / (end - start))
            columns.append(part.indices[start:end][kept])
            rows.append(np.full(int(kept.sum()), len(texts)))
            owner.append(part.text)
            texts.append(readable(bundle.tokenizer, bundle.tokenizer.decode(part.tokens[start:end].tolist())))
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    # A feature at several tokens of a passage has several entries, which are summed.
    means = sparse.coo_array(entries, shape=(len(texts), n_latents)).tocsr()
    return Passages(tuple(texts), np.asarray(owner), means)
