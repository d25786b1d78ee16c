"""A strict model written as text and explained: decoding with clamps, contributions, and input attributions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.decoding.trace import Trace
from steerling_jax.explain.concept_gradients import SourceConcept, TargetConcept, concept_gradients
from steerling_jax.explain.effects import concept_effects
from steerling_jax.explain.hidden_rows import hidden_rows
from steerling_jax.explain.inputs.record import Tolerance
from steerling_jax.explain.inputs.targets import ConceptActivation
from steerling_jax.explain.logit_shares import Reference
from steerling_jax.io.weights.published_writer import write_published
from steerling_jax.models.steerling.config import DictionaryConfig
from steerling_jax.models.steerling.decompose import decompose
from steerling_jax.steering.resolve import plan_steering
from steerling_jax.steering.rule_syntax import parse_json
from tests.worlds.decoding import decode
from tests.worlds.dictionary_world import MODEL, changed, make_params, tables
from tests.worlds.reference_decoder import reference_decode

GREEDY = sj.GenerationConfig(max_new_tokens=16, use_entropy_sampling=False, temperature=0.0)
CLAMPED = sj.SteeringConfig(intervene_known={2: 0.0}, intervene_unknown={5: 4.0, 9: 0.0}, clamp_offsets=(1, 13))
PROMPT = np.arange(1, 7)


def trace_of(
    bundle: sj.Bundle, steering: sj.SteeringConfig | None = None, config: sj.GenerationConfig = GREEDY
) -> Trace:
    *_, trace = decode(
        bundle.params,
        PROMPT,
        config=bundle.config,
        compute=bundle.compute,
        generation=config,
        seed=0,
        steering=steering,  # type: ignore[arg-type]
    )
    assert isinstance(trace, Trace)
    return trace


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> sj.Bundle:
    folder = tmp_path_factory.mktemp("strict")
    write_published(folder / "model", MODEL, make_params(MODEL))
    return sj.load(folder / "model")


def test_clamped_text_is_that_of_whole_passes(bundle: sj.Bundle) -> None:
    trace = trace_of(bundle, CLAMPED)
    canvas, _ = reference_decode(bundle.params, PROMPT, MODEL, GREEDY, 0, CLAMPED)
    np.testing.assert_array_equal(trace.tokens, canvas)
    assert not np.array_equal(canvas, trace_of(bundle).tokens)


@pytest.mark.parametrize("steering", [None, CLAMPED])
def test_concepts_and_the_offset_are_the_whole_logit(bundle: sj.Bundle, steering: sj.SteeringConfig | None) -> None:
    trace = trace_of(bundle, steering)
    shares = sj.concept_contributions(bundle, trace)
    assert shares.error.max() < 1e-4
    output = np.asarray(bundle.params["tok_emb"]["weight"])[shares.token_ids]
    np.testing.assert_allclose(
        shares.epsilon, output @ np.asarray(bundle.params["unknown_head"]["offset"]["bias"]), atol=1e-4
    )
    assert shares.discovered_weights.max() > 1  # a magnitude
    assert set(shares.to_dataframe().kind) == {"known", "discovered", "constant"}, "such a model has no epsilon"
    np.testing.assert_array_equal(shares.summary().columns["constant"], shares.epsilon)
    for row in (0, 5):
        c, weight = int(shares.discovered_ids[row, 0]), shares.discovered_weights[row, 0]
        assert shares.discovered_contributions[row, 0] == pytest.approx(
            weight * tables(bundle.params)[2][c] @ output[row], abs=1e-4
        )


def test_without_an_offset_nothing_is_left(tmp_path: Path) -> None:
    config = changed(dictionary=DictionaryConfig(offset=False))
    write_published(tmp_path / "model", config, make_params(config))
    bundle = sj.load(tmp_path / "model")
    shares = sj.concept_contributions(bundle, trace_of(bundle))
    assert np.abs(shares.epsilon).max() < 1e-4 < np.abs(shares.target_logits).max()


def test_the_removal_of_a_discovered_concept_is_its_contribution(bundle: sj.Bundle) -> None:
    """Under both rules: nothing in a strict model restores what a clamp takes away."""
    trace = trace_of(bundle)
    shares = sj.concept_contributions(bundle, trace)
    ids = sorted({int(i) for i in shares.discovered_ids[:, 0]})[:2]
    found = concept_effects(bundle, trace, shares, ids, head="discovered", end=len(PROMPT) + 4)
    assert np.abs(found.direct).max() > 1e-2
    for rule in ("frozen", "published"):
        np.testing.assert_allclose(found.logit[rule], found.direct, atol=1e-4)


def test_attributions_to_inputs_go_through_the_heads(bundle: sj.Bundle) -> None:
    trace = trace_of(bundle)
    found = sj.attribute_inputs(bundle, trace, nodes=16)
    np.testing.assert_allclose(found.path_logits, found.target_logits, atol=1e-4)


def test_logits_of_a_strict_model_get_no_more_nodes_than_help(bundle: sj.Bundle) -> None:
    """They jump where a concept enters or leaves the selection; a concept's own logit does not."""
    trace, exact = trace_of(bundle), {"relative": 0.0, "absolute": 0.0}
    logits = sj.attribute_inputs(bundle, trace, sample=2)
    assert set(logits.nodes.tolist()) <= {8, 8 + 16}
    concepts = sj.attribute_inputs(bundle, trace, sample=2, target=ConceptActivation(1))
    assert concepts.converged.all()
    assert concepts.tolerance.most_nodes > logits.tolerance.most_nodes == 16
    given = sj.attribute_inputs(bundle, trace, sample=2, tolerance=Tolerance(**exact, most_nodes=32))
    assert set(given.nodes.tolist()) == {8 + 16 + 32}


def test_discovered_concepts_can_be_clamped_by_a_rule(bundle: sj.Bundle) -> None:
    """The published rule for epsilon makes such a clamp act on nothing in other models, where it is an error."""
    plan = plan_steering(bundle, parse_json({"clamp_discovered": {"4": 2.0}}))
    assert plan.clamps is not None
    assert plan.clamps.discovered == {4: 2.0}


def test_concepts_of_a_dictionary_have_gradients_by_their_slope(bundle: sj.Bundle) -> None:
    canvas = trace_of(bundle).snapshot(0)
    targets = [TargetConcept(c, len(PROMPT) + 1, "discovered") for c in range(6)]
    found = concept_gradients(bundle, canvas, targets, [SourceConcept(1)])
    np.testing.assert_allclose(found.activations, np.maximum(found.logits, 0), atol=1e-6)
    np.testing.assert_array_equal(found.slopes, (found.logits > 0).astype(np.float32))
    assert 0 < found.slopes.sum() < 6


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("reference", ["vocabulary", "model"])
def test_shares_of_centred_logits_add_up(bundle: sj.Bundle, reference: Reference, guidance: float) -> None:
    """Against the logits of all tokens, computed from the composed rows of both branches in NumPy."""
    trace = trace_of(bundle, config=dataclasses.replace(GREEDY, cfg_scale=guidance))
    shares = sj.concept_contributions(bundle, trace, reference=reference)
    output = np.asarray(bundle.params["tok_emb"]["weight"], np.float64)
    branches = []
    for unconditional in (False, True):
        rows = jnp.asarray(hidden_rows(bundle, trace, unconditional=unconditional))
        composed = decompose(bundle.params, rows, config=MODEL, compute=bundle.compute).composed
        branches.append(np.asarray(composed, np.float64) @ output.T)
    logits = (1 + guidance) * branches[0] - guidance * branches[1]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    mean = logits.mean(axis=1) if reference == "vocabulary" else (p * logits).sum(axis=1)
    centred = logits[np.arange(len(shares)), shares.token_ids] - mean
    listed = shares.known_contributions.sum(axis=1) + shares.discovered_contributions.sum(axis=1)
    np.testing.assert_allclose(listed + shares.epsilon, centred, atol=2e-4)
    assert shares.reference_logits is not None
    np.testing.assert_allclose(shares.reference_logits, mean, atol=2e-4)
    assert shares.error.max() < 2e-4
    assert np.abs(mean).max() > 0.05


def test_a_concept_that_raises_all_logits_alike_has_no_centred_share(bundle: sj.Bundle) -> None:
    """Output rows that share one component, and a known concept along it: raw it has a share, centred none."""
    params = jax.tree.map(np.asarray, bundle.params)
    table = np.array(params["tok_emb"]["weight"])
    table[:, 0] = 0.5
    known = {"weight": np.zeros((8, 16), np.float32)}
    known["weight"][:, 0] = 2.0
    params = {
        **params,
        "tok_emb": {"weight": table},
        "known_head": {**params["known_head"], "concept_embedding": known},
    }
    same = dataclasses.replace(bundle, params=params)
    trace = trace_of(same)
    assert np.abs(sj.concept_contributions(same, trace).known_contributions).min() > 0.01
    for reference in ("vocabulary", "model"):
        shares = sj.concept_contributions(same, trace, reference=reference)
        assert np.abs(shares.known_contributions).max() < 1e-5


def test_an_unknown_reference_is_refused(bundle: sj.Bundle) -> None:
    with pytest.raises(sj.UserError, match="reference is 'mean'"):
        sj.concept_contributions(bundle, trace_of(bundle), reference="mean")  # type: ignore[arg-type]
