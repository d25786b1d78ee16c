"""Steering by the names of features: the same text as their directions added by hand, in models of all families."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.autoencoders.weights import Settings
from steerling_jax.cli.main import main
from steerling_jax.concepts.concept import Concept
from steerling_jax.decoding.trace_record import from_plain, origin_of, record_of, restore, to_plain
from steerling_jax.infer.generation_request import parse_generation_request
from tests.worlds.autoencoders import make_autoencoder
from tests.worlds.paths import REPOSITORY

MODEL = REPOSITORY / "tests" / "golden_decoders" / "qwen3"
AUTOENCODER = REPOSITORY / "tests" / "golden_autoencoders" / "qwen3_model"
GREEDY = sj.GenerationConfig(max_new_tokens=6, temperature=0.0)
TOPK = Settings("topk", 4)
RIVERS = Concept(454, "rivers", head="feature", largest=80.0, density=0.01)


@pytest.fixture(scope="module")
def autoencoder() -> sj.Autoencoder:
    return dataclasses.replace(sj.load_autoencoder(AUTOENCODER, k=10), features=(RIVERS,))


@pytest.fixture(scope="module")
def bundle(autoencoder: sj.Autoencoder) -> sj.Bundle:
    return sj.with_features(sj.load(MODEL, dtype="float32"), autoencoder)


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    return np.load(MODEL / "golden.npz")["greedy"][0, :9].tolist()


def text(bundle: sj.Bundle, prompt: list[int], **options: Any) -> list[int]:
    return sj.generate(bundle, prompt, GREEDY, **options).tokens.tolist()


@pytest.mark.parametrize("positions", ["all", "generated"])
def test_a_strength_is_a_multiple_of_the_largest_latent_or_the_factor_itself(
    bundle: sj.Bundle, autoencoder: sj.Autoencoder, prompt: list[int], positions: Any
):
    edit = sj.feature_edit(autoencoder, feature=454, alpha=40.0, positions=positions)
    expected = text(bundle, prompt, edits=[edit])
    assert expected != text(bundle, prompt)
    where = {} if positions == "all" else {"where": positions}
    for rule in (
        sj.amplify("feature:454", 0.5, **where),
        sj.amplify("Rivers", 0.5, **where),
        sj.amplify(454, 40.0, raw=True, **where),
    ):
        assert text(bundle, prompt, steering=rule) == expected
    opposite = sj.feature_edit(autoencoder, feature=454, alpha=-80.0, positions=positions)
    assert text(bundle, prompt, steering=sj.suppress("rivers", **where)) == text(bundle, prompt, edits=[opposite])


def test_a_trace_names_the_feature_and_its_record_restores_the_change(bundle: sj.Bundle, prompt: list[int]):
    steering = sj.amplify("rivers", 0.5)
    made = sj.generate(bundle, prompt, GREEDY, steering)
    assert made.trace.steering == ("amplify feature 454 (rivers) at 0.5 of its largest latent, 80",)
    record = record_of(bundle, origin_of(bundle), sj.Prompt(prompt, GREEDY, steering), made)
    plain = json.loads(json.dumps(to_plain(record)))
    assert plain["version"] == 2  # a program of before would explain the text without its feature
    restored = restore(from_plain(plain, "the record"), bundle)
    assert restored.steering == made.trace.steering
    read = sj.given_trace(bundle, prompt, made.tokens[len(prompt) :].tolist(), steering)
    assert read.hidden is not None
    assert made.trace.hidden is not None
    np.testing.assert_allclose(read.hidden, made.trace.hidden, rtol=1e-4, atol=1e-4)
    (edit,), (again,) = made.trace.edits, restored.edits
    assert edit.push is not None
    assert again.push is not None
    np.testing.assert_allclose(again.push, edit.push, rtol=1e-6)
    without = record_of(bundle, origin_of(bundle), sj.Prompt(prompt, GREEDY), sj.generate(bundle, prompt, GREEDY))
    assert to_plain(without)["version"] == 1


def test_features_and_concepts_steer_one_text_together(golden: Path):
    """In a Steerling model, whose catalogue then has both."""
    plain = sj.load(golden / "base")
    width, layers = plain.backbone.width, plain.backbone.n_layers
    made = make_autoencoder(TOPK, width=width)
    entry = dataclasses.replace(RIVERS, id=3, largest=2.0)
    one = dataclasses.replace(made, layer=layers - 1, features=(entry,))
    bundle = sj.with_features(plain, one)
    config = sj.GenerationConfig(max_new_tokens=8, seed=1)
    concept = sj.SteeringConfig((5,), 4.0)
    edit = sj.feature_edit(one, feature=3, alpha=6.0)
    both = sj.generate(bundle, [5, 9, 12], config, concept + sj.amplify("rivers", 3.0))
    by_hand = sj.generate(plain, [5, 9, 12], config, concept, edits=[edit])
    assert both.tokens.tolist() == by_hand.tokens.tolist()
    assert both.tokens.tolist() != sj.generate(plain, [5, 9, 12], config, concept).tokens.tolist()
    assert both.trace.steering == ("inject 5 at 4.0", "amplify feature 3 (rivers) at 3 of its largest latent, 2")
    many = sj.generate_many(bundle, [[5, 9, 12]], config, concept + sj.amplify("rivers", 3.0))
    assert many[0].tokens.tolist() == both.tokens.tolist()
    assert bundle.concepts.fingerprint == plain.concepts.fingerprint  # the model's concepts are the same


def test_options_policies_and_requests_name_features(
    bundle: sj.Bundle,
    autoencoder: sj.Autoencoder,
    prompt: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    folder = tmp_path / "L0_10"
    sj.save_autoencoder(autoencoder, folder, format="qwen-scope")
    assert sj.load_autoencoder(folder).features == (RIVERS,)
    expected = text(bundle, prompt, steering=sj.amplify("rivers", 0.5, where="generated"))
    policy = tmp_path / "policy.toml"
    policy.write_text(
        '[[rule]]\naction = "amplify"\nconcept = "rivers"\nstrength = 40\nraw = true\nwhere = "generated"\n'
    )
    line = ["generate", "--model", str(MODEL), "--autoencoder", str(folder), "--greedy", "--max-new-tokens", "6"]
    line += ["--prompt-ids", " ".join(map(str, prompt)), "--json"]
    for options in (
        ["--amplify", "rivers=0.5", "--positions", "generated"],
        ["--amplify", "feature:454=40", "--raw-strengths", "--positions", "generated"],
        ["--policy", str(policy)],
    ):
        assert main([*line, *options]) == 0
        assert json.loads(capsys.readouterr().out)["tokens"] == expected
    concepts = ["concepts", "river", "--model", str(MODEL), "--autoencoder", str(folder), "--json"]
    assert main(concepts) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["id"], found["name"], found["largest"], len(found["promotes"])) == (454, "rivers", 80.0, 8)
    assert main(["concepts", "--head", "feature"]) == 2
    assert "--head feature needs --autoencoder" in capsys.readouterr().err
    rule = {"action": "amplify", "concept": "rivers", "strength": 0.5, "where": "generated"}
    values = {"steering": {"rules": [rule]}, "temperature": 0.0, "max_tokens": 6}
    request = parse_generation_request(values, prompt, bundle)
    assert text(bundle, prompt, steering=request.prompt.steering) == expected
    assert main([*line, "--positions", "generated"]) == 2
    assert "--positions needs --amplify or --suppress" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (sj.amplify("feature:455", 1.0), "largest latent of feature 455 was not measured"),
        (sj.amplify("feature:99999", 1.0), "There is no feature 99999; the ids are 0 to"),
        (sj.amplify("reivers", 1.0), "There is no feature 'reivers'; did you mean 'rivers'"),
        (sj.amplify("rivers", 1.0, layer=2), "layer is not for features"),
        (sj.amplify("rivers", 1.0, tokens=3), "tokens is not for features"),
        (sj.amplify("rivers", 1.0, where="prompt"), "where is 'prompt', but a feature is added at 'all'"),
        (sj.amplify({"rivers": 1.0, "feature:3": 1.0}), "give a rule for each"),
        (sj.clamp("rivers", 1.0), "a feature cannot be clamped"),
        (sj.SteeringConfig((1,), 2.0), "Steering needs a model with concepts; steer this one by features"),
    ],
)
def test_what_features_cannot_do_is_one_sentence(bundle: sj.Bundle, prompt: list[int], rule: Any, message: str):
    with pytest.raises(sj.UserError, match=message):
        sj.generate(bundle, prompt, GREEDY, rule)


def test_features_of_several_blocks_are_in_one_catalogue(
    bundle: sj.Bundle, autoencoder: sj.Autoencoder, prompt: list[int]
):
    lakes = Concept(2, "lakes", head="feature", largest=5.0)
    other = make_autoencoder(TOPK, width=autoencoder.width)
    other = dataclasses.replace(other, layer=2, name="other", features=(lakes, Concept(4, "feature 4", head="feature")))
    plain = sj.load(MODEL, dtype="float32")
    both = sj.with_features(plain, autoencoder, other)
    first = autoencoder.n_latents
    assert both.concepts.resolve("lakes", "feature") == both.concepts.resolve("2:2", "feature") == (first + 2,)
    assert both.concepts.place(first + 2) == (2, 2)
    names = [both.concepts.get(id, "feature").name for id in (3, 454, first + 3, first + 4)]
    layer = autoencoder.layer
    assert names == [f"feature 3 of block {layer}", "rivers", "feature 3 of block 2", "feature 4 of block 2"]
    expected = text(plain, prompt, edits=[sj.feature_edit(other, feature=2, alpha=-40.0)])
    assert expected != text(plain, prompt)
    assert text(both, prompt, steering=sj.suppress("feature:2:2", 8.0)) == expected
    assert text(both, prompt, steering=sj.suppress("lakes", 8.0)) == expected
    assert text(both, prompt, steering=sj.amplify(f"feature:{layer}:454", 0.5)) == text(
        bundle, prompt, steering=sj.amplify("rivers", 0.5)
    )
    made = sj.generate(both, prompt, GREEDY, sj.amplify("feature:2:3", 1.0, raw=True))
    assert made.trace.steering == ("amplify feature 3 of block 2 at 1",)
    for name, message in (
        ("feature:2:96", "There is no feature 96 of block 2; there are 0 to 95"),
        ("feature:7:3", f"There are no features of block 7; these are: {layer}, 2"),
        ("feature:2:4", "the largest latent of feature 4 of block 2 was not measured"),
    ):
        with pytest.raises(sj.UserError, match=message):
            sj.generate(both, prompt, GREEDY, sj.amplify(name, 1.0))
    with pytest.raises(sj.UserError, match=f"other and .* both read block {layer}; give one autoencoder for each"):
        sj.with_features(plain, dataclasses.replace(other, layer=layer), autoencoder)
    with pytest.raises(sj.UserError, match="other does not say which block it reads"):
        sj.with_features(plain, autoencoder, dataclasses.replace(other, layer=None))


def test_autoencoders_and_files_that_do_not_fit_are_refused(autoencoder: sj.Autoencoder, golden: Path, tmp_path: Path):
    model = sj.load(MODEL, dtype="float32")
    with pytest.raises(sj.UserError, match="reads rows of width 12, but those of"):
        sj.with_features(model, make_autoencoder(TOPK))
    with pytest.raises(sj.UserError, match="reads block 9, but the blocks"):
        sj.with_features(model, dataclasses.replace(autoencoder, layer=9))
    with pytest.raises(sj.UserError, match="no block is known"):
        sj.generate(
            sj.with_features(model, dataclasses.replace(autoencoder, layer=None)), [3], GREEDY, sj.amplify("rivers")
        )
    with pytest.raises(sj.UserError, match="needs a model with concepts, or features of an autoencoder"):
        sj.generate(model, [3], GREEDY, sj.amplify("rivers"))
    with pytest.raises(sj.UserError, match="This model has no features; give an autoencoder of it, with --autoencoder"):
        sj.generate(sj.load(golden / "base"), [3], sj.GenerationConfig(max_new_tokens=4), sj.amplify("feature:3"))
    sj.save_autoencoder(autoencoder, tmp_path / "L0_10", format="qwen-scope")
    about = next((tmp_path / "L0_10").glob("*.features.json"))
    for entry, message in (
        ({"id": 99999}, "is not a feature of this autoencoder"),
        ({"id": 3, "head": "known", "name": "x"}, "the head of 'x' is 'known'; give 'feature'"),
        ({"id": 3, "largest": -1}, "the largest latent is -1; give a number that is not negative"),
    ):
        about.write_text(json.dumps([entry]))
        with pytest.raises(sj.UserError, match=message):
            sj.load_autoencoder(tmp_path / "L0_10")
