"""The page that compares built-in concepts with features shows the figures of its JSON, and they are computed as it
says."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import one_roof_removal as removal
from benchmarks import one_roof_report as report
from benchmarks import one_roof_scores as scores
from benchmarks.results_page import with_tables
from steerling_jax.autoencoders.weights import Settings, Weights
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.decompose import cross_entropy, decompose
from tests.worlds.dictionary_world import MODEL, make_params
from tests.worlds.paths import REPOSITORY

RESULTS = REPOSITORY / "docs" / "results"


def test_the_page_has_the_tables_of_its_figures():
    page = (RESULTS / "one-roof.md").read_text(encoding="utf-8")
    parts = report.tables(json.loads((RESULTS / "one-roof.json").read_text(encoding="utf-8")))
    assert {"roof", "detection", "removal", "steering", "names"} <= set(parts)
    assert with_tables(page, parts) == page


def reading(rng: np.random.Generator, chunks: int, noisy: int) -> scores.Reading:
    """Chunks whose label is what feature 2 of block 1 and the known concept 0 say; feature 3 says it in these chunks
    only, apart from `noisy` ones."""
    label = np.arange(chunks) % 4 == 0
    features = rng.random((chunks, 5)).astype(np.float32)
    features[:, 2] = np.where(label, 1.5, 0.0)
    features[:, 3] = np.where(np.arange(chunks) < noisy, 0.5, np.where(label, 2.0, 0.0))
    block = rng.standard_normal((chunks, 6)) + label[:, None] * np.eye(6)[1] * 4
    means = {
        "known": label[:, None] + 0.1 * rng.random((chunks, 1)),
        "discovered": features[:, :2],
        "features 0": features[:, :2],
        "features 1": features,
        "block 0": block,
        "block 1": block,
    }
    return scores.Reading(np.arange(chunks), label[:, None], {name: np.asarray(one) for name, one in means.items()})


def test_features_are_chosen_on_the_training_chunks_and_measured_on_the_others():
    rng = np.random.default_rng(0)
    train, held = reading(rng, 120, 40), reading(rng, 200, 0)
    # Token 3 is in the chunks with the label.
    words = [scores.word_table(np.where(one.positive, [3, 1], [1, -1]), 5) for one in (train, held)]
    found = scores.detection(train, held, (words[0], words[1]))
    assert found["labels"] == [0]
    assert found["positives"] == {"train": [30], "held out": [50]}
    assert found["chosen"]["features 1"] == [2]
    areas = {name: one[0] for name, one in found["areas"].items()}
    assert areas["known concept"] == areas["best feature of the last block"] == areas["best feature of all blocks"] == 1
    assert 0.3 < areas["best discovered concept"] < 0.7
    assert areas["difference of means"] > 0.95
    assert areas["logistic regression, words"] == 1
    assert areas["logistic regression, last block"] > 0.95
    assert "logistic regression, words" not in scores.detection(train, held)["areas"]
    # A random direction is chosen for what it has of the label's; it has less of it than their difference.
    assert 0.8 < areas["best random direction"] <= areas["difference of means"] + 0.02


def test_words_are_counted_in_logarithms():
    table = scores.word_table(np.array([[2, 2, 0], [1, -1, -1]]), 4).toarray()
    np.testing.assert_allclose(table, np.log1p([[1, 0, 2, 0], [0, 1, 0, 0]]))


def test_a_dose_is_the_most_effective_within_the_limit():
    def arm(found: float, damage: float) -> dict:
        return {"found": [[found, found], [found]], "damage": [[damage, float("nan")], [damage]]}

    assert scores.choose_dose([arm(0.2, 0.1), arm(0.5, 0.29), arm(0.9, 0.4)]) == 1
    assert scores.choose_dose([arm(0.5, 0.2), arm(0.5, 0.1)]) == 1
    assert scores.choose_dose([arm(0.9, 2.0), arm(0.5, 1.0)]) == 1


def test_removal_is_the_loss_without_a_part_of_the_row():
    """Against the decomposition: the cost of a known concept, and parts of equal length in its place."""
    params = make_params(MODEL)
    rng = np.random.default_rng(1)
    D, N, S = MODEL.n_embd, 40, 12
    rows, tokens = rng.standard_normal((N, D)).astype(np.float32), rng.integers(0, 20, N).astype(np.int32)
    weights = Weights(
        W_enc=jnp.asarray(rng.standard_normal((D, S)), jnp.float32),
        W_dec=jnp.asarray(rng.standard_normal((S, D)), jnp.float32),
        b_enc=jnp.zeros(S),
        b_dec=jnp.zeros(D),
        settings=Settings(k=3),
    )
    chosen = jnp.asarray([1, 2, 4], jnp.int32)
    run = {"config": MODEL, "compute": Compute()}
    costs, lengths = removal.removal_costs(params, weights, rows, tokens, chosen, jax.random.key(0), **run)
    assert costs.shape == (3, 3, N)
    active = np.asarray(lengths) > 0
    assert active.any(axis=1).all()
    assert not active.all(axis=1).any()
    for kind in range(3):  # where it is not active, nothing is removed, nor in its place
        assert np.abs(np.asarray(costs)[kind][:, ~active[kind]]).max() < 1e-5
        assert np.abs(np.asarray(costs)[kind][:, active[kind]]).max() > 1e-3
    hidden = removal.final_norm(params, jnp.asarray(rows), MODEL)
    parts = decompose(params, hidden, **run)
    table = params["known_head"]["concept_embedding"]["weight"]
    weight = jnp.sum(jnp.where(parts.known.topk_indices == 1, parts.known.topk_weights, 0.0), axis=1)
    without = cross_entropy(params, parts.composed - weight[:, None] * table[1][None], jnp.asarray(tokens), Compute())
    expected = without - cross_entropy(params, parts.composed, jnp.asarray(tokens), Compute())
    np.testing.assert_allclose(np.asarray(costs[0, 0]), np.asarray(expected), atol=1e-4)


def test_the_part_in_place_of_another_is_the_one_of_the_nearest_length():
    table = jnp.asarray([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    values, indices = jnp.asarray([[1.0, 1.0, 1.0]] * 3), jnp.asarray([[0, 1, 2]] * 3)
    spared = jnp.asarray([[True, True, True], [True, False, True], [True, True, True]])
    part = removal.nearest_part(values, indices, table, jnp.asarray([2.1, 2.1, 0.0]), spared)
    assert part.tolist() == [[0.0, 2.0], [3.0, 0.0], [0.0, 0.0]]


def test_tables_show_means_and_intervals_over_concepts():
    figures = {"areas": {name: [0.9, 0.7] for name in report.DETECTORS} | {"known concept": [0.95, 0.85]}}
    assert "| known concept | 0.900 (0.850–0.950) | 1 of 2 |" in report.detection(figures)
    less = {"areas": {"difference of means": [0.5, 0.3]}}
    line = report.before(figures, less).splitlines()[2]
    assert line == "| difference of means | 0.400 (0.300–0.500) | 0.800 (0.700–0.900) | 0.400 (0.400–0.400) |"
    line = report.differences(figures).splitlines()[2]
    assert line == "| best discovered concept | 0.100 (0.050–0.150) | 2 of 2 |"
    cost = {kind: {"own": 0.2, "other": 0.1, "random": 0.0, "active": 0.5} for kind in report.KINDS}
    less = {kind: one | {"own": 0.05, "active": 0.25} for kind, one in cost.items()}
    lines = report.removal({"costs": [{"with": cost, "without": less}]}).splitlines()
    assert lines[2] == "| known concept: itself | 0.200 (0.200–0.200) | 0.050 (0.050–0.050) |  | 50% | 25% |"
    assert lines[3].endswith("| 0.100 (0.100–0.100) | 0.100 (0.100–0.100) | 0.100 (0.100–0.100) |  |  |")
    arm = {"name": "x", "strength": 0.5, "found": [[1.0, 0.0], [1.0]], "damage": [[0.1], [0.3]], "repeated": 0.2,
           "texts": 3}  # fmt: skip
    assert report.steering([arm]).splitlines()[2].startswith("| x, 0.5 | 0.75 (")
    kinds = {"known": {"of": 9, "read": 4, "good": 1, "areas": [0.9, 0.7], "others": [0.5, None]}}
    assert (
        report.names(kinds).splitlines()[2].startswith("| known concepts, by words | 4 of 9 | 2 | 1 of 4 (25%) | 0.80")
    )
    assert report.mean_of_others(kinds["known"]) == pytest.approx(0.5)
