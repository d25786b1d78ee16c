"""Files of language features: JSON with the features, their means and their encoder columns, for tuning.

The file is complete: who tunes with it needs neither the autoencoders nor the texts. Arrays are base64 of little-endian
float32, and sets of tokens base64 of packed bits.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import numpy as np

from steerling_jax.autoencoders.language_features import AutoencoderIdentity, LanguageFeature, LanguageFeatures
from steerling_jax.errors import UserError
from steerling_jax.io.json_files import read_json_object, write_json

KIND, VERSION = "language-features", 1


def write_language_features(path: Path, features: LanguageFeatures, name: str) -> None:
    """Writes the features. name: of the model, for the reader."""
    languages = features.languages
    size = len(next(iter(features.tokens.values()))) if features.tokens else 0
    write_json(
        path,
        {
            "kind": KIND,
            "format_version": VERSION,
            "model": {"name": name, "fingerprint": features.model},
            "autoencoders": [one._asdict() for one in features.autoencoders],
            "languages": {one: sorted(own) for one, own in zip(languages, features.scripts, strict=True)},
            "monolingual": [_feature_json(one, languages) for one in features.monolingual],
            "random": [_feature_json(one, languages) for one in features.random],
            "vocab_size": size,
            "tokens": {script: _encoded(np.packbits(tokens)) for script, tokens in features.tokens.items()},
        },
    )


def read_language_features(path: str | Path) -> LanguageFeatures:
    """The features in a file of `steerling sae languages --save`.

    Raises `UserError` if it cannot be read, is another file, or is damaged.
    """
    path = Path(path).expanduser()
    values = read_json_object(path)
    if values.get("kind") != KIND or values.get("format_version") != VERSION:
        raise UserError(
            f"{path} has no language features of version {VERSION}; give a file of `steerling sae languages --save`."
        )
    try:
        names = tuple(values["languages"])
        size = int(values["vocab_size"])
        features = LanguageFeatures(
            str(values["model"]["fingerprint"]),
            names,
            tuple(frozenset(map(str, own)) for own in values["languages"].values()),
            tuple(_feature(one, names) for one in values["monolingual"]),
            tuple(_feature(one, names) for one in values["random"]),
            tuple(AutoencoderIdentity(**one) for one in values["autoencoders"]),
            {script: _bits(text, size) for script, text in values["tokens"].items()},
        )
        widths = {len(one.column) for one in (*features.monolingual, *features.random)}
        if len(widths) != 1 or len(names) < 2:
            raise ValueError("columns of different widths, or fewer than two languages")
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise UserError(f"{path} is damaged ({error!r}); make it again with `steerling sae languages`.") from error
    return features


def _feature_json(one: LanguageFeature, languages: tuple[str, ...]) -> dict[str, Any]:
    return {
        "language": languages[one.language],
        "layer": one.layer,
        "feature": one.feature,
        "monolinguality": one.monolinguality,
        "means": dict(zip(languages, one.means.tolist(), strict=True)),
        "bias": one.bias,
        "column": _encoded(one.column.astype("<f4")),
    }


def _feature(values: dict[str, Any], languages: tuple[str, ...]) -> LanguageFeature:
    column = np.frombuffer(base64.b64decode(values["column"], validate=True), "<f4").astype(np.float32)
    means = np.array([values["means"][name] for name in languages], np.float32)
    bias = float(values["bias"])
    if not (len(column) and np.isfinite(column).all() and np.isfinite(means).all() and np.isfinite(bias)):
        raise ValueError("a feature with values that are not finite")
    return LanguageFeature(
        languages.index(values["language"]),
        int(values["layer"]),
        int(values["feature"]),
        float(values["monolinguality"]),
        means,
        column,
        bias,
    )


def _encoded(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _bits(text: str, size: int) -> np.ndarray:
    packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if len(packed) != -(-size // 8):
        raise ValueError("a set of tokens of another size")
    return np.unpackbits(packed, count=size).astype(bool)
