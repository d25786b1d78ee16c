"""`steerling sae languages` beside means over every latent of every token, the file that it writes, what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.autoencoders.language_features import encoder_columns
from steerling_jax.autoencoders.weights import Settings
from steerling_jax.cli.main import main
from steerling_jax.explain.language_features import find_language_features, script_tokens
from steerling_jax.io.language_features_file import read_language_features
from steerling_jax.models.steerling.fingerprint import fingerprint
from tests.worlds.autoencoders import LATENTS, WIDTH, make_autoencoder
from tests.worlds.topic_texts import AUTOENCODER, MODEL, READ_WITH, topic_texts

LANGUAGES = ("high", "low")


@pytest.fixture(scope="module")
def bundle() -> sj.Bundle:
    return sj.load(MODEL, dtype="float32")


@pytest.fixture
def table(tmp_path: Path, bundle: sj.Bundle) -> Path:
    """Two topics as two languages, of 12 texts each."""
    path = tmp_path / "parallel.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["language", "text"])
        for topic in LANGUAGES:
            writer.writerows([topic, text] for text in topic_texts(topic, 12, bundle.config.vocab_size))
    return path


def usual_rows(bundle: sj.Bundle, text: str) -> np.ndarray:
    """The output of block 1 without rows of extreme norm."""
    rows = np.asarray(sj.hidden_states(bundle, [[int(word) for word in text.split()]], layers=[1])[1][0])
    norms = np.linalg.norm(rows, axis=1)
    return rows[norms <= 6 * np.median(norms)]


def test_the_features_of_languages(table: Path, bundle: sj.Bundle, capsys: pytest.CaptureFixture):
    saved = table.with_name("languages.json")
    assert main(["sae", "languages", str(table), *READ_WITH, "--count", "3", "--save", str(saved), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    autoencoder = sj.load_autoencoder(AUTOENCODER, k=10)
    latents, pre = [], []
    for topic in LANGUAGES:
        texts = topic_texts(topic, 12, bundle.config.vocab_size)
        rows = np.concatenate([usual_rows(bundle, text) for text in texts])
        latents.append(np.asarray(autoencoder.encode(rows, dense=True)).mean(axis=0))
        weights = autoencoder.weights
        centred = rows - np.asarray(weights.b_dec) * weights.settings.subtract_b_dec
        pre.append((centred @ np.asarray(weights.W_enc) + np.asarray(weights.b_enc)).mean(axis=0))
    difference = latents[0] - latents[1]
    assert report["settings"]["texts"] == {"high": 12, "low": 12}
    for sign, language in ((1, "high"), (-1, "low")):
        own = [one for one in report["monolingual"] if one["language"] == language]
        assert [one["feature"] for one in own] == np.argsort(-sign * difference, kind="stable")[:3].tolist()
        for one in own:
            assert one["layer"] == 1
            assert one["monolinguality"] == pytest.approx(sign * difference[one["feature"]], rel=1e-4)
            found = [one["mean_pre_activations"][name] for name in LANGUAGES]
            np.testing.assert_allclose(found, [part[one["feature"]] for part in pre], rtol=1e-3, atol=1e-3)
    chosen = {one["feature"] for one in report["monolingual"]}
    random = [one["feature"] for one in report["random"]]
    assert len(set(random)) == len(random) == len(chosen) == 6
    assert not chosen & set(random)
    assert min(max(part[feature] for part in latents) for feature in random) > 0  # all of them fire

    features = read_language_features(saved)
    assert features.model == fingerprint(bundle.params, bundle.config)
    assert features.languages == LANGUAGES
    assert [one.feature for one in (*features.monolingual, *features.random)] == [*
        (one["feature"] for one in report["monolingual"]), *random]  # fmt: skip
    rows = usual_rows(bundle, topic_texts("low", 1, bundle.config.vocab_size)[0])
    dense = np.asarray(autoencoder.encode(rows, dense=True))
    for one in features.monolingual:
        kept = dense[:, one.feature] > 0
        np.testing.assert_allclose((rows @ one.column + one.bias)[kept], dense[kept, one.feature], rtol=1e-3)
    again = read_language_features(saved)
    assert again.digest == features.digest
    assert main(["sae", "languages", str(table), *READ_WITH, "--seed", "1", "--save", str(saved)]) == 0
    assert "monolinguality" in capsys.readouterr().out
    assert read_language_features(saved).digest != features.digest


def test_columns_of_every_kind_of_autoencoder():
    """The pre-activation of a latent that is kept is the latent, scaled where the format says so."""
    rows = np.random.default_rng(0).normal(0, 1, (5, WIDTH)).astype(np.float32)
    for settings in (
        Settings("topk", 8),
        Settings("topk", 8, subtract_b_dec=True),
        Settings("topk", 8, subtract_b_dec=True, rescale_by_decoder_norm=True),
    ):
        autoencoder = make_autoencoder(settings)
        columns, bias = encoder_columns(autoencoder, list(range(LATENTS)))
        dense = np.asarray(autoencoder.encode(rows, dense=True))
        np.testing.assert_allclose((rows @ columns + bias[None])[dense > 0], dense[dense > 0], rtol=1e-4, atol=1e-5)
    with pytest.raises(sj.UserError, match="tiny normalises its input, so its pre-activations are not an affine"):
        encoder_columns(make_autoencoder(Settings("topk", 8, normalise="layer_norm")), [0])


def test_tokens_with_letters_of_a_script(text_model: Path):
    bundle = sj.load(text_model)
    tables = script_tokens(bundle.tokenizer, bundle.config.vocab_size, frozenset({"Latin", "Hangul"}))
    pieces = [bundle.tokenizer.decode([token]) for token in range(bundle.config.vocab_size)]
    assert tables["Latin"].tolist() == [any(c.isascii() and c.isalpha() for c in piece) for piece in pieces]
    assert tables["Latin"].any()
    assert set(tables) == {"Hangul", "Latin"}


def test_bad_input(table: Path, bundle: sj.Bundle, capsys: pytest.CaptureFixture):
    for arguments, words in (
        (["--language", "low", "--language", "ko"], "has no text in the language 'ko'; its languages are high, low"),
        (["--language", "low"], "only 'low' of"),
        (["--language-column", "tongue"], "has no column 'tongue'; its columns are 'language', 'text'"),
        (["--count", "5000"], "are most active in the language 'high', but the count is 5000"),
    ):
        assert main(["sae", "languages", str(table), *READ_WITH, *arguments]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert main(["sae", "languages", str(table), "--model", str(MODEL)]) == 2
    assert "name autoencoders with --autoencoder" in capsys.readouterr().err
    nameless = sj.Autoencoder(make_autoencoder(Settings("topk", 8), width=bundle.backbone.width).weights)
    with pytest.raises(sj.UserError, match="does not say which block it reads"):
        find_language_features(bundle, [nameless], ["1 2", "3 4"], ["a", "b"], count=1)


def test_damaged_files(table: Path, capsys: pytest.CaptureFixture):
    saved = table.with_name("languages.json")
    assert main(["sae", "languages", str(table), *READ_WITH, "--count", "1", "--save", str(saved)]) == 0
    content = json.loads(saved.read_text())
    first = content["monolingual"][0]
    for change, words in (
        ({"kind": "feature-classifier"}, "has no language features of version 1; give a file of `steerling sae lang"),
        ({"monolingual": [first | {"column": "AAAA"}]}, "is damaged"),
        ({"monolingual": [first | {"column": "AACAfw=="}]}, "not finite"),
        ({"monolingual": [first | {"language": "ko"}]}, "is damaged"),
        ({"vocab_size": content["vocab_size"] + 9, "tokens": {"Latin": "AAAA"}}, "a set of tokens of another size"),
    ):
        saved.write_text(json.dumps(content | change))
        with pytest.raises(sj.UserError, match=words):
            read_language_features(saved)
