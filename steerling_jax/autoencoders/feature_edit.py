"""Steering by a feature: `h + α d` on the output of a block, where d is the feature's row of the decoder."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.model_fit import check_features
from steerling_jax.errors import require
from steerling_jax.models.edits import LayerEdit, push_output


def feature_edit(
    autoencoder: Autoencoder,
    *,
    feature: int,
    alpha: float,
    layer: int | None = None,
    positions: Literal["all", "generated"] = "all",
) -> LayerEdit:
    """The edit that adds `alpha · W_dec[feature]` to the output of a block.

    Args:
        autoencoder: the autoencoder that has the feature.
        feature: its index, counted from 0.
        alpha: the factor; negative ones suppress. An α as large as the feature's largest activation usually takes over
            the text. A random direction of that length changes the text too, so compare with one.
        layer: the block, counted from 0; None for the one that the autoencoder reads.
        positions: "all", or "generated" for generated tokens without the prompt (in `sj.generate`).

    Raises:
        UserError: the feature does not exist, alpha is not finite, or no layer is known.

    Example:
        >>> edit = sj.feature_edit(autoencoder, feature=1042, alpha=8.0)
        >>> sj.generate(bundle, "The weather", sj.GenerationConfig(max_new_tokens=32), edits=[edit])
    """
    check_features(autoencoder, [feature], "feature")
    require(bool(np.isfinite(alpha)), f"alpha is {alpha}, but it must be a finite number.", "alpha")
    require(positions in ("all", "generated"), f"positions is {positions!r}; give 'all' or 'generated'.", "positions")
    layer = autoencoder.layer if layer is None else layer
    require(layer is not None, "The autoencoder's files do not say which layer it reads; give layer=.", "layer")
    assert layer is not None
    require(layer >= 0, f"layer is {layer}, but blocks are counted from 0.", "layer")
    vector = alpha * autoencoder.weights.W_dec[feature].astype(jnp.float32)
    return push_output(vector, layer, positions == "generated")
