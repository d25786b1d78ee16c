"""The replay of decoding steps chooses what decoding chose, and its numbers are those of a plain loop."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.decoding.sampling import entropy_temperature
from steerling_jax.decoding.trace import Commit, Trace
from steerling_jax.errors import UserError
from steerling_jax.explain.considered import ConsideredStep, considered
from steerling_jax.explain.given_text import given_trace
from steerling_jax.steering.plan import prepare_steering
from tests.decoding.test_generation import GUIDED, PUSHED, SAMPLED, SMALL, UNLEARNT, params_of, run
from tests.worlds.decoders import GOLDEN_DECODERS
from tests.worlds.golden_traces import golden_trace
from tests.worlds.paths import REPOSITORY
from tests.worlds.reference_decoder import canvas_logits

BASE = REPOSITORY / "tests" / "golden" / "base"
PARAMS = params_of(SMALL)
SMALL_BUNDLE = sj.Bundle(SMALL, PARAMS, None)  # pyright: ignore[reportArgumentType]
CLAMPED = sj.SteeringConfig((), intervene_known={4: 0.9}, clamp_offsets=(2, 9))
WAYS = {
    "sampled": (dataclasses.replace(SAMPLED, repetition_penalty=1.3, steps=6), None),
    "guided and pushed": (GUIDED, PUSHED),
    "guided and suppressed": (GUIDED, UNLEARNT),
    "clamped": (dataclasses.replace(SAMPLED, steps=6), CLAMPED),
}


def golden_cases() -> dict[str, tuple[sj.GenerationConfig, sj.SteeringConfig | None, Trace, int | None]]:
    """The golden texts of one length that have recorded commits: settings, steering, trace, end of turn."""
    arrays, cases = np.load(BASE / "generate.npz"), json.loads((BASE / "generate.json").read_text())
    found = {}
    for case in cases:
        if not case["commits"]:
            continue
        commits = [Commit(c["step"], *(tuple(c[key]) for key in Commit._fields[1:])) for c in case["commits"]]
        prompt, tokens = (arrays[f"{case['name']}.{key}"].reshape(-1).astype(np.int32) for key in ("prompt", "tokens"))
        steering = sj.SteeringConfig(**case["steering"]) if case["steering"] else None
        config = sj.GenerationConfig(**case["generation"] | {"seed": 0})
        found[case["name"]] = (config, steering, Trace(prompt, tokens, tuple(commits), -1), case["eot_id"])
    return found


@pytest.fixture(scope="module")
def base() -> sj.Bundle:
    return sj.load(BASE)


@pytest.mark.parametrize("name", golden_cases())
def test_every_golden_commit_is_chosen_again(base: sj.Bundle, name: str):
    """What the published package committed: positions, order, tokens."""
    config, steering, trace, eot = golden_cases()[name]
    if eot is not None:
        base = dataclasses.replace(base, config=dataclasses.replace(base.config, instruct=True, eot_id=eot))
    plan = prepare_steering(base.params, steering, config=base.config, compute=base.compute)
    trace = dataclasses.replace(trace, mask_id=base.config.mask_token_id, plan=plan)
    steps = considered(base, trace, config)
    assert [step.step for step in steps] == [commit.step for commit in trace.commits]
    assert [step.agrees for step in steps] == [True] * len(steps)


@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_plain_loop(way: str):
    """Candidates, probabilities, entropy and order from the logits of the whole canvas, in NumPy."""
    config, steering = WAYS[way]
    plan = prepare_steering(PARAMS, steering, config=SMALL, compute=SMALL_BUNDLE.compute)
    trace = run(PARAMS, [1, 2, 3, 4, 5], SMALL, config, seed=7, steering=steering)
    config = dataclasses.replace(config, seed=7)
    steps = considered(SMALL_BUNDLE, trace, config, top=4)
    assert all(step.agrees for step in steps)
    for step in (steps[0], steps[len(steps) // 2], steps[-1]):
        canvas, P = trace.snapshot(step.step), trace.prompt_length
        written = int((canvas[P:] != SMALL.mask_token_id).sum())
        raw = canvas_logits(PARAMS, canvas, P, written, plan, SMALL, config.cfg_scale).astype(np.float64)
        begin = P + written // 8 * 8
        masked = begin + np.flatnonzero(canvas[begin : begin + 8] == SMALL.mask_token_id)
        logits = raw - np.asarray(plan.suppression)
        penalty = np.where(logits > 0, 1 / config.repetition_penalty, config.repetition_penalty)
        logits = np.where(np.isin(np.arange(64), canvas), logits * penalty, logits)
        logits[:, [SMALL.eos_token_id, SMALL.mask_token_id, SMALL.pad_token_id]] = -np.inf
        drawn, plain = (np.exp(x - x.max(axis=1, keepdims=True)) for x in (logits, raw))
        drawn, plain = (x / x.sum(axis=1, keepdims=True) for x in (drawn, plain))
        assert [one.position for one in step.positions] == masked.tolist()
        for one in step.positions:
            p = drawn[one.position]
            best = np.argsort(-p, kind="stable")[:4]
            np.testing.assert_allclose([c.probability for c in one.candidates], p[best], atol=1e-5)
            np.testing.assert_allclose(
                [c.raw_probability for c in one.candidates],
                [plain[one.position, c.token_id] for c in one.candidates],
                atol=1e-5,
            )
            np.testing.assert_allclose([p[c.token_id] for c in one.candidates], p[best], atol=1e-5)
            assert one.confidence == pytest.approx(p.max(), abs=1e-5)
            assert one.entropy == pytest.approx(-(p[p > 0] * np.log2(p[p > 0])).sum(), abs=1e-4)
            if config.use_entropy_sampling:
                expected = float(entropy_temperature(jax.numpy.asarray(logits[one.position]), config.top_p))
                assert one.temperature == pytest.approx(expected, abs=1e-3)
            else:
                assert one.temperature == pytest.approx(0.9)
        confidence = drawn.max(axis=1)[list(step.order)]
        assert (np.diff(confidence) <= 1e-5).all(), "most confident first"


@pytest.mark.parametrize("top_p", [0.1, 0.9])
def test_temperatures_of_a_large_vocabulary(top_p: float):
    """A nucleus of few tokens is found without sorting the vocabulary, one of many with it."""
    large = dataclasses.replace(SMALL, vocab_size=600)
    params = params_of(large)
    config = sj.GenerationConfig(max_new_tokens=8, top_p=top_p, repetition_penalty=1.0)
    trace = run(params, [1, 2, 3], large, config, seed=7)
    bundle = sj.Bundle(large, params, None)  # pyright: ignore[reportArgumentType]
    steps = considered(bundle, trace, dataclasses.replace(config, seed=7))
    plan = prepare_steering(params, None, config=large, compute=bundle.compute)
    sizes = []
    for step in (steps[0], steps[3]):
        logits = np.array(canvas_logits(params, trace.snapshot(step.step), 3, step.step, plan, large))
        logits[:, [large.eos_token_id, large.mask_token_id, large.pad_token_id]] = -np.inf
        for one in step.positions:
            row = logits[one.position]
            probabilities = np.sort(np.exp(row - row.max()) / np.exp(row - row.max()).sum())[::-1]
            sizes.append(int((np.cumsum(probabilities) <= top_p).sum()) + 1)
            expected = float(entropy_temperature(jax.numpy.asarray(row), top_p))
            assert one.temperature == pytest.approx(expected, abs=1e-4)
    assert max(sizes) < 256 if top_p == 0.1 else min(sizes) > 256


def test_texts_of_other_lengths_compile_nothing_new(caplog: pytest.LogCaptureFixture):
    """Canvases are padded to a few lengths. Attention does not see the padding, also within the last block."""

    def compiled(prompt: list[int]) -> bool:
        trace = run(PARAMS, prompt, SMALL, SAMPLED, seed=7)
        trace = dataclasses.replace(trace, pieces=("",) * len(trace.tokens))
        caplog.clear()
        considered(SMALL_BUNDLE, trace, SAMPLED, top=3)
        last = len(trace.tokens) - 1
        found = sj.attribute_inputs(SMALL_BUNDLE, trace, nodes=1, positions=[last], batch_size=3)
        assert found.path_logits[0] == pytest.approx(found.target_logits[0], abs=1e-4)
        return any(f"Compiling jit({name})" in caplog.text for name in ("compiled_hidden", "summed_gradients"))

    with jax.log_compiles():
        assert compiled([1, 2])  # no other test has passes of 3 rows
        assert not compiled([1, 2, 3, 4, 5, 6])


def test_other_settings_than_the_texts_disagree():
    """The penalty decides about the order and the tokens, so the replay needs the text's own."""
    config = dataclasses.replace(SAMPLED, repetition_penalty=1.3)
    trace = run(PARAMS, [1, 2, 3, 4, 5], SMALL, config, seed=7)
    plain = considered(SMALL_BUNDLE, trace, dataclasses.replace(config, repetition_penalty=1.0, seed=7))
    assert not all(step.agrees for step in plain)
    other = considered(SMALL_BUNDLE, trace, dataclasses.replace(config, seed=8))
    assert not all(step.agrees for step in other), "another seed draws other tokens"
    unseeded = considered(SMALL_BUNDLE, trace, config)
    assert all(step.agrees for step in unseeded), "without a seed only the positions are compared"
    assert considered(SMALL_BUNDLE, trace, config, [3])[0].order == unseeded[3].order


def test_tokens_of_an_autoregressive_model():
    bundle = sj.load(GOLDEN_DECODERS / "gemma2")
    config = sj.GenerationConfig(max_new_tokens=6, seed=1, repetition_penalty=1.2)
    trace = sj.generate(bundle, list(range(5, 13)), config).trace
    steps = considered(bundle, trace, config)
    assert [step.agrees for step in steps] == [True] * 6
    whole = np.asarray(sj.forward(bundle, trace.tokens).logits[0], np.float64)
    for step, (_, position, *_) in zip(steps, trace.flat(), strict=True):
        assert step.order == (position,)
        logits = whole[position - 1]
        plain = np.exp(logits) / np.exp(logits).sum()
        (one,) = step.positions
        for candidate in one.candidates:
            assert candidate.raw_probability == pytest.approx(plain[candidate.token_id], abs=1e-5)
        seen = np.isin(np.arange(len(logits)), trace.tokens[:position])
        logits = np.where(seen, np.where(logits > 0, logits / 1.2, logits * 1.2), logits)
        assert one.confidence == pytest.approx((np.exp(logits) / np.exp(logits).sum()).max(), abs=1e-5)
        assert one.temperature == 1.0
    assert not all(step.agrees for step in considered(bundle, trace, dataclasses.replace(config, seed=2)))


def test_a_given_text(base: sj.Bundle):
    trace = given_trace(base, [1, 2, 3], list(range(4, 25)))
    steps = considered(base, trace, None, [0, 17])
    assert [step.agrees for step in steps] == [None, None]
    assert [one.position for one in steps[1].positions] == [20, 21, 22, 23], "the text ends within its second block"
    logits = np.asarray(sj.forward(base, trace.snapshot(17)).logits[0, 20], np.float64)
    expected = np.exp(logits - np.logaddexp.reduce(logits))
    first: ConsideredStep = steps[1]
    for candidate in first.positions[0].candidates:
        assert candidate.raw_probability == pytest.approx(expected[candidate.token_id], abs=1e-5)


def test_invalid_arguments_and_cancellation(base: sj.Bundle, golden):
    trace = golden_trace(np.load(golden / "base" / "attribution.npz"), base.config.mask_token_id)
    length = len(trace.tokens) - trace.prompt_length
    config = sj.GenerationConfig(max_new_tokens=length)
    with pytest.raises(UserError, match="No token was committed in step 999"):
        considered(base, trace, config, [999])
    with pytest.raises(UserError, match="top is 0"):
        considered(base, trace, config, top=0)
    with pytest.raises(UserError, match=f"of a canvas of {length + 16} tokens"):
        considered(base, trace, sj.GenerationConfig(max_new_tokens=length + 16))
    with pytest.raises(UserError, match="of another model"):
        considered(base, dataclasses.replace(trace, mask_id=3), config)
    reports = []

    def cancel(stage: str, done: int, total: int) -> None:
        reports.append((stage, done, total))
        if done:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        considered(base, trace, config, progress=cancel)
    assert [done for _, done, _ in reports] == [0, 8], "before every call of 8 steps"
