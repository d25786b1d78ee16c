"""`with_features`: a model together with the features of autoencoders, in one catalogue with its concepts."""

from __future__ import annotations

import dataclasses

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.model_fit import check_fit_together, check_fits
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.catalogue import Catalogue, FeatureRange
from steerling_jax.concepts.concept import Concept, no_name, unnamed
from steerling_jax.concepts.features import FeatureDirections, Features
from steerling_jax.models.steerling.config import ModelConfig, concept_counts


def with_features(bundle: Bundle, autoencoder: Autoencoder, *others: Autoencoder) -> Bundle:
    """The model with the features of autoencoders in its catalogue, beside its concepts if it has any.

    Whatever takes the name of a concept for steering then takes that of a feature, or "feature:17". With autoencoders
    of several blocks, "feature:3:17" is feature 17 of block 3; the catalogue numbers all features in the order of the
    autoencoders. Features that the model has already are replaced. Raises `UserError` for an autoencoder of another
    width, or of a block that the model lacks, and among several for two of one block or one without a block.

    Example:
        >>> bundle = sj.with_features(sj.load("Qwen3-1.7B-Base"), sj.load_autoencoder("runs/sae/export/layers.12"))
        >>> sj.generate(bundle, "The weather", steering=sj.amplify("feature:17", 0.5))
    """
    autoencoders = (autoencoder, *others)
    for one in autoencoders:
        check_fits(one, bundle)
    if others:
        check_fit_together(autoencoders)
    entries: list[Concept] = []
    counts = (0, 0)
    if isinstance(bundle.config, ModelConfig) and bundle.config.concept is not None:
        entries = [one for one in bundle.concepts.concepts if one.head != "feature"]
        counts = concept_counts(bundle.config)
    total = sum(one.n_latents for one in autoencoders)
    ranges = tuple(FeatureRange(one.layer, one.n_latents) for one in autoencoders)
    catalogue = Catalogue((), *counts, features=total, ranges=ranges)
    for (first, _), one in zip(catalogue.numbered_ranges, autoencoders, strict=True):
        entries += [_renumbered(entry, first, catalogue) for entry in one.features]
    catalogue = dataclasses.replace(catalogue, concepts=tuple(entries))
    parts = (FeatureDirections(one.weights.W_dec, one.layer, one.name or "the autoencoder") for one in autoencoders)
    return dataclasses.replace(bundle, catalogue=catalogue, features=Features(tuple(parts)))


def _renumbered(entry: Concept, first: int, catalogue: Catalogue) -> Concept:
    """The entry of a feature with its number in the catalogue, also where the number is its name."""
    id, name = first + entry.id, entry.name
    if name == unnamed(entry.id, "feature"):
        name = catalogue.numbered(id, "feature")
    elif not entry.is_named:
        name = no_name(id, entry.words)
    return dataclasses.replace(entry, id=id, name=name)
