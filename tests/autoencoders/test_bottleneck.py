"""A model with a bottleneck after its final norm: every logit is a sum over features, wherever logits are read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.bottleneck import bottleneck_of
from steerling_jax.autoencoders.weights import Settings, Weights
from steerling_jax.concepts.concept import Concept
from steerling_jax.explain.feature_texts import promoted_tokens_of
from steerling_jax.io.autoencoders.bottleneck_file import BottleneckOrigin, save_bottleneck
from steerling_jax.models.output_projection import output_projection
from steerling_jax.models.steerling.fingerprint import fingerprint
from tests.worlds.paths import REPOSITORY

DECODERS = REPOSITORY / "tests" / "golden_decoders"
K, LATENTS = 5, 64


def random_bottleneck(width: int, **changes) -> Autoencoder:
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    weights = Weights(normal(width, LATENTS), normal(LATENTS, width), normal(LATENTS), normal(width),
                      settings=Settings("topk", K, subtract_b_dec=True))  # fmt: skip
    return dataclasses.replace(Autoencoder(weights, None, "tiny"), **changes)


def attached(name: str) -> tuple[sj.Bundle, sj.Bundle]:
    """A golden decoder, plain and with a bottleneck."""
    bundle = sj.load(DECODERS / name, dtype="float32")
    return bundle, sj.attach_bottleneck(bundle, random_bottleneck(bundle.backbone.width))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_logits_are_sums_of_features_and_a_bias(name: str):
    plain, bundle = attached(name)
    ids = np.load(DECODERS / name / "golden.npz")["input_ids"].reshape(-1)[:20]
    logits = np.asarray(sj.forward(bundle, ids).logits)[0]
    parts = sj.feature_contributions(bundle, ids)
    assert parts.features.shape == (len(ids) - 1, K)
    sums = parts.contributions.sum(axis=1) + parts.bias
    cap = output_projection(bundle.params, bundle.config).cap
    assert (cap is not None) == (name == "gemma2")
    sums = sums if cap is None else cap * np.tanh(sums / cap)
    tolerance = 1e-5 * np.abs(logits).max()
    np.testing.assert_allclose(sums, logits[np.arange(len(ids) - 1), ids[1:]], atol=tolerance)
    # The features are those of the model's own rows, and another split has the same parts but for a reference.
    hidden = np.asarray(sj.forward(plain, ids).decomposition.hidden)[0]
    values, indices = random_bottleneck(hidden.shape[-1]).encode(hidden[:-1])
    np.testing.assert_array_equal(parts.features, indices)
    np.testing.assert_allclose(parts.values, values, rtol=1e-4, atol=1e-4)
    centred = sj.feature_contributions(bundle, ids, reference="model")
    q = np.exp(logits - logits.max(axis=-1, keepdims=True))
    q /= q.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(centred.probabilities, q[np.arange(len(ids) - 1), ids[1:]], rtol=1e-3)
    np.testing.assert_allclose(
        centred.contributions.sum(axis=1) + centred.bias, parts.logits - centred.reference_logits, atol=10 * tolerance
    )
    if cap is None:
        np.testing.assert_allclose(centred.reference_logits, (q * logits).sum(axis=-1)[:-1], atol=10 * tolerance)
    assert float(parts.error.max()) < 10 * tolerance


def test_generation_and_likelihood_read_the_bottleneck():
    plain, bundle = attached("llama")
    prompt = np.load(DECODERS / "llama" / "golden.npz")["input_ids"].reshape(-1)[:9]
    made = sj.generate(bundle, prompt, sj.GenerationConfig(max_new_tokens=6, temperature=0.0)).tokens
    logits = np.asarray(sj.forward(bundle, made).logits)[0]
    np.testing.assert_array_equal(made[9:], logits.argmax(axis=-1)[8:-1])
    other = sj.generate(plain, prompt, sj.GenerationConfig(max_new_tokens=6, temperature=0.0)).tokens
    assert made[9:].tolist() != other[9:].tolist()
    shifted = logits - logits.max(axis=-1, keepdims=True)
    losses = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    expected = losses[np.arange(8, len(made) - 1), made[9:]].sum()
    found = sj.log_likelihood(bundle, made[:9].tolist(), made[9:].tolist())
    np.testing.assert_allclose(float(getattr(found, "total", found)), expected, rtol=1e-4)


def test_a_steerling_model_takes_one_where_it_has_epsilon(text_model: Path):
    plain = sj.load(text_model)
    bundle = sj.attach_bottleneck(plain, random_bottleneck(plain.backbone.width))
    ids = plain.tokenizer.encode("The quick brown fox")
    parts = sj.feature_contributions(bundle, ids)
    # The state that predicts the last token: those before it given, it masked.
    canvas = np.array([*ids[:-1], plain.config.mask_token_id])
    logits = np.asarray(sj.forward(bundle, canvas).logits)[0, -1]
    total = parts.contributions[-1].sum() + parts.bias[-1]
    np.testing.assert_allclose(total, logits[ids[-1]], atol=1e-4 * np.abs(logits).max())
    result = sj.generate(bundle, "The quick", sj.GenerationConfig(max_new_tokens=4, seed=0))
    assert result.generated_tokens == 4


def test_promoted_tokens_are_those_of_the_largest_logits():
    bundle, _ = attached("llama")
    table = np.asarray(output_projection(bundle.params, bundle.config).table)
    autoencoder = random_bottleneck(table.shape[1])
    decoder = np.asarray(autoencoder.weights.W_dec)
    for least, sign in ((False, -1), (True, 1)):
        order = np.argsort(sign * (decoder[7] @ table.T), kind="stable")[:5]
        expected = [bundle.tokenizer.piece(int(token)) for token in order]
        assert promoted_tokens_of(bundle, autoencoder, [3, 7], 5, least=least)[1] == expected


def test_an_export_loads_by_one_call_with_the_model_that_it_was_made_for(tmp_path: Path):
    plain, bundle = attached("llama")
    model, folder = str(DECODERS / "llama"), tmp_path / "export"
    origin = BottleneckOrigin(model, fingerprint(plain.params, plain.config), {"cost_nats": 0.5})
    river = Concept(3, "rivers", head="feature")
    made = dataclasses.replace(random_bottleneck(plain.backbone.width), features=(river,))
    save_bottleneck(made, folder, origin)
    loaded = sj.load(folder, dtype="float32")
    assert [one.name for one in bottleneck_of(loaded).features] == ["rivers"]
    ids = np.arange(12)
    np.testing.assert_array_equal(sj.forward(loaded, ids).logits, sj.forward(bundle, ids).logits)
    autoencoder = sj.load_autoencoder(folder)
    assert (autoencoder.k, autoencoder.n_latents, autoencoder.layer) == (K, LATENTS, None)
    # A trace says that it is of another model than the plain one.
    assert fingerprint(loaded.params, loaded.config) != origin.fingerprint
    about = folder / "bottleneck.json"
    values = json.loads(about.read_text())
    for changes, words in (
        ({"fingerprint": "0" * 16}, "restore that model"),
        ({"model": str(tmp_path / "gone")}, "correct 'model' in"),
        ({"hook_point": "mlp"}, "hook_point is 'mlp'"),
        ({"model": 3}, "has no text in 'model'"),
    ):
        about.write_text(json.dumps(values | changes))
        with pytest.raises(sj.UserError, match=words):
            sj.load(folder)


def test_what_cannot_be_attached_is_refused():
    plain, _ = attached("llama")
    width = plain.backbone.width
    good = random_bottleneck(width)
    broken = dataclasses.replace(good.weights, b_enc=good.weights.b_enc.at[3].set(jnp.nan))
    threshold = dataclasses.replace(good.weights, settings=Settings("threshold"))
    for autoencoder, words in (
        (random_bottleneck(width + 4), f"rows of width {width + 4}, but those of .* have {width}"),
        (random_bottleneck(width, layer=2), "reads the output of block 2"),
        (random_bottleneck(width, weights=broken), "contains NaN"),
        (random_bottleneck(width, weights=threshold), "no plain TopK"),
    ):
        with pytest.raises(sj.UserError, match=words):
            sj.attach_bottleneck(plain, autoencoder)
    with pytest.raises(sj.UserError, match="has no bottleneck"):
        sj.feature_contributions(plain, [1, 2, 3])
