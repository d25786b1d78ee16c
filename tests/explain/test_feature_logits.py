"""Features of the last block as parts of logits, and a feature's latent as the target of an input attribution."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.autoencoders.weights import Settings
from steerling_jax.cli.main import main
from steerling_jax.explain.features.activation import explain_activation
from steerling_jax.explain.inputs.feature_target import feature_activation
from steerling_jax.models.output_projection import output_projection
from tests.worlds.autoencoders import make_autoencoder
from tests.worlds.paths import REPOSITORY

MODEL = REPOSITORY / "tests" / "golden_decoders" / "qwen3"
AUTOENCODER = REPOSITORY / "tests" / "golden_autoencoders" / "qwen3_model"


@pytest.fixture(scope="module")
def bundle() -> sj.Bundle:
    return sj.load(MODEL, dtype="float32")


@pytest.fixture(scope="module")
def autoencoder(bundle: sj.Bundle) -> sj.Autoencoder:
    one = sj.load_autoencoder(AUTOENCODER, k=10)
    return dataclasses.replace(one, layer=bundle.backbone.n_layers - 1)


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return np.load(MODEL / "golden.npz")["input_ids"][0, :14].tolist()


@pytest.mark.parametrize("reference", ["raw", "model"])
def test_features_of_the_last_block_a_bias_and_a_residual_add_up_to_the_logits(
    bundle: sj.Bundle, autoencoder: sj.Autoencoder, ids: list[int], reference
):
    parts = sj.feature_contributions(bundle, ids, autoencoder=autoencoder, reference=reference)
    logits = np.asarray(sj.forward(bundle, ids).logits, np.float64)[0, :-1]
    q = np.exp(logits - logits.max(axis=1, keepdims=True))
    q /= q.sum(axis=1, keepdims=True)
    own = logits[np.arange(len(logits)), ids[1:]]
    expected = own - ((q * logits).sum(axis=1) if reference == "model" else 0)
    np.testing.assert_allclose(parts.logits, expected, rtol=1e-4, atol=1e-4)
    total = parts.contributions.sum(axis=1) + parts.bias + parts.residual
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-4)
    assert parts.error.max() < 1e-4
    assert np.abs(parts.residual).max() > 1e-2  # what this autoencoder leaves over is not hidden
    # One part by hand: latent · direction · frozen gain · (row of the table, minus the mean row).
    layer = autoencoder.layer
    assert layer is not None
    h = sj.hidden_states(bundle, [ids], layers=[layer])[layer][0, 4]
    table = np.asarray(output_projection(bundle.params, bundle.config).table, np.float64)
    weight = np.asarray(bundle.params["norm"]["weight"], np.float64)
    gain = weight / np.sqrt((h.astype(np.float64) ** 2).mean() + bundle.config.rms_norm_eps)
    toward = table[ids[5]] - (q[4] @ table if reference == "model" else 0)
    feature, value = int(parts.features[4, 0]), float(parts.values[4, 0])
    direction = np.asarray(autoencoder.weights.W_dec[feature], np.float64)
    np.testing.assert_allclose(parts.contributions[4, 0], value * (direction * gain) @ toward, rtol=1e-3, atol=1e-5)
    assert "a bias and a residual" in repr(parts)


def test_other_blocks_and_kinds_are_refused(bundle: sj.Bundle, autoencoder: sj.Autoencoder, golden: Path):
    with pytest.raises(sj.UserError, match="reads block 0, but only features of the last block"):
        sj.feature_contributions(bundle, [1, 2, 3], autoencoder=dataclasses.replace(autoencoder, layer=0))
    weights = dataclasses.replace(autoencoder.weights, settings=Settings("topk", 10, normalise="layer_norm"))
    normalising = dataclasses.replace(autoencoder, weights=weights)
    with pytest.raises(sj.UserError, match="its output is no sum of features"):
        sj.feature_contributions(bundle, [1, 2, 3], autoencoder=normalising)
    with pytest.raises(sj.UserError, match="normalises its input, so a feature is no linear function"):
        feature_activation(normalising, 3)
    with pytest.raises(sj.UserError, match="There is no feature 99999"):
        feature_activation(autoencoder, 99999)
    steerling = sj.load(golden / "base")
    one = make_autoencoder(Settings("topk", 4), width=steerling.backbone.width)
    with pytest.raises(sj.UserError, match="is a diffusion model"):
        sj.feature_contributions(steerling, [1, 2, 3], autoencoder=one)
    with pytest.raises(sj.UserError, match="is a diffusion model"):
        explain_activation(steerling, one, 3, [1, 2, 3])
    wide = make_autoencoder(Settings("topk", 4))
    trace = sj.given_trace(bundle, [1, 2], [3])
    with pytest.raises(sj.UserError, match="reads rows of width 12, but the model's is"):
        sj.attribute_inputs(bundle, trace, target=feature_activation(wide, 3))


def test_the_latent_of_a_feature_comes_from_tokens(bundle: sj.Bundle, autoencoder: sj.Autoencoder, ids: list[int]):
    inner = dataclasses.replace(autoencoder, layer=0)
    rows = sj.hidden_states(bundle, [ids], layers=[0])[0][0]
    norms = np.linalg.norm(rows, axis=1)
    latents = np.asarray(inner.encode(rows, dense=True)) * (norms <= 6 * np.median(norms))[:, None]
    feature = int(latents[3:-1].max(axis=0).argmax())
    found = explain_activation(bundle, inner, feature, ids)
    np.testing.assert_allclose(found.values, latents[:, feature], rtol=1e-3, atol=1e-4)
    at = found.at
    assert at == int(latents[:-1, feature].argmax())
    # The pre-activation is the latent where it is kept, so the attribution is of the same number.
    np.testing.assert_allclose(found.pre_activation, latents[at, feature], rtol=1e-3)
    assert at is not None
    assert len(found.scores) == at + 1
    np.testing.assert_allclose(sum(found.scores), found.pre_activation - found.baseline, rtol=0.05, atol=0.05)
    assert abs(found.error) < 0.1 * abs(found.pre_activation - found.baseline) + 0.05


def test_in_a_diffusion_model_the_row_is_that_of_the_committed_position(golden: Path):
    bundle = sj.load(golden / "base")
    one = dataclasses.replace(make_autoencoder(Settings("topk", 4), width=bundle.backbone.width), layer=1)
    trace = sj.given_trace(bundle, [5, 9, 12], [7, 8])
    result = sj.attribute_inputs(bundle, trace, target=feature_activation(one, 6), positions=[4])
    row = sj.hidden_states(bundle, [trace.snapshot(1)], layers=[1])[1][0, 4]
    expected = row @ np.asarray(one.weights.W_enc[:, 6]) + float(one.weights.b_enc[6])
    np.testing.assert_allclose(result.path_logits[0], expected, rtol=1e-3, atol=1e-3)


def test_the_command_shows_both(
    autoencoder: sj.Autoencoder, ids: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    last = tmp_path / "L0_10"
    sj.save_autoencoder(autoencoder, last, format="qwen-scope")
    line = ["features", " ".join(map(str, ids)), "--model", str(MODEL)]
    assert main([*line, "--autoencoder", str(last), "--json"]) == 0
    (first, *_) = json.loads(capsys.readouterr().out)["tokens"]
    total = sum(one["contribution"] for one in first["features"]) + first["bias"] + first["residual"]
    assert total == pytest.approx(first["logit"], abs=1e-3)
    assert main([*line, "--autoencoder", str(last)]) == 0
    assert "leaves over (residual)" in capsys.readouterr().out
    line += ["--autoencoder", str(AUTOENCODER), "--k", "10"]
    assert main(line) == 2
    assert "reads block 1, but only features of the last block, 3" in capsys.readouterr().err
    found = np.asarray(sj.load_autoencoder(AUTOENCODER, k=10).encode(hidden_of(ids), dense=True))
    assert main([*line, "--feature", str(int(found[2:-1].max(axis=0).argmax()))]) == 0
    assert "came from" in capsys.readouterr().out
    assert main([*line, "--feature", "2", "--feature", "3"]) == 2
    assert "TEXT takes one --feature" in capsys.readouterr().err
    assert main([*line, "--html", str(tmp_path / "x.html")]) == 2
    assert "--html is for pages" in capsys.readouterr().err


def hidden_of(ids: list[int]) -> np.ndarray:
    return sj.hidden_states(sj.load(MODEL, dtype="float32"), [ids], layers=[1])[1][0]
