"""Generation against the published package's golden runs, and against the plain uncached algorithm."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import steerling_jax as sj
from steerling_jax.decoding import decoder as decoding
from steerling_jax.decoding import lane
from steerling_jax.decoding.decoder import BlockDone
from steerling_jax.decoding.generation import generate, stream
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.text_ids import text_ids
from steerling_jax.decoding.trace import Trace
from steerling_jax.errors import UserError
from steerling_jax.infer.generation_request import parse_generation_request
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import unstack_layers
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.model import compiled_forward, compiled_hidden, init_params
from steerling_jax.steering.config import SteeringConfig
from tests.worlds.decoding import decode
from tests.worlds.reference_decoder import reference_decode
from tests.worlds.small_config import CONCEPT, SMALL

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [
    (path.parent.name, case["name"])
    for path in sorted(GOLDEN.glob("*/generate.json"))
    for case in json.loads(path.read_text(encoding="utf-8"))
]
GREEDY = GenerationConfig(max_new_tokens=16, temperature=0.0, use_entropy_sampling=False, repetition_penalty=1.0)
FLOAT32 = Compute()
NO_EPSILON = dataclasses.replace(SMALL, concept=dataclasses.replace(CONCEPT, use_epsilon_correction=False))


@pytest.fixture(scope="module")
def bundle() -> sj.Bundle:
    return sj.load(GOLDEN / "base")


def params_of(config: ModelConfig) -> dict[str, Any]:
    """Weights large enough that the model has opinions."""
    return jax.tree.map(lambda a: 4 * a if a.ndim > 2 else a, init_params(config, jax.random.key(0)))


def run(params, prompt, config, generation: GenerationConfig, seed=0, steering=None, compute=FLOAT32) -> Trace:
    *_, trace = decode(
        params, np.asarray(prompt), config=config, compute=compute, generation=generation, seed=seed, steering=steering
    )
    assert isinstance(trace, Trace)
    return trace


def events(commits) -> list[tuple]:
    return [(c.step, c.positions, c.token_ids) for c in commits]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_golden(family: str, name: str, monkeypatch: pytest.MonkeyPatch):
    if family != "base":  # one cache size, for fewer programs
        monkeypatch.setattr(lane, "cache_capacity", lambda blocks: 4)
    loaded = sj.load(GOLDEN / family)
    case = next(
        c for c in json.loads((GOLDEN / family / "generate.json").read_text(encoding="utf-8")) if c["name"] == name
    )
    arrays = np.load(GOLDEN / family / "generate.npz")
    if case["eot_id"] is not None:
        loaded = dataclasses.replace(
            loaded, config=dataclasses.replace(loaded.config, instruct=True, eot_id=case["eot_id"])
        )
    steering = SteeringConfig(**case["steering"]) if case["steering"] else None
    prompt = arrays[f"{name}.prompt"].reshape(-1).tolist()
    result = generate(loaded, prompt, GenerationConfig(**case["generation"]), steering)
    np.testing.assert_array_equal(result.tokens, arrays[f"{name}.tokens"].reshape(-1))
    assert result.generated_tokens == case["generated_tokens"]
    if case["commits"] is None:
        return
    theirs = case["commits"]
    assert events(result.trace.commits) == [(c["step"], tuple(c["positions"]), tuple(c["token_ids"])) for c in theirs]
    wanted = np.concatenate([c["target_logits"] for c in theirs])
    ours = [logit for *_, logit in result.trace.flat()]
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-5 + 2e-6 * np.abs(wanted).max())


CHANGES = st.fixed_dictionaries(
    {
        "steps": st.sampled_from([None, 8, 6, 48]),
        "top_p": st.sampled_from([0.8, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "stop_tokens": st.sampled_from([None, (5, 6, 7)]),
    }
)
# Three ways to run, so that few programs are compiled: everything that takes another program is in one of them.
SAMPLED = GenerationConfig(max_new_tokens=16, use_entropy_sampling=False, temperature=0.9)
GUIDED = GenerationConfig(max_new_tokens=16, cfg_scale=1.5)
PUSHED = SteeringConfig.injection([3, 5], mai_lm_target=2.0, inject_layer=1, cutoff_tokens=11)
UNLEARNT = SteeringConfig.injection_relu(4, [7], relu_strength=1.0)


def check_cached_equals_uncached(config: ModelConfig, generation: GenerationConfig, steering, length: int, seed: int):
    """Half of the prompts hold masks, which go stale when the injection ends."""
    params = params_of(config)
    prompt = np.random.default_rng(seed).integers(0, 59, length)
    if seed % 2:
        prompt[:2] = config.mask_token_id
    trace = run(params, prompt, config, generation, seed, steering)
    canvas, commits = reference_decode(params, prompt, config, generation, seed, steering)
    np.testing.assert_array_equal(trace.tokens, canvas)
    assert events(trace.commits) == events(commits)
    theirs = np.concatenate([c.target_logits for c in commits])
    np.testing.assert_allclose([logit for *_, logit in trace.flat()], theirs, rtol=0, atol=1e-4)


few = settings(max_examples=5, deadline=None, derandomize=True, database=None)
LENGTHS = st.sampled_from([5, 16])  # the first ends in a partial attention block, the second is aligned


@few
@given(length=LENGTHS, changed=CHANGES, seed=st.integers(0, 99))
def test_cached_equals_uncached(length: int, changed: dict, seed: int):
    check_cached_equals_uncached(SMALL, dataclasses.replace(SAMPLED, **changed), None, length, seed)


@few
@given(length=LENGTHS, changed=CHANGES, seed=st.integers(0, 99))
def test_cached_equals_uncached_where_logits_depend_on_the_heads(length: int, changed: dict, seed: int):
    check_cached_equals_uncached(NO_EPSILON, dataclasses.replace(SAMPLED, **changed), None, length, seed)


@few
@given(length=LENGTHS, changed=CHANGES, seed=st.integers(0, 99), steering=st.sampled_from([PUSHED, UNLEARNT]))
def test_cached_equals_uncached_guided_and_steered(length: int, changed: dict, seed: int, steering: SteeringConfig):
    check_cached_equals_uncached(SMALL, dataclasses.replace(GUIDED, **changed), steering, length, seed)


def test_faithful_rounding_equals_uncached_bfloat16():
    """In bfloat16 with faithful rounding the heads run, and the cached run is close to the whole-canvas one."""
    params = params_of(SMALL)
    compute = Compute(dtype="bfloat16", faithful_rounding=True)
    trace = run(params, [1, 2, 3], SMALL, GREEDY, compute=compute)
    for step, position, token, logit in list(trace.flat())[:4]:
        tokens = trace.snapshot(step)[None]
        full = np.asarray(compiled_forward(params, tokens, config=SMALL, compute=compute).logits[0, position])
        assert abs(full[token] - logit) < 0.1
        assert logit == np.float32(jax.numpy.bfloat16(logit))


def test_hidden_rows_are_those_of_the_committing_pass():
    params = params_of(SMALL)
    trace = run(params, [1, 2, 3, 4, 5], SMALL, GREEDY)
    assert trace.hidden is not None
    assert trace.hidden.shape == (16, 32)
    for row, (step, position, _, _) in zip(trace.hidden, trace.flat()):
        whole = compiled_hidden(params, trace.snapshot(step)[None], config=SMALL, compute=Compute())
        np.testing.assert_allclose(row, whole[0, position], rtol=0, atol=2e-5)


def test_same_seed_same_text_other_seed_other_text(bundle: sj.Bundle):
    config = GenerationConfig(max_new_tokens=16, seed=3)
    first, again = generate(bundle, [1, 2, 3], config), generate(bundle, [1, 2, 3], config)
    other = generate(bundle, [1, 2, 3], dataclasses.replace(config, seed=4))
    assert first.text == again.text
    assert first.text != other.text
    unseeded = generate(bundle, [1, 2, 3], dataclasses.replace(config, seed=None))
    assert generate(bundle, [1, 2, 3], dataclasses.replace(config, seed=unseeded.seed)).text == unseeded.text


def test_a_seeded_run_sampled_greedily_is_the_greedy_run(bundle: sj.Bundle):
    nucleus_of_one = dataclasses.replace(GREEDY, temperature=0.7, top_p=0.0, seed=5)
    assert generate(bundle, [9, 8], nucleus_of_one).text == generate(bundle, [9, 8], GREEDY).text


def test_stream_tells_of_each_block_and_ends_with_the_generation(bundle: sj.Bundle):
    seen = list(stream(bundle, [1, 2, 3], dataclasses.replace(GREEDY, max_new_tokens=32)))
    blocks = [event for event in seen if isinstance(event, BlockDone)]
    assert [(b.number, b.blocks) for b in blocks] == [(1, 2), (2, 2)]
    commits = [commit for b in blocks for commit in b.commits]
    assert tuple(commits) == seen[-1].trace.commits  # type: ignore[union-attr]
    np.testing.assert_array_equal(blocks[0].canvas[19:], bundle.config.mask_token_id)


def test_hidden_rows_are_left_out_on_request(bundle: sj.Bundle):
    assert generate(bundle, [1, 2, 3], GREEDY, record_hidden=False).trace.hidden is None


def test_text_is_cut_at_the_first_stop_or_end_of_turn():
    instruct = dataclasses.replace(SMALL, instruct=True, eot_id=58)
    assert text_ids([1, 63, 2, 59, 3, 58, 4], instruct) == [1, 2, 3]
    assert text_ids([1, 2, 3, 4], instruct, stop_tokens=[3]) == [1, 2]
    assert text_ids([1, 58], SMALL) == [1, 58]


def test_few_programs_serve_all_lengths_and_settings():
    """Prompt lengths, steps, temperatures, penalties, seeds: none compiles anything once its cache size is known."""
    config = dataclasses.replace(SMALL, norm_eps=2e-5)  # programs of its own
    params = unstack_layers(params_of(config))
    before = decoding.compiled_programs()
    lengths = (1, 7, 8, 9, 30)
    for length in lengths:
        for steps, penalty, temperature in ((None, 1.0, 0.5), (6, 1.2, 0.9)):
            generation = GenerationConfig(
                max_new_tokens=16,
                steps=steps,
                repetition_penalty=penalty,
                temperature=temperature,
                top_p=0.7,
                use_entropy_sampling=False,
            )
            run(params, np.arange(length), config, generation, seed=length)
    capacities = len({lane.cache_capacity((length + 7) // 8) for length in lengths})
    after = decoding.compiled_programs()
    grown = {name: after[name] - before[name] for name in after}
    assert grown["decode_rows"] <= capacities, grown
    assert grown["extend_row"] <= 2 * capacities, grown
    assert sum(grown.values()) <= 3 * capacities + 12 + 4 * capacities, grown
    assert len({lane.cache_capacity(n) for n in range(64)}) <= 20
    assert all(n <= lane.cache_capacity(n) <= max(1.25 * n, n + 2) for n in range(200))


def test_a_length_off_the_block_is_rounded_up_and_the_text_is_cut(bundle: sj.Bundle):
    config = GenerationConfig(max_new_tokens=20, seed=3)
    cut = generate(bundle, [1, 2, 3], config)
    whole = generate(bundle, [1, 2, 3], dataclasses.replace(config, max_new_tokens=32))
    np.testing.assert_array_equal(cut.tokens, whole.tokens)
    assert cut.trace.commits == whole.trace.commits
    assert (cut.generated_tokens, whole.generated_tokens) == (20, 32)
    assert cut.text == bundle.tokenizer.decode(whole.tokens[3:23].tolist())
    # The same request through the server's and the batch's parser.
    request = parse_generation_request({"max_tokens": 20, "seed": 3}, [1, 2, 3], bundle)
    writer = request.text_writer(bundle)
    writer.commit(whole.trace.commits)
    writer.end()
    assert request.prompt.config == config
    assert (writer.take(), writer.tokens) == (cut.text, 20)


@pytest.mark.parametrize(
    ("prompt", "changes", "words"),
    [
        ([], {}, "empty"),
        ("", {}, "empty"),
        ([1] * 250, {}, "context of 256"),
        ([1] * 300, {}, "context of 256"),
        ([1, 300], {}, "outside the vocabulary"),
        ([1, -1], {}, "outside the vocabulary"),
        ([1] * 200, {"max_new_tokens": 49}, "max_new_tokens, 49 in whole blocks of 16, do not fit"),
        ([1], {"max_new_tokens": 20, "steps": 5}, "multiple of the number of blocks, 2"),
        ([1], {"max_new_tokens": 32, "steps": 5}, "multiple of the number of blocks, 2"),
        ([1], {"stop_tokens": (400,)}, "stop_tokens"),
    ],
)
def test_bad_prompts_and_settings_are_told_in_a_sentence(bundle: sj.Bundle, prompt, changes, words):
    with pytest.raises(UserError, match=words):
        generate(bundle, prompt, dataclasses.replace(GREEDY, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"max_new_tokens": 0},
        {"steps": 0},
        {"temperature": -1.0},
        {"cfg_scale": -0.1},
        {"top_p": 1.1},
        {"repetition_penalty": 0.9},
        {"seed": -1},
        {"seed": 2**32},
        {"temperature": float("nan")},
    ],
)
def test_impossible_settings_are_named(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        GenerationConfig(**changes)


def test_steering_asks_for_concepts_that_exist(bundle: sj.Bundle):
    with pytest.raises(UserError, match="the known concepts of this model are 0 to 99"):
        generate(bundle, [1], GREEDY, SteeringConfig.injection(100))
    with pytest.raises(UserError, match="needs a model with known concepts"):
        generate(sj.load(GOLDEN / "backbone"), [1], GREEDY, SteeringConfig.injection(1))
    with pytest.raises(UserError, match="inject_alpha_schedule"):
        SteeringConfig(inject_alpha_schedule="later")  # type: ignore[arg-type]


def test_many_texts_are_a_list_in_their_order(bundle):
    """Of texts of different lengths, so that they are complete in another order; each is what `generate` writes."""
    prompts = [[1, 2, 3], [4] * 20, [5]]
    config, seeds = GenerationConfig(max_new_tokens=16, temperature=0.7), [3, 1, 2]
    made = sj.generate_many(bundle, prompts, config, seeds=seeds, rows=2)
    assert isinstance(made, list)
    alone = [generate(bundle, ids, dataclasses.replace(config, seed=seed)) for ids, seed in zip(prompts, seeds)]
    assert [one.tokens.tolist() for one in made] == [one.tokens.tolist() for one in alone]
    assert [one.seed for one in made] == seeds
    assert made[0].trace.hidden is not None
    (bare,) = sj.generate_many(bundle, [np.array(prompts[0])], config, seeds=[3], record_hidden=False)
    assert bare.trace.hidden is None
    shared = sj.generate_many(bundle, prompts[:1] * 2, dataclasses.replace(config, seed=9))
    assert [one.seed for one in shared] == [9, 9]
    assert sj.generate_many(bundle, [], config) == []


def test_prompts_with_settings_of_their_own_come_as_pairs_as_they_are_complete(bundle):
    prompts = [sj.Prompt([1, 2], GenerationConfig(max_new_tokens=16, seed=seed)) for seed in (1, 2)]
    found, streamed = (dict(function(bundle, iter(prompts))) for function in (sj.generate_many, sj.stream_many))
    assert {number: one.seed for number, one in found.items()} == {0: 1, 1: 2}
    assert {number: one.text for number, one in found.items()} == {number: one.text for number, one in streamed.items()}


def test_what_many_cannot_write(bundle):
    prompt, generate_many = sj.Prompt([1, 2], GREEDY), cast(Any, sj.generate_many)
    for arguments, options, words in (
        (("one text",), {}, "prompts is one text"),
        (([1, 2, 3],), {}, "sequences of token ids"),
        (([[1], [2]], GREEDY), {"seeds": [1]}, "1 seeds for 2 texts"),
        (([prompt], GREEDY), {}, "settings of their own"),
    ):
        with pytest.raises(UserError, match=words):
            generate_many(bundle, *arguments, **options)
    with pytest.raises(UserError, match="prompts contains"):
        list(generate_many(bundle, [prompt, "a text"]))
