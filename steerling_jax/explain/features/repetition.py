"""Features of repetition: their latents are larger at the last than at the first occurrence of a repeated token.

Source: Qwen-Scope (2026), which steers rollouts of reinforcement learning with them.

Legend: T tokens of a text, S latents, k latents kept of a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.bottleneck import detach_bottleneck
from steerling_jax.bundle import Bundle, encode
from steerling_jax.decoding.tables import Table, Tabular, counted
from steerling_jax.errors import require
from steerling_jax.explain.feature_texts import TextLatents, latents_of, promoted_tokens_of
from steerling_jax.progress import Progress, no_progress


@dataclass(frozen=True, repr=False)
class RepetitionFeatures(Tabular):
    """The features whose latent rises most from the first to the last occurrence of a repeated token.

    features (n,) int32. first, last (n,): the mean latent at these occurrences. pairs: how many repeated tokens there
    were. largest (n,): the largest latent at a last occurrence. promoted: the tokens that each promotes most.
    """

    features: np.ndarray
    first: np.ndarray
    last: np.ndarray
    largest: np.ndarray
    pairs: int
    promoted: tuple[tuple[str, ...], ...]

    @property
    def rise(self) -> np.ndarray:
        """last − first, (n,)."""
        return self.last - self.first

    def table(self) -> Table:
        """A row for each feature."""
        columns = {
            "feature": self.features,
            "rise": self.rise,
            "first": self.first,
            "last": self.last,
            "largest": self.largest,
            "promotes": [" ".join(word.strip() for word in row) for row in self.promoted],
        }
        return Table(f"{counted(len(self.features), 'feature')} of repetition, {self.pairs} repeated tokens", columns)


def occurrence_latents(parts: Iterable[TextLatents], n_latents: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The latents at the first and at the last occurrences of repeated tokens.

    Returns sums (S,) at the first, sums (S,) at the last, the largest (S,) at the last, and the number of such tokens.

    A token is counted once in each text in which it occurs twice or more. One that occurs first at position 0 is left
    out: the first position has a row of extreme norm in many models, and its latents are not comparable.
    """
    first, last, largest = (np.zeros(n_latents) for _ in range(3))
    pairs = 0
    for part in parts:
        _, begins = np.unique(part.tokens, return_index=True)
        _, from_end = np.unique(part.tokens[::-1], return_index=True)
        ends = len(part.tokens) - 1 - from_end
        repeated = (ends > begins) & (begins > 0)
        for sums, rows in ((first, begins[repeated]), (last, ends[repeated])):
            np.add.at(sums, part.indices[rows], part.values[rows])
        np.maximum.at(largest, part.indices[ends[repeated]], part.values[ends[repeated]])
        pairs += int(repeated.sum())
    return first, last, largest, pairs


def repetition_features(
    bundle: Bundle,
    autoencoder: Autoencoder,
    texts: Sequence[str | Sequence[int]],
    *,
    length: int = 16,
    times: int = 8,
    count: int = 10,
    words: int = 4,
    progress: Progress = no_progress,
) -> RepetitionFeatures:
    """Ranks features by how much their latent rises from the first to the last occurrence of a repeated token.

    The first `length` tokens of each text are repeated `times` times, as far as the context goes, and read as one text:
    so the same tokens stand at both occurrences, and only the repetition differs. With `times` 1 the texts are read as
    they are, and tokens that occur more than once in them are compared.
    Raises `UserError` without texts, and where no token is repeated.
    """
    require(len(texts) > 0, "There are no texts; give some.", "texts")
    for name, value in (("length", length), ("times", times), ("count", count)):
        require(value >= 1, f"{name} is {value}, but it must be at least 1.", name)
    plain = detach_bottleneck(bundle)
    context = plain.config.context_length

    def parts() -> Iterable[TextLatents]:
        for number, text in enumerate(texts):
            ids = encode(plain, text, f"texts[{number}]")
            repeated = ids[:context] if times == 1 else np.tile(ids[:length], times)[:context]
            yield latents_of(plain, autoencoder, repeated, number)
            progress("reading texts", number + 1, len(texts))

    first, last, largest, pairs = occurrence_latents(parts(), autoencoder.n_latents)
    require(pairs > 0, "No token of the texts is repeated; give longer texts, or repeat them.", "texts")
    order = np.argsort(first - last, kind="stable")[:count]
    promoted = promoted_tokens_of(bundle, autoencoder, order.tolist(), words)
    return RepetitionFeatures(
        order.astype(np.int32),
        first[order] / pairs,
        last[order] / pairs,
        largest[order],
        pairs,
        tuple(map(tuple, promoted)),
    )
