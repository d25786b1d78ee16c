"""Features of repetition, beside the same figures from every latent of the repeated texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.cli.main import main
from steerling_jax.explain.feature_texts import TextLatents
from steerling_jax.explain.features.repetition import occurrence_latents, repetition_features
from tests.explain.test_feature_texts import AUTOENCODER, MODEL, World


def test_latents_at_first_and_last_occurrences_by_hand():
    # Token 7 occurs three times, token 8 twice, token 9 first at position 0, and the others once.
    tokens = np.array([9, 7, 8, 7, 9, 5, 7, 8])
    indices = np.array([[0, 1], [0, 1], [2, 3], [0, 1], [0, 1], [0, 1], [3, 1], [2, 0]])
    values = np.array([[50.0, 50], [1, 2], [3, 0], [90, 90], [90, 90], [90, 90], [4, 5], [6, 7]])
    first, last, largest, pairs = occurrence_latents([TextLatents(0, tokens, values, indices)] * 2, 5)
    assert pairs == 4
    np.testing.assert_array_equal(first / 2, [1, 2, 3, 0, 0])
    np.testing.assert_array_equal(last / 2, [7, 5, 6, 4, 0])
    np.testing.assert_array_equal(largest, [7, 5, 6, 4, 0])


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_features_are_ranked_by_their_rise_in_repeated_texts(world: World):
    texts = world.ids[0][:3]
    found = repetition_features(world.bundle, world.autoencoder, texts, length=5, times=4, count=6)
    first, last = (np.zeros(world.autoencoder.n_latents) for _ in range(2))
    pairs = 0
    for ids in texts:
        latents = world.latents(ids[:5] * 4)
        for place, token in enumerate(ids[:5]):
            if place == 0 or token in ids[:place]:  # position 0, and tokens that came before
                continue
            begin = place
            end = max(i for i, one in enumerate(ids[:5] * 4) if one == token)
            first, last, pairs = first + latents[begin], last + latents[end], pairs + 1
    rise = (last - first) / pairs
    assert found.pairs == pairs
    np.testing.assert_allclose(found.rise, np.sort(rise)[::-1][:6], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(rise[found.features], found.rise, rtol=1e-3, atol=1e-4)
    assert found.rise[0] > 0
    assert "repeated tokens" in repr(found)


def test_texts_without_a_repeated_token_are_refused(world: World):
    with pytest.raises(sj.UserError, match="No token of the texts is repeated"):
        repetition_features(world.bundle, world.autoencoder, [[1, 2, 3]], times=1)
    with pytest.raises(sj.UserError, match="There are no texts"):
        repetition_features(world.bundle, world.autoencoder, [])


def test_the_command(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(world.texts[0]) + "\n")
    line = ["features", "--model", str(MODEL), "--autoencoder", str(AUTOENCODER), "--k", "10", "--repetition", "4"]
    line = [*line, "--limit", "3"]
    assert main([*line, "--text", str(file), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    found = repetition_features(world.bundle, world.autoencoder, world.texts[0], times=4, count=3)
    assert [one["feature"] for one in printed["features"]] == found.features.tolist()
    assert printed["repeated_tokens"] == found.pairs
    assert main([*line, "--text", str(file)]) == 0
    assert f"#{found.features[0]}" in capsys.readouterr().out
    assert main(line) == 2
    assert "--repetition needs --text" in capsys.readouterr().err
