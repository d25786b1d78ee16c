"""An autoencoder on the model that it was made for: from token ids to latents, and back into the model as steering."""

from __future__ import annotations

import numpy as np

import steerling_jax as sj
from tests.worlds.paths import REPOSITORY

MODEL = REPOSITORY / "tests" / "golden_decoders" / "qwen3"
AUTOENCODER = REPOSITORY / "tests" / "golden_autoencoders" / "qwen3_model"


def test_latents_reconstruction_and_steering_are_the_published_ones():
    bundle = sj.load(MODEL, dtype="float32")
    autoencoder = sj.load_autoencoder(AUTOENCODER, k=10)
    model, published = np.load(MODEL / "golden.npz"), np.load(AUTOENCODER / "outputs.npz")
    assert autoencoder.layer == 1
    hidden = sj.hidden_states(bundle, model["input_ids"], layers=[1])[1]
    values, indices = autoencoder.encode(hidden)
    order = np.argsort(-published["values"], axis=-1, kind="stable")
    np.testing.assert_allclose(values, np.take_along_axis(published["values"], order, axis=-1), atol=2e-5)
    np.testing.assert_array_equal(np.sort(indices, axis=-1), np.sort(published["indices"], axis=-1))
    np.testing.assert_allclose(autoencoder.reconstruct(hidden), published["reconstruction"], atol=2e-5)
    edit = sj.feature_edit(autoencoder, feature=454, alpha=2.5)
    steered = sj.forward(bundle, model["input_ids"], edits=[edit]).logits
    np.testing.assert_allclose(steered, model["steered.logits"], atol=1e-5 * max(1, np.abs(model["logits"]).max()))


def test_steering_of_generated_tokens_alone_leaves_the_prompt():
    """The first token depends on the prompt alone; steering all positions changes it."""
    bundle = sj.load(MODEL, dtype="float32")
    autoencoder = sj.load_autoencoder(AUTOENCODER, k=10)
    prompt = np.load(MODEL / "golden.npz")["greedy"][0, :9]
    config = sj.GenerationConfig(max_new_tokens=6, temperature=0.0)

    def tokens(**options) -> list[int]:
        return np.asarray(sj.generate(bundle, prompt, config, **options).tokens[9:]).tolist()

    plain = tokens()
    edits = [sj.feature_edit(autoencoder, feature=454, alpha=40.0, positions="generated")]
    everywhere = [sj.feature_edit(autoencoder, feature=454, alpha=40.0)]
    assert tokens(edits=edits)[0] == plain[0]
    assert tokens(edits=edits) != plain
    assert tokens(edits=everywhere)[0] != plain[0]
