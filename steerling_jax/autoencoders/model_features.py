"""`with_features`: a model together with the features of an autoencoder, in one catalogue with its concepts."""

from __future__ import annotations

import dataclasses

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.model_fit import check_fits
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.catalogue import Catalogue, Concept
from steerling_jax.concepts.features import Features
from steerling_jax.models.steerling.config import ModelConfig, concept_counts


def with_features(bundle: Bundle, autoencoder: Autoencoder) -> Bundle:
    """The model with the features of an autoencoder in its catalogue, beside its concepts if it has any.

    Whatever takes the name of a concept for steering then takes that of a feature, or "feature:17". Features that the
    model has already are replaced. Raises `UserError` for an autoencoder of another width, or of a block that the
    model lacks.

    Example:
        >>> bundle = sj.with_features(sj.load("Qwen3-1.7B-Base"), sj.load_autoencoder("runs/sae/export/layers.12"))
        >>> sj.generate(bundle, "The weather", steering=sj.amplify("feature:17", 0.5))
    """
    check_fits(autoencoder, bundle)
    entries: tuple[Concept, ...] = ()
    counts = (0, 0)
    if isinstance(bundle.config, ModelConfig) and bundle.config.concept is not None:
        entries = tuple(one for one in bundle.concepts.concepts if one.head != "feature")
        counts = concept_counts(bundle.config)
    catalogue = Catalogue((*entries, *autoencoder.features), *counts, features=autoencoder.n_latents)
    features = Features(autoencoder.weights.W_dec, autoencoder.layer, autoencoder.name or "the autoencoder")
    return dataclasses.replace(bundle, catalogue=catalogue, features=features)
