"""`FeatureContributions`: the parts of the logits of a text's tokens, as a table.

Legend: n tokens, k features of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from steerling_jax.decoding.tables import Table, Tabular, counted

_SHOWN = 3  # features of a token that are printed

FeatureReference = Literal["raw", "model"]


@dataclass(frozen=True, repr=False)
class FeatureContributions(Tabular):
    """The parts of the logits of n tokens, as NumPy arrays in the order of the text.

    positions, token_ids (n,) int32. probabilities (n,): what the model gave the token.
    features (n, k) int32, values (n, k): the features of the row that predicts the token, largest latent first.
    contributions (n, k), bias (n,), residual (n,), which is 0 with a bottleneck: they add up to `logits` (n,), the
    token's logit minus `reference_logits` (n,), up to `error` (n,) of rounding. Logits are those before a cap, where
    the model has one.
    pieces: the text of each token. promoted: of the features that are printed, the tokens that each promotes most.

    Prints as a table with a row for each token; `to_dataframe` has a row for each token and feature, one for its bias
    (feature −1) and one for the residual (feature −2), which add up to the logit.
    """

    positions: np.ndarray
    token_ids: np.ndarray
    probabilities: np.ndarray
    features: np.ndarray
    values: np.ndarray
    contributions: np.ndarray
    bias: np.ndarray
    residual: np.ndarray
    logits: np.ndarray
    reference_logits: np.ndarray
    error: np.ndarray
    reference: FeatureReference
    pieces: tuple[str, ...]
    promoted: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions)

    def strongest(self, token: int, count: int = _SHOWN) -> list[tuple[int, float]]:
        """The features that raise the logit of the token at the place `token` most, with their contributions."""
        order = np.argsort(-self.contributions[token], kind="stable")[:count]
        raised = [j for j in order if self.contributions[token, j] > 0]
        return [(int(self.features[token, j]), float(self.contributions[token, j])) for j in raised]

    def table(self) -> Table:
        """A row for each token and feature, for its bias and for the residual."""
        n, k = self.features.shape
        each = np.repeat(np.arange(n), k + 2)
        rest = np.stack([self.bias, self.residual], axis=1)
        columns = {
            "position": self.positions[each],
            "token": [self.pieces[i] for i in each],
            "feature": np.concatenate([self.features, np.tile([-1, -2], (n, 1))], axis=1).reshape(-1),
            "value": np.concatenate([self.values, np.ones((n, 2))], axis=1).reshape(-1),
            "contribution": np.concatenate([self.contributions, rest], axis=1).reshape(-1),
        }
        return Table(self._title(), columns)

    def summary(self) -> Table:
        """A row for each token."""
        shown = [
            "  ".join(
                f"#{feature} {part:+.2f} ({' '.join(word.strip() for word in self.promoted.get(feature, ()))})"
                for feature, part in self.strongest(i)
            )
            for i in range(len(self))
        ]
        columns: dict[str, Any] = {"position": self.positions, "token": list(self.pieces)}
        return Table(self._title(), columns | {"probability": self.probabilities, "features": shown})

    def _title(self) -> str:
        rest = ", a bias and a residual" if self.residual.any() else " and a bias"
        return f"{counted(len(self), 'token')}, each logit a sum over {self.features.shape[1]} features{rest}"
