"""Input attribution equals the golden one, says how complete it is, and sees nothing that the target could not see."""

from __future__ import annotations

import json

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.integrated_gradients import quadrature
from steerling_jax.trace import Trace

from .golden_traces import FAMILIES, golden_trace


@pytest.fixture(scope="module")
def base(golden):
    bundle = sj.load(golden / "base")
    case = np.load(golden / "base" / "attribution.npz")
    return bundle, golden_trace(case, bundle.config.mask_token_id)


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_attributions(golden, family):
    bundle = sj.load(golden / family)
    case = np.load(golden / family / "attribution.npz")
    told = json.loads((golden / family / "attribution.json").read_text())
    trace = golden_trace(case, bundle.config.mask_token_id)
    for nodes in (1, 4):
        ours = sj.attribute_inputs(bundle, trace, nodes=nodes, rule="right-riemann")
        reference = case[f"input.attributions_{nodes}"]
        np.testing.assert_allclose(ours.attributions, reference, rtol=0, atol=1e-4 * np.abs(reference).max())
        for name in ("positions", "token_ids", "orders"):
            np.testing.assert_array_equal(getattr(ours, f"target_{name}"), case[f"input.target_{name}"])
    np.testing.assert_allclose(ours.path_logits, ours.target_logits, atol=1e-4)
    for name, ranking in (
        ("aggregate_prompt", ours.aggregate("prompt")),
        ("aggregate_all_unsigned", ours.aggregate("all", signed=False)),
    ):
        for entry, expected in zip(ranking, told[name], strict=False):
            assert entry.input_position == expected["input_position"]
            assert entry.input_token_id == expected["input_token_id"]
            assert entry.score == pytest.approx(expected["score"], abs=1e-5)


def test_completeness_improves_with_nodes(base):
    """The sum of the attributions approaches the difference of the logits, and Gauss–Legendre gets there first."""
    bundle, trace = base
    errors = {
        nodes: np.abs(sj.attribute_inputs(bundle, trace, nodes=nodes).completeness_error).mean() for nodes in (2, 8, 24)
    }
    riemann = sj.attribute_inputs(bundle, trace, nodes=8, rule="right-riemann")
    assert errors[24] < errors[8] < errors[2]
    assert errors[8] < np.abs(riemann.completeness_error).mean()
    moved = riemann.path_logits - riemann.baseline_logits
    assert errors[24] < 0.02 * np.abs(moved).mean()


def test_masked_positions_and_later_blocks_get_exactly_zero(base):
    bundle, trace = base
    ours = sj.attribute_inputs(bundle, trace, nodes=2)
    steps = [step for step, *_ in trace.flat()]
    for row, (position, step) in enumerate(zip(ours.target_positions, steps, strict=True)):
        masked = trace.snapshot(step) == trace.mask_id
        assert not ours.attributions[row, masked].any()
        assert not ours.attributions[row, (position // 16 + 1) * 16 :].any()
        assert ours.attributions[row, :16].any()


def test_batches_do_not_matter(base):
    """The canvas is cut and targets share a program, and neither shows."""
    bundle, trace = base
    whole = sj.attribute_inputs(bundle, trace, nodes=2)
    parts = sj.attribute_inputs(bundle, trace, nodes=2, batch_size=3)
    np.testing.assert_allclose(parts.attributions, whole.attributions, rtol=0, atol=2e-5)


def test_aggregates_of_a_chunk(base):
    bundle, trace = base
    ours = sj.attribute_inputs(bundle, trace, nodes=2)
    position = int(ours.target_positions[-1])
    ranking = ours.aggregate("all", start=position, end=position + 1)
    best = int(np.argmax(ours.attributions[-1]))
    assert ranking[0].input_position == best
    assert ours.aggregate("prompt", start=0, end=1) == []


def test_quadrature():
    points, weights = quadrature(4, "gauss-legendre")
    assert weights.sum() == pytest.approx(1)
    assert (weights * points**7).sum() == pytest.approx(1 / 8)
    points, weights = quadrature(4, "right-riemann")
    assert points.tolist() == [0.25, 0.5, 0.75, 1.0]


def test_mistakes_are_sentences(base):
    for arguments, words in (({"nodes": 0}, "nodes"), ({"rule": "simpson"}, "rule"), ({"batch_size": 0}, "batch")):
        with pytest.raises(sj.UserError, match=words):
            sj.attribute_inputs(*base, **arguments)


def test_an_empty_trace(base):
    bundle, _ = base
    trace = Trace(np.asarray([1, 2], np.int32), np.asarray([1, 2, 299, 299], np.int32), (), 299)
    ours = sj.attribute_inputs(bundle, trace)
    assert ours.attributions.shape == (0, 4)
    assert ours.aggregate() == []
