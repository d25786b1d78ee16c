"""A classifier of texts by features: which features decide, of which autoencoders, and for which model.

Legend: K features of the classifier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.model_fit import check_fits
from steerling_jax.bundle import Bundle
from steerling_jax.errors import require
from steerling_jax.explain.text_features import read_text_features
from steerling_jax.models.edits import LayerEdit, project_out
from steerling_jax.models.steerling.fingerprint import fingerprint

_VALUES = 4096  # of each array, evenly spaced, that an autoencoder's digest covers


class DecidingFeature(NamedTuple):
    """A feature of a classifier: the block whose output is read (None: after the final norm), its number in that
    autoencoder, and Δ, how much more often it fires in positive texts."""

    layer: int | None
    feature: int
    difference: float


@dataclass(frozen=True, repr=False)
class FeatureClassifier:
    """Finds a text positive if any of its features fires at any token.

    Attributes:
        label: the class that it finds.
        model: the fingerprint of the model whose hidden states are read.
        features: those that decide, the largest difference first.
        autoencoders: those that the features belong to.
    """

    label: str
    model: str
    features: tuple[DecidingFeature, ...]
    autoencoders: tuple[Autoencoder, ...]

    def check(self, bundle: Bundle) -> None:
        """Raises `UserError` for another model than the one that the classifier was made with, and for a feature
        that its autoencoder lacks."""
        require(
            fingerprint(bundle.params, bundle.config) == self.model,
            f"The classifier of {self.label!r} was made with another model than {bundle.name}; make one with this one.",
        )
        by_layer = {one.layer: one for one in self.autoencoders}
        for one in by_layer.values():
            check_fits(one, bundle)
        for layer, feature, _ in self.features:
            size = by_layer[layer].n_latents if layer in by_layer else 0
            require(
                feature < size,
                f"The classifier of {self.label!r} names feature {feature} of layer {layer}, which its autoencoders do "
                "not have; make it again with them.",
            )

    def fired(self, bundle: Bundle, text: str | Sequence[int]) -> list[DecidingFeature]:
        """The deciding features that fire in a text, given as a string or as token ids; none for an empty text."""
        if not len(text):
            return []
        layers = read_text_features(bundle, self.autoencoders, [text])
        read = {one.layer: features.strongest for one, features in zip(self.autoencoders, layers, strict=True)}
        return [one for one in self.features if read[one.layer][0, one.feature] > 0]

    def suppression(self) -> tuple[LayerEdit, ...]:
        """Edits that take the features' directions out of the outputs of their blocks, at all positions.

        Raises `UserError` for a feature of the rows after the final norm, which no block puts out.
        """
        edits = []
        for layer, feature, _ in self.features:
            require(layer is not None, f"The classifier of {self.label!r} reads the rows after the final norm, where "
                    "features cannot be suppressed; use an autoencoder of a block.")  # fmt: skip
            assert layer is not None
            (autoencoder,) = (one for one in self.autoencoders if one.layer == layer)
            axis = autoencoder.weights.W_dec[feature].astype(jnp.float32)
            axis = axis / jnp.maximum(jnp.linalg.norm(axis), 1e-12)
            edits.append(project_out(axis[None], layers=jnp.arange(layer + 1) == layer))
        return tuple(edits)


def autoencoder_digest(autoencoder: Autoencoder) -> str:
    """16 hexadecimal digits: a hash of the settings and of 4,096 values of each array."""
    weights = autoencoder.weights
    digest = hashlib.sha256(repr(weights.settings).encode())
    for array in (weights.W_enc, weights.W_dec, weights.b_enc, weights.b_dec, weights.threshold):
        if array is not None:
            values = np.asarray(array, np.float32).reshape(-1)
            at = np.linspace(0, values.size - 1, min(values.size, _VALUES)).astype(np.int64)
            digest.update(f"{array.shape}".encode() + values[at].tobytes())
    return digest.hexdigest()[:16]
