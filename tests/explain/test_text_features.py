"""Features of texts in several layers from one pass, beside those of each row."""

from __future__ import annotations

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.explain.text_features import read_text_features
from tests.worlds.paths import REPOSITORY

MODEL = REPOSITORY / "tests" / "golden_decoders" / "qwen3"
AUTOENCODER = REPOSITORY / "tests" / "golden_autoencoders" / "qwen3_model"


def test_features_of_texts_are_those_of_their_rows():
    bundle = sj.load(MODEL, dtype="float32")
    inner = sj.load_autoencoder(AUTOENCODER, k=10)
    final = Autoencoder(inner.weights, layer=None)  # the same, of the rows after the final norm
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, bundle.config.vocab_size, n).tolist() for n in (9, 30, 3)]
    texts = [" ".join(map(str, one)) for one in ids]
    stages = []
    layers = read_text_features(bundle, [inner, final], texts, lambda *stage: stages.append(stage))
    assert stages[-1] == ("reading texts", 3, 3)
    for number, one in enumerate(ids):
        result = {
            "inner": sj.hidden_states(bundle, [one], layers=[1])[1][0],
            "final": sj.forward(bundle, one).hidden[0],
        }
        for autoencoder, features, rows in zip((inner, final), layers, result.values(), strict=True):
            rows = np.asarray(rows, np.float32)
            norms = np.linalg.norm(rows, axis=1)
            usual = norms <= 6 * np.median(norms)
            latents = np.asarray(autoencoder.encode(rows, dense=True)) * usual[:, None]
            np.testing.assert_allclose(features.strongest[[number]].toarray()[0], latents.max(axis=0), rtol=1e-3,
                                       atol=1e-4)  # fmt: skip
            np.testing.assert_array_equal(features.last[[number]].toarray()[0], latents[-1] > 0)
            np.testing.assert_allclose(features.mean[number], rows[usual].mean(axis=0), rtol=1e-3, atol=1e-4)
    some = layers[0].select(np.array([False, True, True]))
    np.testing.assert_array_equal(some.strongest.toarray(), layers[0].strongest.toarray()[1:])
    np.testing.assert_array_equal(some.mean, layers[0].mean[1:])
    for arguments, words in (([], "no texts"), (["1 2", ""], "Text 2 is empty")):
        with pytest.raises(sj.UserError, match=words):
            read_text_features(bundle, [inner], arguments)
    with pytest.raises(sj.UserError, match="no autoencoder"):
        read_text_features(bundle, [], texts)
