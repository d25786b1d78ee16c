"""Concept contributions equal the golden ones and add up to the recorded logits."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.decoding.trace import Trace
from steerling_jax.explain.ranking import chunk_spans
from steerling_jax.models.steerling.backbone import lm_head_weight
from tests.worlds.golden_traces import FAMILIES, golden_trace


@pytest.fixture(scope="module", params=FAMILIES)
def solved(request, golden):
    """A family's golden attribution and ours."""
    folder = golden / request.param
    case = np.load(folder / "attribution.npz")
    bundle = sj.load(folder)
    trace = golden_trace(case, bundle.config.mask_token_id)
    published = json.loads((folder / "attribution.json").read_text())
    return case, published, bundle, sj.concept_contributions(bundle, trace)


def test_golden_contributions(solved):
    case, _, _, ours = solved
    where = ours.positions
    np.testing.assert_array_equal(case["concept.target_token_ids"][0, where], ours.token_ids)
    for name, published in (("known", "known"), ("discovered", "unk")):
        ids = getattr(ours, f"{name}_ids")
        reference = case[f"concept.{published}_indices"][0, where]
        if ids.shape[1] == 0:  # the published package fills a missing head's slots with zeros
            assert not case[f"concept.{published}_contributions"].any()
            continue
        order, published_order = ids.argsort(axis=1), reference.argsort(axis=1)
        np.testing.assert_array_equal(np.sort(ids), np.sort(reference))
        for field in ("weights", "contributions"):
            a = np.take_along_axis(getattr(ours, f"{name}_{field}"), order, axis=1)
            b = np.take_along_axis(case[f"concept.{published}_{field}"][0, where], published_order, axis=1)
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours.remainder, case["concept.epsilon_contribution"][0, where], rtol=0, atol=1e-4)


def test_golden_ranking(solved):
    """Without a discovered head the published list has an empty slot, 'Discovered: #100' with 0; ours leaves it out."""
    _, published, _, ours = solved
    ranking = sj.rank_chunk(ours, *published["chunk"])
    reference = {entry["label"]: entry["contribution"] for entry in published["chunk_entries"]}
    found = {ours.label(entry.type, entry.concept_id): entry.contribution for entry in ranking}
    assert all(reference[label] == 0.0 for label in reference.keys() - found.keys())
    assert not found.keys() - reference.keys()
    for label, share in found.items():
        assert share == pytest.approx(reference[label], abs=1e-6)
    sizes = [abs(entry.contribution) for entry in ranking]
    assert sizes == sorted(sizes, reverse=True)
    assert ranking.epsilon_percent == pytest.approx(published["epsilon_percent"], abs=1e-3)
    assert sum(ranking.absolute_shares) == pytest.approx(1)
    assert sum(ranking.net_shares) == pytest.approx(1)


def test_parts_add_up_to_the_logit(solved):
    """Epsilon is computed from the vectors and not from what is missing, so the error is that of float32."""
    _, _, _, ours = solved
    assert ours.error.max() < 1e-4
    total = ours.known_contributions.sum(axis=1) + ours.discovered_contributions.sum(axis=1) + ours.epsilon
    np.testing.assert_allclose(total, ours.target_logits, atol=1e-4)


def test_a_wrong_logit_shows_in_the_error(golden, solved):
    case, _, bundle, _ = solved
    trace = golden_trace(case, bundle.config.mask_token_id)
    first = trace.commits[0]
    off = first._replace(target_logits=tuple(logit + 0.5 for logit in first.target_logits))
    ours = sj.concept_contributions(bundle, dataclasses.replace(trace, commits=(off, *trace.commits[1:])))
    assert ours.error[: len(first.positions)].min() > 0.49


def test_recorded_rows_are_used(golden):
    """Rows that generation recorded are used as they are: rows of zeros give the sigmoid of 0 everywhere."""
    bundle = sj.load(golden / "base")
    case = np.load(golden / "base" / "attribution.npz")
    trace = golden_trace(case, bundle.config.mask_token_id)
    zeros = dataclasses.replace(trace, hidden=np.zeros((16, 64), np.float32))
    assert sj.concept_contributions(bundle, zeros).known_weights == pytest.approx(0.5)


@pytest.mark.parametrize("family", ["no_topk_no_epsilon", "dense_unknown_topk8of12"])
def test_net_mass_covers_what_is_not_listed(golden, family):
    """Concepts in the features that are not listed belong to `epsilon`, but to the net mass of their head."""
    bundle = sj.load(golden / family)
    case = np.load(golden / "base" / "attribution.npz")
    trace = golden_trace(case, bundle.config.mask_token_id)
    ours = sj.concept_contributions(bundle, trace)
    assert not np.allclose(ours.net_known, np.abs(ours.known_contributions.sum(axis=1)), atol=1e-2)
    if family.endswith("no_epsilon"):
        assert ours.net_epsilon.max() < 1e-4 < np.abs(ours.epsilon).max()


@pytest.mark.parametrize("family", ["base", "known_only"])
def test_guided_text_is_explained_by_both_branches(golden, family):
    """Against dense passes with and without the prompt, with each listed concept's weight there, in NumPy."""
    bundle, s = sj.load(golden / family), 1.5
    settings = sj.GenerationConfig(max_new_tokens=16, seed=2, cfg_scale=s)
    trace = sj.generate(bundle, [5, 6, 7, 8], settings).trace
    ours = sj.concept_contributions(bundle, trace)
    assert ours.error.max() < 1e-3
    total = ours.known_contributions.sum(axis=1) + ours.discovered_contributions.sum(axis=1) + ours.epsilon
    np.testing.assert_allclose(total, ours.target_logits, atol=1e-3)
    heads = bundle.params
    tables = {"known": np.asarray(heads["known_head"]["concept_embedding"]["weight"])}
    if family == "base":
        unknown = heads["unknown_head"]
        tables["discovered"] = np.asarray(unknown["embedding_coef"]["weight"] @ unknown["embedding_basis"]["weight"].T)
    lm_head = np.asarray(lm_head_weight(bundle.params))
    for row, (step, position, token, logit) in enumerate(trace.flat()):
        canvas = trace.snapshot(step)
        blind = np.where(np.arange(len(canvas)) < trace.prompt_length, trace.mask_id, canvas)
        branches = [(1 + s, sj.forward(bundle, canvas)), (-s, sj.forward(bundle, blind))]
        assert sum(share * out.logits[0, position, token] for share, out in branches) == pytest.approx(logit, abs=1e-3)
        features = {"known": "known_features", "discovered": "unk_hat"}
        for name, table in tables.items():
            published = "known" if name == "known" else "unknown"
            expected: dict[int, float] = {}
            for share, out in branches:
                ids, logits = (
                    np.asarray(getattr(out.decomposition, f"{published}_topk_{field}"))[0, position]
                    for field in ("indices", "logits")
                )
                for concept, score in zip(ids.tolist(), logits.tolist(), strict=True):
                    added = share / (1 + np.exp(-score)) * float(table[concept] @ lm_head[token])
                    expected[concept] = expected.get(concept, 0.0) + added
            ids, values = getattr(ours, f"{name}_ids")[row], getattr(ours, f"{name}_contributions")[row]
            assert sorted(ids[ids >= 0]) == sorted(expected)
            assert not values[ids < 0].any()
            for concept, value in zip(ids[ids >= 0], values[ids >= 0], strict=True):
                assert value == pytest.approx(expected[concept], abs=1e-3)
            net = sum(
                share * (getattr(out.decomposition, features[name])[0, position] @ lm_head[token])
                for share, out in branches
            )
            assert getattr(ours, f"net_{name}")[row] == pytest.approx(abs(float(net)), abs=1e-3)
    ranking = sj.rank_chunk(ours, trace.prompt_length, len(trace.tokens))
    assert all(entry.concept_id >= 0 for entry in ranking)
    assert len({(entry.type, entry.concept_id) for entry in ranking}) == len(ranking)


def test_guided_and_steered_text_adds_up(golden):
    """Both branches are steered; in the unconditional one, also the masks of the prompt."""
    bundle = sj.load(golden / "base")
    steering = [sj.SteeringConfig.injection([3, 5], 2.0, inject_layer=1), sj.SteeringConfig((7,), 1.0, where="prompt")]
    settings = sj.GenerationConfig(max_new_tokens=16, seed=2, cfg_scale=1.5)
    trace = sj.generate(bundle, [5, 6, 7, 8], settings, steering).trace
    assert sj.concept_contributions(bundle, trace).error.max() < 1e-3


CLAMPS = {
    "known": sj.SteeringConfig((), intervene_known={3: 1.0, 4: 0.0}),
    "known, frozen": sj.SteeringConfig((), intervene_known={3: 1.0}, epsilon="frozen", clamp_offsets=(4, 12)),
    "both": sj.SteeringConfig((), intervene_known={3: 0.5}, intervene_unknown={7: 2.0}, clamp_offsets=(0, 8)),
}


@pytest.mark.parametrize(
    ("family", "clamps", "guidance"),
    [
        ("base", "known, frozen", 0.0),
        ("base", "both", 1.5),
        ("no_epsilon", "known", 0.0),
        ("dense_unknown_topk8of12", "both", 0.0),
    ],
)
def test_clamped_text_is_explained_with_its_clamps(golden, family: str, clamps: str, guidance: float):
    bundle, clamp = sj.load(golden / family), CLAMPS[clamps]
    settings = sj.GenerationConfig(max_new_tokens=16, seed=1, cfg_scale=guidance)
    trace = sj.generate(bundle, [5, 6, 7, 8], settings, clamp).trace
    ours = sj.concept_contributions(bundle, trace)
    assert ours.error.max() < 1e-3, "the parts no longer add up to the logit that was recorded"
    lm_head = np.asarray(lm_head_weight(bundle.params))
    embedding = np.asarray(bundle.params["known_head"]["concept_embedding"]["weight"])
    assert clamp.intervene_known is not None
    start, end = clamp.clamp_offsets or (0, 16)
    for row, position in enumerate(ours.positions):
        here = ours.known_ids[row] == 3
        if guidance == 0 and start <= position - trace.prompt_length < end:
            assert here.sum() == 1
            value = clamp.intervene_known[3]
            assert ours.known_weights[row][here][0] == value
            share = value * embedding[3] @ lm_head[ours.token_ids[row]]
            assert ours.known_contributions[row][here][0] == pytest.approx(share, abs=1e-4)
    inputs = sj.attribute_inputs(bundle, trace, nodes=2, sample=3)
    np.testing.assert_allclose(inputs.path_logits, inputs.target_logits, atol=1e-3)


def test_a_bare_backbone_has_no_concepts(golden):
    bundle = sj.load(golden / "backbone")
    with pytest.raises(sj.UserError, match="bare backbone"):
        sj.concept_contributions(bundle, Trace(np.asarray([1]), np.asarray([1, 2]), (), 299))


def test_an_empty_trace_and_an_empty_chunk(golden):
    bundle = sj.load(golden / "base")
    trace = Trace(np.asarray([1, 2], np.int32), np.asarray([1, 2, 299, 299], np.int32), (), 299)
    ours = sj.concept_contributions(bundle, trace)
    assert len(ours) == 0
    assert ours.known_ids.shape == (0, 8)
    assert len(sj.rank_chunk(ours, 2, 4)) == 0
    with pytest.raises(sj.UserError, match="empty"):
        sj.rank_chunk(ours, 4, 4)


def test_names(golden, solved):
    _, published, _, ours = solved
    named = dataclasses.replace(ours, concept_names=tuple(f"name {i}" for i in range(100)))
    entry = next(entry for entry in sj.rank_chunk(named, *published["chunk"]) if entry.type == "known")
    assert entry.label == f"Known: name {entry.concept_id}"


def test_a_discovered_concept_is_printed_with_its_number_within_the_head():
    """The number by which the catalogue, `--head discovered` and clamps know it; the published one is in `label`."""
    bundle = sj.load("steerling-pydocs-published")  # a model whose discovered concepts have no names
    result = sj.generate(bundle, "Return the", sj.GenerationConfig(max_new_tokens=16, seed=3))
    shares = sj.concept_contributions(bundle, result.trace)
    start, end = result.trace.prompt_length, len(result.trace.tokens)
    entry = next(entry for entry in sj.rank_chunk(shares, start, end) if entry.type == "discovered")
    assert str(entry).endswith(f"Discovered: #{entry.concept_id}")
    assert entry.concept_id in shares.discovered_ids
    (concept,) = bundle.concepts.find(entry.label.removeprefix("Discovered: "), "discovered")
    assert (concept.id, concept.name) == (entry.concept_id, f"concept {entry.concept_id}")
    concepts = bundle.config.concept
    assert concepts is not None
    assert shares.label("discovered", entry.concept_id) == f"Discovered: #{concepts.n_concepts + entry.concept_id}"


def test_chunk_spans():
    END, TURN = 8, 9
    assert chunk_spans([1, END, 2, 3, END, 4], 1, END) == [(2, 4), (5, 6)]  # the tail counts, empty chunks do not
    assert chunk_spans([1, 2, 3, END, 4, TURN, 5, END, 6], 1, END, TURN) == [(1, 3), (4, 5)]
    assert chunk_spans([TURN, END, 2], 2, END, TURN) == [(2, 3)]  # the prompt's own boundaries do not matter
    assert chunk_spans([1, 2, TURN], 2, END, TURN) == []
    trace = Trace(np.asarray([1]), np.asarray([1, 2, 3]), (), 0)
    assert chunk_spans(trace, trace.prompt_length, END) == [(1, 3)]
