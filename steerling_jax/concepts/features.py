"""`Features`: the features of autoencoders as a model is steered by them, their directions and where these are added.

Legend: S features of an autoencoder, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax


@dataclass(frozen=True, eq=False)
class FeatureDirections:
    """The features of one autoencoder, whose names and sizes are in the model's catalogue under the head "feature".

    directions: (S, D), the rows of the autoencoder's decoder. layer: the block, counted from 0, whose output the
    autoencoder reads and to which directions are added; None for rows after the final norm, to which nothing is added.
    name: of the autoencoder, for messages.
    """

    directions: jax.Array
    layer: int | None
    name: str


@dataclass(frozen=True, eq=False)
class Features:
    """The features that belong to a model, by autoencoder, in the order in which the catalogue numbers them."""

    parts: tuple[FeatureDirections, ...]

    def locate(self, feature: int) -> tuple[FeatureDirections, int]:
        """The autoencoder of a feature that the catalogue has, and the feature's number within it."""
        for part in self.parts:
            if feature < len(part.directions):
                return part, feature
            feature -= len(part.directions)
        raise IndexError(feature)
