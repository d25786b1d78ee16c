"""Classifiers of the server: what is reported, refused and suppressed, in a server within this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from starlette.testclient import TestClient

import steerling_jax as sj
from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.weights import Settings, Weights
from steerling_jax.cli.main import main
from steerling_jax.decoding.decoder import decoder_of
from steerling_jax.explain.feature_classifier import DecidingFeature, FeatureClassifier
from steerling_jax.infer.server.app import RequestLimits, Service, make_app
from steerling_jax.infer.server.engine import Engine
from steerling_jax.infer.server.text_checks import OnMatch, load_checks
from steerling_jax.io.classifier_file import write_classifier
from steerling_jax.models.steerling.fingerprint import fingerprint

FIRST, SECOND = "The quick brown", "def greet(name):"
SIZE = 512  # so many that a prompt has features which the other text lacks, whatever the machine rounds


class World:
    """A tiny model and a random autoencoder of its first block. Classifiers of single features: one that fires in the
    first prompt but not in the second, nor in its text, and one that fires in that text only."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.bundle, self.folder = sj.load(model), folder
        keys = jax.random.split(jax.random.key(0))
        width = self.bundle.backbone.width
        rows = jax.random.normal(keys[0], (SIZE, width))
        weights = Weights(W_enc=rows.T, W_dec=rows, b_enc=jax.numpy.zeros(SIZE), b_dec=jax.numpy.zeros(width),
                          settings=Settings("topk", k=2))  # fmt: skip
        self.source = folder / "layers.0"
        sj.save_autoencoder(Autoencoder(weights, layer=0), self.source, format="sparsify")
        self.autoencoder = sj.load_autoencoder(self.source)
        config = sj.GenerationConfig(max_new_tokens=16, seed=1)
        self.text = sj.generate(self.bundle, SECOND, config).text
        fired = [self.features_of(text) for text in (FIRST, SECOND, self.text)]
        self.output_only = self.write("output", min(fired[2] - fired[0] - fired[1]))
        # One without which the first prompt is continued in another way.
        plain = sj.generate(self.bundle, FIRST, config).text
        self.feature = next(
            feature
            for feature in sorted(fired[0] - fired[1] - fired[2])
            if sj.generate(self.bundle, FIRST, config, edits=self.classifier("", feature).suppression()).text != plain
        )
        self.prompt_only = self.write("prompt", self.feature)

    def features_of(self, text: str) -> set[int]:
        model = fingerprint(self.bundle.params, self.bundle.config)
        every = tuple(DecidingFeature(0, feature, 1.0) for feature in range(SIZE))
        return {
            one.feature for one in FeatureClassifier("", model, every, (self.autoencoder,)).fired(self.bundle, text)
        }

    def classifier(self, label: str, feature: int) -> FeatureClassifier:
        model = fingerprint(self.bundle.params, self.bundle.config)
        return FeatureClassifier(label, model, (DecidingFeature(0, feature, 1.0),), (self.autoencoder,))

    def write(self, label: str, feature: int) -> Path:
        path = self.folder / f"{label}.json"
        write_classifier(path, self.classifier(label, feature), self.bundle, self.source, {})
        return path

    @contextmanager
    def client(self, on_match: OnMatch) -> Iterator[TestClient]:
        checks = load_checks(self.bundle, [str(self.prompt_only), str(self.output_only)], on_match)
        engine = Engine(decoder_of(self.bundle, rows=2))
        service = Service(self.bundle, engine, RequestLimits(None, 10_000, 4), (), checks)
        app = make_app(service, listening="127.0.0.1", hosts=[], origins=[])
        with TestClient(app, base_url="http://127.0.0.1") as client:
            yield client


@pytest.fixture(scope="module")
def world(text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(text_model, tmp_path_factory.mktemp("classifiers"))


def complete(client: TestClient, prompt: str, status: int = 200, **changes) -> dict:
    body = {"prompt": prompt, "max_tokens": 16, "seed": 1} | changes
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def chunks(client: TestClient, prompt: str) -> list[dict]:
    body = {"prompt": prompt, "max_tokens": 16, "seed": 1, "stream": True}
    events = client.post("/v1/completions", json=body).text.split("\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in events if event and "[DONE]" not in event]


def labels(answer: dict) -> dict[str, list[str]]:
    return {place: [match["label"] for match in matches] for place, matches in answer["classifiers"].items()}


def test_matches_are_reported(world: World):
    with world.client("report") as client:
        second = complete(client, SECOND)
        assert second["choices"][0]["text"] == world.text
        assert labels(second) == {"prompt": [], "output": ["output"]}
        first = complete(client, FIRST)
        assert "prompt" in labels(first)["prompt"]
        assert first["classifiers"]["prompt"][0]["features"] == [{"layer": 0, "feature": world.feature}]
        streamed = chunks(client, SECOND)
        assert "".join(one["choices"][0]["text"] for one in streamed) == world.text
        assert labels(streamed[-1]) == {"prompt": [], "output": ["output"]}


def test_prompts_and_outputs_are_refused(world: World):
    with world.client("refuse") as client:
        error = complete(client, FIRST, status=400)["error"]
        assert (error["code"], error["param"]) == ("content_filter", "prompt")
        assert "'prompt'" in error["message"]
        second = complete(client, SECOND, trace=True)
        assert second["choices"][0]["text"] == ""
        assert second["choices"][0]["finish_reason"] == "content_filter"
        assert second["trace"]["commits"] == []
        (last,) = chunks(client, SECOND)  # nothing was sent before
        assert last["choices"][0]["finish_reason"] == "content_filter"
        assert labels(last)["output"] == ["output"]


def test_features_of_a_matching_prompt_are_suppressed(world: World):
    with world.client("suppress") as client:
        assert complete(client, SECOND)["choices"][0]["text"] == world.text  # its prompt does not match
        text = complete(client, FIRST)["choices"][0]["text"]
    config = sj.GenerationConfig(max_new_tokens=16, seed=1)
    plain = sj.generate(world.bundle, FIRST, config).text
    checks = load_checks(world.bundle, [str(world.prompt_only)], "suppress")
    assert checks is not None
    (edit,) = checks.edits(checks.matches(FIRST))
    assert text == sj.generate(world.bundle, FIRST, config, edits=[edit]).text != plain
    # The edit takes the direction out of the block's output and changes nothing else.
    ids = world.bundle.tokenizer.encode(FIRST)
    direction = np.asarray(world.autoencoder.weights.W_dec[world.feature])
    row = sj.hidden_states(world.bundle, ids, layers=[0])[0][0, -1:]
    after = np.asarray(edit.apply(jax.numpy.asarray(row)[None], 0))[0]
    np.testing.assert_allclose(after @ direction, 0, atol=1e-3)
    expected = row - np.outer(row @ direction, direction) / (direction @ direction)
    np.testing.assert_allclose(after, expected, atol=1e-3)
    np.testing.assert_array_equal(edit.apply(jax.numpy.asarray(row)[None], 1)[0], row)


def test_bad_classifiers(world: World, capsys: pytest.CaptureFixture):
    with pytest.raises(sj.UserError, match="Two classifiers have the label 'prompt'"):
        load_checks(world.bundle, [str(world.prompt_only)] * 2, "report")
    assert load_checks(world.bundle, [], "report") is None
    line = ["serve", "--port", "0", "--warm-up", "0", "--classifier", str(world.prompt_only)]
    assert main(line) == 2  # the bundled model
    assert "another model" in capsys.readouterr().err
