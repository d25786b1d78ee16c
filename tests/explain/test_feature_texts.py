"""Features on texts, beside the same figures from every latent of every text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.cli.main import main
from steerling_jax.explain.feature_texts import TextLatents, contrast_features
from steerling_jax.explain.features.names import name_features
from steerling_jax.explain.features.pages import feature_pages, nearest_features
from steerling_jax.explain.features.passages import passages_of
from steerling_jax.explain.features.search import search_by_features
from steerling_jax.io.catalogue import read_features
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
    assert sum(count for _, count in page.latents) == (values > 0).sum()
    direction = np.asarray(world.autoencoder.weights.W_dec[feature])
    direction = direction / np.linalg.norm(direction)
    table = world.bundle.params.get("lm_head", world.bundle.params["embed_tokens"])
    logits = np.sort(np.asarray(table["weight"]) @ direction)
    np.testing.assert_allclose(page.promoted_logits, logits[::-1][:10], rtol=1e-4)
    np.testing.assert_allclose(page.suppressed_logits, logits[:10], rtol=1e-4)
    assert sum(count for _, count in page.logits) == len(logits)


def test_the_nearest_features_are_those_of_the_largest_cosines(world: World):
    rows = np.asarray(world.autoencoder.weights.W_dec, np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows[5]
    cosines[5] = -2
    (near,) = nearest_features(world.autoencoder, [5])
    assert [feature for feature, _ in near] == np.argsort(-cosines)[:5].tolist()
    np.testing.assert_allclose([value for _, value in near], np.sort(cosines)[::-1][:5], rtol=1e-4)


def test_a_name_is_words_that_predict_the_feature_on_texts_that_did_not_choose_it(world: World):
    """Planted: features 3 and 4 are active at the tokens 7 and 9, feature 5 at tokens that have nothing in common."""
    rng = np.random.default_rng(1)
    parts = []
    for text in range(400):
        tokens = rng.integers(20, 60, 24)
        for token in (7, 9):
            if rng.random() < 0.06:
                tokens[rng.integers(24)] = token
        active = np.stack([tokens == 7, tokens == 9, rng.random(24) < 0.004], axis=1)
        values = np.where(active, rng.uniform(2, 5, active.shape), 0.0).astype(np.float32)
        parts.append(TextLatents(text, tokens.astype(np.int32), values, np.tile([3, 4, 5], (24, 1))))
    first, second, none, silent = name_features(world.bundle, world.autoencoder, [3, 4, 5, 6], parts)
    assert (first.words, second.words) == (("id7",), ("id9",))
    for entry in (first, second):
        assert entry.is_named
        assert entry.head == "feature"
        assert entry.quality is not None
        assert entry.quality.auc > 0.95
        assert entry.quality.others is not None
        assert entry.quality.others < 0.7
    assert first.examples
    assert "id7" in first.examples[0]
    assert not none.is_named
    assert none.quality is not None
    assert none.quality.auc < 0.7
    assert (silent.name, silent.quality, silent.largest) == ("feature 6", None, None)
    kept = np.concatenate([part.values[:, 0] for part in parts])
    assert first.density is not None
    assert first.largest is not None
    np.testing.assert_allclose(first.density, (kept > 0).mean())
    np.testing.assert_allclose(first.largest, kept.max())
    halves = passages_of(world.bundle, parts, world.autoencoder.n_latents).halves()
    assert set(halves[0]).isdisjoint(halves[1])
    assert len(halves[0]) + len(halves[1]) == 400


def test_a_search_finds_the_passage_with_the_features_of_a_text(world: World):
    texts = [*world.texts[0], *world.texts[1]]
    hits = search_by_features(world.bundle, world.autoencoder, texts[8], texts, count=3)
    assert hits[0].text == 8
    np.testing.assert_allclose(hits[0].score, 1.0, rtol=1e-4)
    assert hits[0].score > hits[1].score >= hits[2].score > 0
    latents = world.latents(world.ids[1][2])
    active = set(np.flatnonzero((latents > 0).any(axis=0)).tolist())
    assert {feature for feature, _ in hits[0].features} <= active
    with pytest.raises(sj.UserError, match="There are no texts to search"):
        search_by_features(world.bundle, world.autoencoder, texts[8], [])


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
    outputs = tmp_path / "page.html", tmp_path / "batch.json"
    assert main([*page, "--html", str(outputs[0]), "--neuronpedia", str(outputs[1])]) == 0
    assert "density" in capsys.readouterr().out
    strongest = printed["passages"][0]
    html = outputs[0].read_text()
    assert f'id="f{feature}"' in html
    assert html.count('class="passage"') == len(printed["passages"])
    assert "<b><span" in html
    batch = json.loads(outputs[1].read_text())
    assert (batch["layer"], batch["features"][0]["feature_index"]) == (1, feature)
    activation = batch["features"][0]["activations"][0]
    assert activation["tokens"] == [one["token"] for one in strongest["tokens"]]
    assert max(activation["values"]) == pytest.approx(strongest["value"], abs=1e-3)
    assert activation["qualifying_token_index"] == strongest["at"]
    catalogue = tmp_path / "features.json"
    assert main([*line, "--catalogue", str(catalogue), "--text", str(files[0]), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    entries = read_features(catalogue, world.autoencoder.n_latents)
    assert counts["active"] == sum(bool(one.largest) for one in entries)
    assert next(one for one in entries if one.id == feature).largest == pytest.approx(strongest["value"], rel=1e-4)
    assert main([*line, "--like", world.texts[0][1], "--text", str(files[0]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passages"][0]["place"] == "line 2"
    assert main([*line, "--like", "1 2", "--feature", "3", "--text", str(files[0])]) == 2
    assert "Give one of TEXT" in capsys.readouterr().err
    assert main([*line, "--like", "1 2"]) == 2
    assert "--like needs --text" in capsys.readouterr().err
    assert main([*line, "--feature", "99999", "--text", str(files[0])]) == 2
    assert "There is no feature 99999" in capsys.readouterr().err
    assert main([*line, "--positive", str(files[0])]) == 2
    assert "--negative" in capsys.readouterr().err
