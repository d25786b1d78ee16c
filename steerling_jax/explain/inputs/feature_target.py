"""`FeatureActivation`: an autoencoder's feature as the target of an input attribution.

Legend: B rows, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.model_fit import check_features
from steerling_jax.errors import require
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.steerling.config import ModelConfig


@struct.dataclass
class FeatureActivation:
    """A feature's pre-activation, also where it is negative or not among those that are kept: row · weight + bias.

    The pre-activation is the default for the same reason as a concept's logit (`ConceptActivation`): where a latent is
    not kept, its gradient would be 0.

    weight: (D,) float32. bias: () float32. layer: the block, counted from 0, whose output is the row; None for the row
    after the final norm. In a diffusion model it is the row of the committed position, in an autoregressive model that
    of the token before: to explain the latent at a token, choose the commit after it.
    """

    weight: Any
    bias: Any
    layer: int | None = struct.field(pytree_node=False, default=None)
    guided: ClassVar[bool] = False

    def check(self, config: ModelConfig | DecoderConfig) -> None:
        D, L = config.width, config.n_layers
        require(
            np.shape(self.weight) == (D,),
            f"The feature reads rows of width {np.shape(self.weight)[-1]}, but the model's is {D}; give an autoencoder "
            "of this model.",
        )
        require(
            self.layer is None or self.layer < L,
            f"The feature is of block {self.layer}, but this model's are 0 to {L - 1}.",
        )

    def value(self, params: Any, rows: jax.Array, tokens: jax.Array, config: Any, compute: Any) -> jax.Array:
        return jnp.sum(rows * self.weight, axis=-1) + self.bias


def feature_activation(autoencoder: Autoencoder, feature: int) -> FeatureActivation:
    """The target for a feature of an autoencoder. Of a bottleneck, detach it before (`detach_bottleneck`): its features
    are read from the row that it replaces.

    Raises `UserError` for a feature that does not exist, and for an autoencoder that normalises its input.

    Example:
        >>> trace = sj.given_trace(bundle, "The weather", " in Paris is mild.")
        >>> target = feature_activation(autoencoder, 17)
        >>> scores = sj.attribute_inputs(bundle, trace, target=target, positions=[6])
    """
    check_features(autoencoder, [feature])
    weights, settings = autoencoder.weights, autoencoder.weights.settings
    require(
        settings.normalise == "none",
        f"{autoencoder.name} normalises its input, so a feature is no linear function of it; give another one.",
    )
    weight = np.asarray(weights.W_enc[:, feature], np.float32)
    bias = np.float32(weights.b_enc[feature])
    if settings.subtract_b_dec:
        bias = bias - np.float32(np.dot(np.asarray(weights.b_dec, np.float32), weight))
    if settings.rescale_by_decoder_norm:
        norm = np.linalg.norm(np.asarray(weights.W_dec[feature], np.float32))
        weight, bias = weight * norm, bias * norm
    return FeatureActivation(weight, np.float32(bias), autoencoder.layer)
