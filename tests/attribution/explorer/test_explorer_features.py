"""Features of autoencoders in the explorer, over HTTP and in the command: on the page, in the search, as steering."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.attribution.explorer.settings import ExplorerSettings
from steerling_jax.cli.main import main
from tests.attribution.explorer.test_explorer_server import Running, serving
from tests.worlds.autoencoders import make_autoencoder
from tests.worlds.chat_model import write_chat_model
from tests.worlds.feature_world import RIVERS, small_autoencoders, write_feature_world

REQUEST: dict[str, Any] = {"prompt": "he said", "max_tokens": 6, "seed": 1}
STEERING = {"amplify": {"feature:0:5": 3.0}}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = sj.load(write_chat_model(tmp_path_factory.mktemp("features") / "model"))
    autoencoders = small_autoencoders()
    with serving(sj.with_features(model, *autoencoders), ExplorerSettings(), autoencoders) as site:
        yield site


def test_a_text_has_features_as_parts_of_its_logits_and_as_activations(site: Running):
    model = site.client.get("/api/model").json()
    assert [(one["head"], one["layer"], one["count"]) for one in model["features"]] == [
        ("feature:0", 0, 64),
        ("feature:1", 1, 64),
    ]
    tab = site.tab()
    document = site.explained(tab, site.write(tab, **REQUEST))["document"]
    start = len(document["trace"]["prompt"])
    assert [commit["positions"] for commit in document["trace"]["commits"]] == [[start + i] for i in range(6)]
    assert document["concepts"] is None
    assert document["features"]["head"] == "feature:1"
    assert document["features"]["reference"] == "model"
    parts = sj.feature_contributions(
        site.bundle, document["trace"]["tokens"], autoencoder=small_autoencoders()[1], reference="model"
    )
    for token in document["tokens"]:
        assert (token["epsilon"], token["known"]) == (None, None)
        total = sum(one["contribution"] for one in token["features"]) + token["other_features"]
        total += token["feature_bias"] + token["feature_residual"]
        assert total == pytest.approx(float(parts.logits[token["position"] - 1]), abs=1e-3)
    (active,) = document["activations"]
    assert active["head"] == "feature:0"
    assert len(active["tokens"]) == len(document["trace"]["tokens"])
    assert set(document["cards"]) == {"feature:0", "feature:1"}


def test_steered_random_and_prompted_texts_work_with_features(site: Running):
    tab = site.tab()
    texts = [
        site.write(tab, **REQUEST | more | {"seed": 2})
        for more in ({}, {"steering": STEERING}, {"steering": STEERING, "random_direction": True})
    ]
    plain, steered, random = (site.explained(tab, text)["document"] for text in texts)
    assert steered["trace"]["steering"] == ["amplify feature 5 of block 0 (rivers) at 3 of its largest latent, 4"]
    assert len({tuple(one["trace"]["tokens"]) for one in (plain, steered, random)}) == 3
    (one,), (other,) = (text["trace"]["steering_features"] for text in (steered, random))
    assert (one["alpha"], one["layer"]) == (other["alpha"], other["layer"]) == (12.0, 0)
    norms = [np.linalg.norm(text["direction"]) for text in (one, other)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert abs(np.dot(one["direction"], other["direction"])) < 0.9 * norms[0] ** 2
    assert "of the size of: amplify feature 5" in random["trace"]["policies"]["random_direction"]
    for document in (steered, random):  # the parts are of the rows that steering changed
        assert document["features"]["largest_error"] < 1e-2
    export = site.client.post("/api/export", json={"text": texts[1], "as": "json", "with": []}).json()
    assert (export["features"], export["activations"]) == (steered["features"], steered["activations"])
    page = site.client.post("/api/export", json={"text": texts[1], "as": "html", "with": []}).text
    assert '"activations":[' in page


def test_features_are_found_by_name_number_and_block(site: Running):
    def found(q: str, **more: Any) -> list[tuple[str, int, str | None]]:
        answer = site.client.get("/api/concepts", params={"q": q, **more}).json()
        return [(one["head"], one["id"], one["steer"]) for one in answer["concepts"]]

    assert found("river") == found("feature:0:5") == found("") == [("feature:0", 5, "feature:0:5")]
    assert found("7") == [("feature:0", 7, None), ("feature:1", 7, None)], "their largest latents were not measured"
    assert found("1:7", head="feature") == [("feature:1", 7, None)]
    for q in ("feature:1:99", "99"):
        answer = site.client.get("/api/concepts", params={"q": q})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "q")
    card = site.client.get("/api/concepts/feature:0/5").json()
    assert (card["name"], card["description"], card["largest"], card["density"]) == (
        RIVERS.name,
        RIVERS.description,
        4.0,
        0.1,
    )
    assert (card["steer"], card["amplify"], card["is_named"], len(card["promotes"])) == ("feature:0:5", 1.0, True, 12)
    other = site.client.get("/api/concepts/feature:1/7").json()
    assert (other["name"], other["steer"], other["is_named"]) == ("#7", None, False)
    for path in ("feature:0/64", "feature:2/1", "feature/1", "known/1", "feature:bottleneck/1"):
        assert site.client.get(f"/api/concepts/{path}").status_code == 404
    answer = site.client.post(f"{site.tab()}/texts", json=REQUEST | {"steering": {"amplify": {"feature:1:7": 1}}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "steering")
    assert "largest latent of feature 7 of block 1 was not measured" in answer.json()["error"]["message"]


def test_concepts_and_features_are_found_together(text_model: Path):
    bundle = sj.load(text_model)
    made = make_autoencoder(small_autoencoders()[0].weights.settings, width=bundle.backbone.width)
    emails = dataclasses.replace(RIVERS, name="Email addresses")
    one = dataclasses.replace(made, layer=0, features=(emails,))
    with serving(sj.with_features(bundle, one), ExplorerSettings(), (one,)) as site:
        answer = site.client.get("/api/concepts", params={"q": "email", "limit": 4}).json()
        assert [(found["head"], found["name"]) for found in answer["concepts"]] == [
            ("known", "Email"),
            ("feature:0", "Email addresses"),
        ]
        everything = site.client.get("/api/concepts", params={"q": "", "limit": 4}).json()["concepts"]
        assert [found["head"] for found in everything] == ["known"] * 3 + ["feature:0"]
        (discovered,) = site.client.get("/api/concepts", params={"q": "discovered:7"}).json()["concepts"]
        assert (discovered["head"], discovered["steer"]) == ("discovered", "discovered:7")
        tab = site.tab()
        document = site.explained(tab, site.write(tab, max_tokens=8))["document"]
        assert document["concepts"] is not None
        assert "features" not in document, "concepts split the logits of a diffusion model"
        assert [part["head"] for part in document["activations"]] == ["feature:0"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    return write_feature_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("missing", "There is no file or folder nowhere"),
        ("twice", "both read block 1; give one autoencoder for each block"),
        ("width", "reads rows of width 12, but those of"),
        ("block", "reads block 9, but the blocks of"),
    ],
)
def test_autoencoders_that_do_not_fit_are_one_sentence(
    world: tuple[Path, list[Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
    sentence: str,
):
    model, (first, last) = world
    one = small_autoencoders()[0]
    if case == "width":
        one = dataclasses.replace(make_autoencoder(one.weights.settings), layer=0)
    if case in ("width", "block"):
        one = dataclasses.replace(one, layer=9) if case == "block" else one
        sj.save_autoencoder(one, tmp_path / f"layers.{one.layer}", format="sparsify")
    paths = {
        "missing": [str(first), "nowhere"],
        "twice": [str(last), str(last)],
    }.get(case, [str(tmp_path / f"layers.{one.layer}")])
    assert main(["explore", "--port", "0", "--model", str(model), "--autoencoders", *paths]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert "The explorer is at" not in said.err
