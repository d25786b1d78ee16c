"""Files of classifiers by features: JSON with the features and where their autoencoders are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError
from steerling_jax.explain.feature_classifier import DecidingFeature, FeatureClassifier, autoencoder_digest
from steerling_jax.io.autoencoders.load import load_autoencoder, load_autoencoders
from steerling_jax.io.json_files import read_json_object, write_json

KIND, VERSION = "feature-classifier", 1


def write_classifier(
    path: Path, classifier: FeatureClassifier, bundle: Bundle, source: Path, figures: Mapping[str, Any]
) -> None:
    """Writes a classifier. source: the file or folder that its autoencoders were loaded from, stored relative to the
    file. figures: how well it does on the texts that it was tested on, for the reader."""
    folder = path.expanduser().resolve().parent
    write_json(
        path,
        {
            "kind": KIND,
            "format_version": VERSION,
            "label": classifier.label,
            "model": {"name": bundle.name, "fingerprint": classifier.model},
            "autoencoders": {
                "path": os.path.relpath(source.expanduser().resolve(), folder),
                "layers": [
                    {"layer": one.layer, "k": one.k, "digest": autoencoder_digest(one)}
                    for one in classifier.autoencoders
                ],
            },
            "features": [one._asdict() for one in classifier.features],
            "figures": dict(figures),
        },
    )


def load_classifier(path: str | Path, bundle: Bundle) -> FeatureClassifier:
    """A classifier with its autoencoders, for the model that it was made with.

    Raises `UserError` if the file cannot be read or is not a classifier, if its autoencoders are missing or others, and
    for another model.
    """
    path = Path(path).expanduser()
    values = read_json_object(path)
    if values.get("kind") != KIND or values.get("format_version") != VERSION:
        raise UserError(f"{path} is not a classifier of version {VERSION}; give a file of `steerling sae classify`.")
    try:
        source = path.parent / values["autoencoders"]["path"]
        stored = {entry["layer"]: (entry["k"], entry["digest"]) for entry in values["autoencoders"]["layers"]}
        features = tuple(
            DecidingFeature(one["layer"], int(one["feature"]), float(one["difference"])) for one in values["features"]
        )
        label, model = str(values["label"]), str(values["model"]["fingerprint"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); make the classifier again.") from error
    if not source.exists():
        raise UserError(
            f"The autoencoders of {path} are not at {source}; move them there, or correct autoencoders.path in it."
        )
    layers = [layer for layer in stored if layer is not None]
    k = next(iter(k for k, _ in stored.values()), None)
    loaded = load_autoencoders(source, k=k, layers=layers) if layers else [load_autoencoder(source, k=k)]
    for one in loaded:
        if autoencoder_digest(one) != stored[one.layer][1]:
            raise UserError(f"{source} holds other autoencoders than those that {path} was made with; make it again.")
    classifier = FeatureClassifier(label, model, features, tuple(loaded))
    classifier.check(bundle)
    return classifier
