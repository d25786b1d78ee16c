"""Input attributions equal the golden ones, report their completeness, and are 0 where attention cannot reach."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
from flax import struct

import steerling_jax as sj
from steerling_jax.decoding.trace import Trace
from steerling_jax.explain.inputs.integrated_gradients import quadrature
from steerling_jax.explain.inputs.record import Tolerance
from steerling_jax.explain.inputs.targets import ConceptActivation, TokenContrast, TokenLogit
from tests.worlds.golden_traces import FAMILIES, golden_trace


@pytest.fixture(scope="module")
def base(golden):
    bundle = sj.load(golden / "base")
    case = np.load(golden / "base" / "attribution.npz")
    return bundle, golden_trace(case, bundle.config.mask_token_id)


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_attributions(golden, family):
    bundle = sj.load(golden / family)
    case = np.load(golden / family / "attribution.npz")
    published = json.loads((golden / family / "attribution.json").read_text())
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
        for entry, expected in zip(ranking, published[name], strict=False):
            assert entry.input_position == expected["input_position"]
            assert entry.input_token_id == expected["input_token_id"]
            assert entry.score == pytest.approx(expected["score"], abs=1e-5)


def test_completeness_improves_with_nodes(base):
    """The sum of the attributions approaches the difference of the logits, with Gauss–Legendre faster than Riemann."""
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
    """The canvas is too short to be cut, so this shows that later blocks cannot be attended to."""
    bundle, trace = base
    ours = sj.attribute_inputs(bundle, trace, nodes=2)
    steps = [step for step, *_ in trace.flat()]
    for row, (position, step) in enumerate(zip(ours.target_positions, steps, strict=True)):
        masked = trace.snapshot(step) == trace.mask_id
        assert not ours.attributions[row, masked].any()
        assert not ours.attributions[row, (position // 16 + 1) * 16 :].any()
        assert ours.attributions[row, :16].any()


def test_cut_canvases_do_not_matter(base):
    """Of a canvas of 92 tokens, targets before position 64 are explained on 64 of them, with the same values."""
    bundle, _ = base
    prompt = (np.arange(60) % 200 + 5).tolist()
    trace = sj.generate(bundle, prompt, sj.GenerationConfig(max_new_tokens=32, seed=1)).trace
    positions = [61, 63, 64, 90]
    ours = sj.attribute_inputs(bundle, trace, positions=positions)
    assert ours.converged.all()  # the gradients' sum is the difference of the values
    for row, order in enumerate(ours.target_orders):
        snapshot = trace.snapshot(trace.commits[order].step)
        logits = sj.forward(bundle, snapshot).logits[0, positions[row]]
        assert ours.path_logits[row] == pytest.approx(float(logits[ours.target_token_ids[row]]), abs=1e-4)
        assert not ours.attributions[row, (positions[row] // 16 + 1) * 16 :].any()


def test_batch_sizes_do_not_matter(base):
    """Passes are filled with nodes of any target, in one call or, with one row a pass, in several."""
    bundle, trace = base
    whole = sj.attribute_inputs(bundle, trace, nodes=80, sample=4)
    parts = sj.attribute_inputs(bundle, trace, nodes=80, sample=4, batch_size=1)
    np.testing.assert_allclose(parts.attributions, whole.attributions, rtol=0, atol=2e-5)
    np.testing.assert_allclose(parts.path_logits, whole.path_logits, atol=1e-5)


def test_progress_after_every_pass_of_targets_which_can_cancel(base):
    bundle, trace = base
    reports: list[tuple[str, int, int]] = []
    ours = sj.attribute_inputs(bundle, trace, nodes=2, progress=lambda *report: reports.append(report))
    n = len(ours.targets)
    assert reports == [("2 nodes", min(done, n), n) for done in range(0, n + 8, 8)]
    plain = sj.attribute_inputs(bundle, trace, nodes=2)
    np.testing.assert_allclose(ours.attributions, plain.attributions, rtol=0, atol=1e-5)

    def cancel(stage: str, done: int, total: int) -> None:
        reports.append((stage, done, total))
        if done == 8:
            raise InterruptedError

    reports.clear()
    with pytest.raises(InterruptedError):
        sj.attribute_inputs(bundle, trace, nodes=2, progress=cancel)
    assert [done for _, done, _ in reports] == [0, 8]


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


def test_nodes_are_added_until_the_error_is_small(base):
    """Targets within the tolerance stop; the others get more nodes, and those that never converge are reported."""
    bundle, trace = base
    error = np.abs(sj.attribute_inputs(bundle, trace, nodes=8).completeness_error)
    tolerance = Tolerance(relative=0.0, absolute=float(np.median(error)), most_nodes=32)
    ours = sj.attribute_inputs(bundle, trace, tolerance=tolerance)
    eight = sj.attribute_inputs(bundle, trace, nodes=8, tolerance=tolerance)
    assert set(ours.nodes.tolist()) <= {8, 8 + 16, 8 + 16 + 32}
    assert eight.converged.sum() == 8 < ours.converged.sum()
    np.testing.assert_array_equal(ours.nodes == 8, eight.converged)
    np.testing.assert_array_equal(np.abs(ours.completeness_error) <= tolerance.absolute, ours.converged)
    np.testing.assert_allclose(ours.attributions[eight.converged], eight.attributions[eight.converged], atol=2e-5)
    assert eight.unconverged is not None
    assert "8 of 16 targets are outside the tolerance after 8 nodes" in eight.unconverged
    loose = sj.attribute_inputs(bundle, trace, tolerance=Tolerance(relative=10.0, most_nodes=2))
    assert set(loose.nodes.tolist()) == {2}
    assert loose.unconverged is None


def test_selection_of_commits(base):
    bundle, trace = base
    whole = sj.attribute_inputs(bundle, trace, nodes=2)
    where = whole.target_positions.tolist()
    start, end = min(where) + 3, max(where) - 2
    inside = [i for i, position in enumerate(where) if start <= position < end]
    chosen = [where[5], where[2], where[5]]
    cases: tuple[tuple[dict[str, Any], list[int]], ...] = (
        ({"span": (start, end)}, inside),
        ({"positions": chosen}, [5, 2, 5]),
        ({"sample": 4}, [0, 5, 10, 15]),
        ({"span": (start, end), "sample": 1}, inside[:1]),
    )
    for arguments, rows in cases:
        part = sj.attribute_inputs(bundle, trace, nodes=2, **arguments)
        assert part.target_orders.tolist() == whole.target_orders[rows].tolist()
        np.testing.assert_allclose(part.attributions, whole.attributions[rows], rtol=0, atol=2e-5)


def test_a_span_is_the_sum_of_its_tokens(base):
    bundle, trace = base
    ours = sj.attribute_inputs(bundle, trace, nodes=2)
    start = int(ours.target_positions.min())
    chunk = ours.of_span(start, start + 4)
    rows = (ours.target_positions >= start) & (ours.target_positions < start + 4)
    assert chunk.tokens == rows.sum() == 4
    np.testing.assert_allclose(chunk.attributions, ours.attributions[rows].sum(axis=0))
    assert chunk.attributions.sum() - (chunk.path - chunk.baseline) == pytest.approx(chunk.completeness_error, abs=1e-4)
    with pytest.raises(sj.UserError, match="was explained; give a span"):
        ours.of_span(0, 1)


def test_more_nodes_compile_nothing_new(base, caplog):
    """The number of nodes is an argument of the compiled program, so its memory does not depend on it either."""
    bundle, trace = base

    def compiled(nodes: int) -> bool:
        caplog.clear()
        sj.attribute_inputs(bundle, trace, nodes=nodes, sample=2, batch_size=5)
        return "Compiling jit(summed_gradients)" in caplog.text

    with jax.log_compiles():
        assert compiled(1)  # no other test has passes of 5 rows
        assert not any(compiled(nodes) for nodes in (3, 40, 80))


def test_targets_of_two_classes_are_two_programs(base):
    """JAX compares the structures of two dataclasses with the same fields as equal, and may reuse the wrong program."""

    @struct.dataclass
    class Twice(TokenLogit):
        def value(self, params, rows, tokens, config, compute):
            return 2 * super().value(params, rows, tokens, config, compute)

    bundle, trace = base
    for method in ("integrated-gradients", "embedding-similarity"):
        once = sj.attribute_inputs(bundle, trace, method=method, nodes=1, sample=1, target=TokenLogit())
        twice = sj.attribute_inputs(bundle, trace, method=method, nodes=1, sample=1, target=Twice())
        np.testing.assert_allclose(twice.path_logits, 2 * once.path_logits, rtol=1e-5)
        np.testing.assert_allclose(twice.attributions, 2 * once.attributions, rtol=1e-5, atol=1e-6)


def test_invalid_arguments_raise_a_sentence(base):
    bundle, trace = base
    last = len(trace.tokens)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"nodes": 0}, "nodes is 0"),
        ({"rule": "simpson"}, "rule is 'simpson'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"method": "guess"}, "method is 'guess'"),
        ({"span": (0, last)}, "is not inside the generated text"),
        ({"span": (last - 1, last + 1)}, "is not inside the generated text"),
        ({"span": (last - 1, last - 1)}, "is not inside the generated text"),
        ({"positions": [0]}, "No token was committed at position 0"),
        ({"positions": [last - 1], "span": (last - 1, last)}, "Both span and positions"),
        ({"sample": 0}, "sample is 0"),
        ({"target": TokenContrast(300)}, "other token is 300"),
        ({"target": ConceptActivation(100)}, "known concepts are 0 to 99"),
        ({"target": ConceptActivation(-1, "discovered")}, "discovered concepts are 0 to"),
        ({"target": [TokenContrast(1)]}, "needs a list of positions"),
    )
    for arguments, words in cases:
        with pytest.raises(sj.UserError, match=words):
            sj.attribute_inputs(bundle, trace, **arguments)
    wrong: dict[str, Any]
    for wrong in ({"relative": -1.0}, {"absolute": float("nan")}, {"most_nodes": 0}):
        with pytest.raises(sj.UserError, match=next(iter(wrong))):
            Tolerance(**wrong)


def test_traces_of_another_model_are_rejected(base):
    bundle, trace = base
    wide = np.zeros((16, 32), np.float32)
    for change, words in (
        ({"mask_id": 298}, "mask id is 298"),
        ({"prompt": trace.prompt + 300}, "not in the vocabulary of 300"),
        ({"tokens": np.zeros(300, np.int32)}, "canvas of 300 is longer than 256"),
        ({"hidden": wide}, "hidden rows have the width 32"),
        ({"hidden": np.zeros((3, 64), np.float32)}, "one hidden row for each commit"),
        ({"commits": trace.commits * 2}, "not single positions"),
    ):
        other = dataclasses.replace(trace, **change)
        for explain in (sj.attribute_inputs, sj.concept_contributions):
            with pytest.raises(sj.UserError, match=words):
                explain(bundle, other)


def test_weights_that_are_not_finite_are_rejected(base):
    bundle, trace = base
    norm = {"weight": bundle.params["ln_f"]["weight"].at[3].set(np.nan)}
    broken = dataclasses.replace(bundle, params={**bundle.params, "ln_f": norm})
    for explain in (sj.attribute_inputs, sj.concept_contributions):
        with pytest.raises(sj.UserError, match="not a finite number"):
            explain(broken, trace)


def test_an_empty_generation(base):
    bundle, _ = base
    trace = Trace(np.asarray([1, 2], np.int32), np.asarray([1, 2, 299, 299], np.int32), (), 299)
    with pytest.raises(sj.UserError, match="The generation is empty"):
        sj.attribute_inputs(bundle, trace)
