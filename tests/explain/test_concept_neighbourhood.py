"""Neighbourhoods of concepts on a small corpus, with a model in which one discovered concept detects its topic."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.attribution import neighbourhood_command
from steerling_jax.bundle import Bundle
from steerling_jax.cli.main import main
from steerling_jax.corpus.stream import stream_tokens
from steerling_jax.errors import UserError
from steerling_jax.explain import activity as activity_module
from steerling_jax.explain.activity import Activity, Moments, concept_activity
from steerling_jax.explain.concept_gradients import SourceConcept
from steerling_jax.explain.concept_names import score_name
from steerling_jax.explain.neighbourhood import control_concepts, neighbourhoods
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.models.steerling.head_view import discovered_spec
from steerling_jax.models.steerling.heads import run_head
from steerling_jax.objectives.noise import mask_tokens
from tests.worlds.topic_world import CHUNK, KNOWS, TOPIC, about_topic, config
from tests.worlds.training_world import FakeTokenizer


@pytest.fixture(scope="module")
def activity(topic_bundle: Bundle, topic_store: CorpusStore) -> Activity:
    requested = [SourceConcept(KNOWS, "discovered"), SourceConcept(2)]
    requested += control_concepts(requested, topic_bundle.config, minimum=8)
    return concept_activity(topic_bundle, topic_store, requested, strongest=20, seq_len=64)


def test_strongest_chunks_are_of_the_topic(topic_store: CorpusStore, activity: Activity):
    assert about_topic(topic_store, activity.strongest[0]).mean() > 0.9
    assert (np.diff(activity.strength[0]) <= 0).all()
    first, last = topic_store.chunks_between(*topic_store.split("train"))
    assert ((activity.strongest[0] >= first) & (activity.strongest[0] < last)).all()
    first, last = topic_store.chunks_between(*topic_store.split("heldout"))
    assert activity.heldout.tolist() == list(range(first, last))  # each once, in order


def test_neighbourhood_of_the_planted_concept(topic_bundle: Bundle, topic_store: CorpusStore, activity: Activity):
    knows, known = neighbourhoods(topic_bundle, topic_store, activity, 2, chunks=3, tokens=4, near=3)
    assert {int(word) for word, _ in knows.words} <= set(TOPIC)
    assert len(knows.words) == 3
    assert all(lift > 2 for _, lift in knows.words)
    score = knows.score
    assert score is not None
    assert score.auc.low > 0.7  # a name that says nothing: 0.5
    assert score.auc.low <= score.auc.mean <= score.auc.high
    assert score.names > 0
    assert score.others is not None
    assert score.others < score.auc.low
    assert score.correlation > 0.4
    assert len(knows.strongest) == 3
    assert knows.strongest[0].labels == ("concept 2",)
    document = topic_store.documents[topic_store.chunk(knows.strongest[0].chunk).document]
    assert knows.strongest[0].document == document.name
    assert topic_store.tokens(
        document.start + knows.strongest[0].offset, document.start + knows.strongest[0].offset + CHUNK
    )[0] == int(knows.strongest[0].text.split()[0])
    assert len(knows.promoted) == 4
    assert len(knows.near_embedding) == len(knows.near_activity) == 3
    assert "concept 2" not in [name for name, _ in known.near_activity]  # not its own neighbour


def test_cosines_and_correlations(topic_bundle: Bundle, topic_store: CorpusStore, activity: Activity):
    (knows,) = neighbourhoods(topic_bundle, topic_store, activity, 1, near=8)
    coefficients = np.asarray(topic_bundle.params["unknown_head"]["embedding_coef"]["weight"])[KNOWS]
    vector = np.asarray(topic_bundle.params["unknown_head"]["embedding_basis"]["weight"]) @ coefficients
    table = np.asarray(topic_bundle.params["known_head"]["concept_embedding"]["weight"])[:8]
    cosine = table @ vector / np.linalg.norm(table, axis=1) / np.linalg.norm(vector)
    for name, value in knows.near_embedding:
        assert value == pytest.approx(cosine[int(name.split()[1])], abs=1e-5)
    assert dict(knows.near_activity)["concept 3"] == pytest.approx(activity.correlation[0, 3])


def test_correlation_of_hand_made_moments():
    draw = np.random.default_rng(0)
    a, k = draw.normal(size=(50, 2)), draw.normal(size=(50, 3))
    moments = Moments(np.array(50.0), a.sum(0), (a**2).sum(0), k.sum(0), (k**2).sum(0), a.T @ k)
    np.testing.assert_allclose(moments.correlation(), np.corrcoef(a.T, k.T)[:2, 2:], atol=1e-12)


def test_activations_are_those_of_the_head(topic_bundle: Bundle, topic_store: CorpusStore):
    """One batch against a plain loop over its masked tokens."""
    one = topic_bundle
    start, _ = topic_store.split("heldout")
    found = concept_activity(
        one, topic_store, [SourceConcept(KNOWS, "discovered")], corpus_tokens=64, heldout_tokens=64, seq_len=64
    )
    ((tokens, chunk),) = stream_tokens(topic_store, start, start + 64, 64, 64)
    key = jax.random.fold_in(jax.random.key(1), 0)
    noisy, masked = mask_tokens(key, jnp.asarray(tokens), jnp.full((64, 8), 0.5), config())
    hidden = denoise(one.params, jnp.asarray(tokens), noisy, config=config(), compute=Compute(), clean_context=True)
    concept = config().concept
    spec = None if concept is None else discovered_spec(concept)
    assert spec is not None
    weights = run_head(one.params["unknown_head"], hidden.reshape(-1, 32), spec, Compute(), dense=True).weights
    weights = np.asarray(weights)[:, KNOWS].reshape(chunk.shape)
    for number, value in zip(found.heldout, found.heldout_activation[:, 0]):
        assert value == pytest.approx(weights[np.asarray(masked) & (chunk == number)].mean(), abs=1e-4)


def test_chunks_cut_by_batches_are_joined(topic_bundle: Bundle, topic_store: CorpusStore, monkeypatch):
    monkeypatch.setattr(activity_module, "_BATCH_TOKENS", 16)
    found = concept_activity(
        topic_bundle, topic_store, [SourceConcept(0)], level=1.0, seq_len=16, corpus_tokens=64, heldout_tokens=400
    )
    start, _ = topic_store.split("heldout")
    assert found.heldout.tolist() == list(range(*topic_store.chunks_between(start, start + 400)))


def test_score_of_hand_made_names():
    activation = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.2, 0.1, 0.1, 0.0, 0.0])
    own = (activation > 0.4).astype(int)
    other = np.tile([1, 0], 5)
    found = score_name(activation, np.stack([own, other, np.zeros(10, int), own], axis=1), 0, jax.random.key(0))
    assert found is not None
    assert found.auc.mean == 1.0
    assert found.names == 1  # one word's chunks are the same, one is in none
    assert found.others == pytest.approx(0.5, abs=0.1)
    assert found.positives == 5
    assert score_name(activation, np.zeros((10, 1), int), 0, jax.random.key(0)) is None


def test_controls_are_other_concepts(topic_bundle: Bundle):
    requested = [SourceConcept(0, "discovered")]
    found = control_concepts(requested, topic_bundle.config, minimum=4)
    assert len(found) == 3
    assert requested[0] not in found
    assert control_concepts([SourceConcept(i) for i in range(8)], topic_bundle.config, minimum=4) == []


def test_concepts_named_on_the_command_line(topic_bundle: Bundle):
    find = neighbourhood_command.find_concepts
    assert find(topic_bundle, ["discovered:5", "known:#2", "3", "discovered:5"], None) == [
        SourceConcept(5, "discovered"), SourceConcept(2), SourceConcept(3)
    ]  # fmt: skip
    assert len(find(topic_bundle, [], "discovered")) == 24


def test_command_prints_panels_tables_and_json(topic_bundle: Bundle, topic_store: CorpusStore, monkeypatch, capsys):
    monkeypatch.setattr("steerling_jax.load", lambda _: topic_bundle)
    options = ["--corpus", str(topic_store.folder), "--seq-len", "64", "--strongest", "20"]
    assert main(["neighbourhood", "discovered:5", *options]) == 0
    printed = capsys.readouterr().out
    assert "discovered:5" in printed
    assert "near, by activity" in printed
    assert main(["neighbourhood", "--all", "known", *options]) == 0
    assert capsys.readouterr().out.count("known:") == 8
    assert main(["neighbourhood", "discovered:5", *options, "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["concepts"]
    assert entry["concept"]["score"]["auc"][0] > 0.8
    assert entry["name"].count(" · ") == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["discovered:24"], "There is no discovered concept 24; the ids are 0 to 23."),
        (["known:8"], "There is no known concept 8; the ids are 0 to 7."),
        ([], "Give either concepts"),
        (["discovered:5", "--all", "known"], "Give either concepts"),
        (
            ["discovered:5", "--level", "1.5"],
            "level is 1.5, but the share of masked tokens must be above 0 and at most 1.",
        ),
        (["discovered:5", "--tokens", "0"], "--tokens is 0, but it must be a whole number of at least 1"),
    ],
)
def test_invalid_commands_raise(
    topic_bundle: Bundle, topic_store: CorpusStore, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.setattr("steerling_jax.load", lambda _: topic_bundle)
    assert main(["neighbourhood", *arguments, "--corpus", str(topic_store.folder)]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_other_corpora_and_broken_weights_are_refused(topic_bundle: Bundle, topic_store: CorpusStore):
    other = dataclasses.replace(topic_bundle, tokenizer=FakeTokenizer("1" * 64))
    with pytest.raises(UserError, match="was made with another tokenizer than this model's"):
        concept_activity(other, topic_store, [SourceConcept(0)])
    broken = dict(topic_bundle.params, tok_emb={"weight": jnp.full((64, 32), jnp.nan)})
    with pytest.raises(UserError, match="planted: tok_emb/weight contains NaN"):
        concept_activity(dataclasses.replace(topic_bundle, params=broken), topic_store, [SourceConcept(0)], seq_len=64)


def test_bare_backbone_is_refused(topic_bundle: Bundle, topic_store: CorpusStore):
    bare = dataclasses.replace(config(), concept=None, interpretable=False)
    with pytest.raises(UserError, match="bare backbone"):
        concept_activity(dataclasses.replace(topic_bundle, config=bare), topic_store, [SourceConcept(0)])
