"""Features on texts, beside the same figures from every latent of every text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.cli.main import main
from steerling_jax.explain.feature_texts import contrast_features, feature_pages
from tests.worlds.paths import REPOSITORY

MODEL = REPOSITORY / "tests" / "golden_decoders" / "qwen3"
AUTOENCODER = REPOSITORY / "tests" / "golden_autoencoders" / "qwen3_model"


class World:
    """The golden model with its autoencoder, and texts, which are ids in decimal."""

    def __init__(self) -> None:
        self.bundle = sj.load(MODEL, dtype="float32")
        self.autoencoder = sj.load_autoencoder(AUTOENCODER, k=10)
        rng = np.random.default_rng(0)
        vocabulary = self.bundle.config.vocab_size
        # The texts of the first set have small ids, those of the second large ones.
        halves = ((1, vocabulary // 2), (vocabulary // 2, vocabulary))
        self.ids = [[rng.integers(*half, int(rng.integers(8, 30))).tolist() for _ in range(6)] for half in halves]
        self.texts = [[" ".join(map(str, ids)) for ids in one] for one in self.ids]

    def latents(self, ids: list[int]) -> np.ndarray:
        """(T, S), 0 at rows of extreme norm."""
        rows = sj.hidden_states(self.bundle, [ids], layers=[1])[1][0]
        norms = np.linalg.norm(rows, axis=1)
        return np.asarray(self.autoencoder.encode(rows, dense=True)) * (norms <= 6 * np.median(norms))[:, None]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_a_contrast_ranks_features_by_the_texts_in_which_they_fire(world: World):
    found = contrast_features(world.bundle, world.autoencoder, *world.texts, count=8)
    strongest = [np.stack([world.latents(ids).max(axis=0) for ids in one]) for one in world.ids]
    shares = [(one > 0).mean(axis=0) for one in strongest]
    difference = shares[0] - shares[1]
    np.testing.assert_allclose(found.difference, np.sort(difference)[::-1][:8])
    assert found.difference[0] > 0.3
    np.testing.assert_allclose(found.positive, shares[0][found.features])
    np.testing.assert_allclose(found.negative, shares[1][found.features])
    np.testing.assert_allclose(found.strength, strongest[0].mean(axis=0)[found.features], rtol=1e-3, atol=1e-4)
    assert "difference" in repr(found)
    with pytest.raises(sj.UserError, match="no negative texts"):
        contrast_features(world.bundle, world.autoencoder, world.texts[0], [])


def test_a_page_has_the_strongest_passages_and_the_density(world: World):
    texts = [*world.texts[0], *world.texts[1]]
    latents = [world.latents(ids) for one in world.ids for ids in one]
    every = np.concatenate(latents)
    feature = int((every > 0).sum(axis=0).argmax())
    page, other = feature_pages(world.bundle, world.autoencoder, [feature, 3], texts, passages=3)
    values = every[:, feature]
    np.testing.assert_allclose(page.density, (values > 0).mean())
    np.testing.assert_allclose(page.mean, values[values > 0].mean(), rtol=1e-3)
    best = sorted((float(one[:, feature].max()) for one in latents), reverse=True)[:3]
    np.testing.assert_allclose([passage.value for passage in page.passages], best, rtol=1e-3)
    strongest = page.passages[0]
    np.testing.assert_allclose(strongest.pieces[strongest.at][1], strongest.value, rtol=1e-6)
    place = int(latents[strongest.text][:, feature].argmax())
    assert strongest.pieces[strongest.at][0] == texts[strongest.text].split()[place]
    assert other.feature == 3
    assert set(page.promoted).isdisjoint(page.suppressed)


def test_pages_and_contrasts_in_the_terminal_and_as_json(world: World, tmp_path: Path, capsys: pytest.CaptureFixture):
    files = []
    for name, texts in zip(("positive", "negative"), world.texts, strict=True):
        files.append(tmp_path / f"{name}.txt")
        files[-1].write_text("\n".join(texts) + "\n")
    line = ["features", "--model", str(MODEL), "--autoencoder", str(AUTOENCODER), "--k", "10"]
    contrast = [*line, "--positive", str(files[0]), "--negative", str(files[1]), "--limit", "4"]
    assert main([*contrast, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["features"]
    assert len(found) == 4
    feature = found[0]["feature"]
    assert main(contrast) == 0
    assert f"#{feature}" in capsys.readouterr().out
    page = [*line, "--feature", str(feature), "--text", str(files[0])]
    assert main([*page, "--json"]) == 0
    (printed,) = json.loads(capsys.readouterr().out)["pages"]
    assert printed["feature"] == feature
    assert printed["passages"]
    assert main(page) == 0
    assert "density" in capsys.readouterr().out
    assert main([*line, "--feature", "99999", "--text", str(files[0])]) == 2
    assert "There is no feature 99999" in capsys.readouterr().err
    assert main([*line, "--positive", str(files[0])]) == 2
    assert "--negative" in capsys.readouterr().err
