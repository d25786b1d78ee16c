"""`Features`: the features of an autoencoder as a model is steered by them, their directions and where these are added.

Legend: S features, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax


@dataclass(frozen=True, eq=False)
class Features:
    """The features that belong to a model, whose names and sizes are in its catalogue under the head "feature".

    directions: (S, D), the rows of the autoencoder's decoder. layer: the block, counted from 0, whose output the
    autoencoder reads and to which directions are added; None for rows after the final norm, to which nothing is added.
    name: of the autoencoder, for messages.
    """

    directions: jax.Array
    layer: int | None
    name: str
