"""Many requests at once: each text is its own, batches are few programs, and savings change nothing."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import steerling_jax as sj
from steerling_jax.decoding import decoder as decoding
from steerling_jax.decoding import lane
from steerling_jax.decoding.decoder import Decoder, Request
from steerling_jax.decoding.policies import ConfidentEnough, Nucleus, Policies, StepView
from steerling_jax.decoding.request import BlockDone, Committed
from steerling_jax.decoding.trace import Trace
from steerling_jax.steering.plan import SteeringPlan, prepare_steering
from tests.decoding.test_generation import FLOAT32, GOLDEN, GREEDY, PUSHED, SMALL, events, params_of, run
from tests.worlds.decoding import decode
from tests.worlds.reference_decoder import reference_decode

SAMPLED = sj.GenerationConfig(max_new_tokens=16, use_entropy_sampling=False, temperature=0.9)
PARAMS = params_of(SMALL)


@pytest.fixture(autouse=True)
def one_capacity(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """One cache size, for fewer programs to compile."""
    if "few_programs" not in request.node.name:
        monkeypatch.setattr(lane, "cache_capacity", lambda blocks: 8)


def plan(steering) -> SteeringPlan:
    return prepare_steering(PARAMS, steering, config=SMALL, compute=FLOAT32)


def requests() -> list[Request]:
    """Prompts of many lengths, some aligned, with their own lengths, steps, penalties, temperatures and seeds."""
    found = []
    for number, length in enumerate((3, 8, 21, 16, 5, 40, 1, 12, 30, 9)):
        config = dataclasses.replace(
            SAMPLED,
            max_new_tokens=8 * (1 + number % 4),
            steps=(1 + number % 4) * (8 if number % 3 else 3),
            temperature=0.5 + number / 10,
            repetition_penalty=1 + number / 20,
            use_entropy_sampling=number % 4 == 1,
            stop_tokens=(7, 8) if number == 6 else None,
        )
        prompt = np.random.default_rng(number).integers(0, 59, length)
        found.append(Request(prompt, config, seed=number, record_hidden=True))
    return found


def alone(request: Request) -> Trace:
    return run(PARAMS, request.prompt, SMALL, request.generation, request.seed, request.steering)


def drain(decoder: Decoder, wanted: list[Request], at_once: int = 100, steps: int | None = None) -> list[Trace]:
    """Submits all, no more than `at_once` unfinished, and gives their traces in order."""
    coming, tickets, traces = iter(enumerate(wanted)), {}, {}
    while len(traces) < len(wanted):
        for number, request in itertools.islice(coming, at_once - decoder.waiting - decoder.running):
            tickets[decoder.submit(request)] = number
        for ticket, event in decoder.advance(steps):
            if isinstance(event, Trace):
                traces[tickets[ticket]] = event
    return [traces[number] for number in range(len(wanted))]


def check_same(found: Trace, wanted: Trace) -> None:
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    assert events(found.commits) == events(wanted.commits)
    ours, theirs = ([logit for *_, logit in trace.flat()] for trace in (found, wanted))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert found.hidden is not None
    assert wanted.hidden is not None
    np.testing.assert_allclose(found.hidden, wanted.hidden, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def wanted() -> list[Trace]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lane, "cache_capacity", lambda blocks: 8)
        return [alone(request) for request in requests()]


@pytest.mark.parametrize(("rows", "at_once"), [(4, 100), (4, 3)])
def test_a_rows_text_does_not_depend_on_its_neighbours(rows: int, at_once: int, wanted: list[Trace]):
    decoder = Decoder(PARAMS, config=SMALL, compute=FLOAT32, rows=rows)
    for found, one in zip(drain(decoder, requests(), at_once), wanted):
        check_same(found, one)


def test_few_programs_serve_a_stream_of_requests():
    config = dataclasses.replace(SMALL, norm_eps=3e-5)  # programs of its own
    before = decoding.compiled_programs()
    decoder = Decoder(PARAMS, config=config, compute=FLOAT32, rows=2)
    found = drain(decoder, requests(), at_once=3)
    grown = {name: count - before[name] for name, count in decoding.compiled_programs().items()}
    sizes, capacities = 2, 3  # 1 and 2 rows; the cache of up to 7 blocks of 8
    assert grown["decode_rows"] <= sizes * capacities, grown
    assert grown["extend_row"] <= 2 * capacities, grown
    again = decoding.compiled_programs()
    drain(Decoder(PARAMS, config=config, compute=FLOAT32, rows=2), requests(), at_once=3)
    assert decoding.compiled_programs() == again
    roomy = Decoder(PARAMS, config=config, compute=FLOAT32, rows=2, room=72)  # all of them fit in its 8 blocks
    for one, same in zip(drain(roomy, requests(), at_once=3), found):
        np.testing.assert_array_equal(one.tokens, same.tokens)
    after = decoding.compiled_programs()
    assert after["decode_rows"] - again["decode_rows"] <= sizes
    assert after["widen"] == again["widen"]


def test_rows_are_shared_by_all_lanes_in_order_of_arrival():
    decoder = Decoder(PARAMS, config=SMALL, compute=FLOAT32, rows=2)
    sampled = requests()[1:4]
    greedy = [dataclasses.replace(one, generation=GREEDY) for one in sampled]  # a lane of their own
    tickets = [decoder.submit(one) for pair in zip(sampled, greedy) for one in pair]
    begun: dict[int, None] = {}
    while decoder.busy:
        begun |= dict.fromkeys(ticket for ticket, _ in decoder.advance(1))
        assert decoder.running <= 2
    assert sorted(begun) == tickets
    assert all(abs(place - tickets.index(ticket)) <= 1 for place, ticket in enumerate(begun)), begun


def test_every_commit_is_told_as_it_happens(wanted: list[Trace]):
    request = requests()[2]
    decoder = Decoder(PARAMS, config=SMALL, compute=FLOAT32, rows=1)
    decoder.submit(request)
    told, canvas = [], None
    while decoder.busy:
        for _, event in decoder.advance(1):
            if isinstance(event, Committed):
                told += event.commits
                canvas = event.canvas
            if isinstance(event, BlockDone):
                np.testing.assert_array_equal(event.canvas, canvas)
    assert events(told) == events(wanted[2].commits)
    assert all(len(commit.positions) <= 3 for commit in told)  # a step at a time: 8 tokens in 3 steps


def test_a_cancelled_request_leaves_the_others_alone(wanted: list[Trace]):
    decoder = Decoder(PARAMS, config=SMALL, compute=FLOAT32, rows=4)
    tickets = [decoder.submit(request) for request in requests()]
    found = {}
    decoder.cancel(tickets[9])  # waits
    decoder.advance(2)
    decoder.cancel(tickets[0])  # runs
    decoder.cancel(10**6)  # never was
    while decoder.busy:
        found |= {ticket: event for ticket, event in decoder.advance() if isinstance(event, Trace)}
    assert sorted(found) == tickets[1:9]
    for ticket, one in zip(tickets[1:9], wanted[1:9]):
        check_same(found[ticket], one)


def test_shared_prefixes_change_nothing_and_are_found(wanted: list[Trace]):
    decoder = Decoder(PARAMS, config=SMALL, compute=FLOAT32, rows=2, prefix_cache_bytes=2**20)
    long = requests()[5]
    longer = dataclasses.replace(long, prompt=np.concatenate([long.prompt, long.prompt[:5]]))
    plain = alone(longer)
    check_same(drain(decoder, [long])[0], wanted[5])
    assert decoder.prefixes.hits == 0
    check_same(drain(decoder, [long])[0], wanted[5])
    check_same(drain(decoder, [longer])[0], plain)
    assert decoder.prefixes.hits == 4 + 5  # blocks of 8 before the window of a prompt of 40, and of 45
    small = Decoder(PARAMS, config=SMALL, compute=FLOAT32, rows=2, prefix_cache_bytes=3 * 2 * 2 * 2 * 8 * 8 * 4)
    for found, one in zip(drain(small, requests()), wanted):
        check_same(found, one)
    assert 0 < small.prefixes.size <= small.prefixes.limit


def prompt_of(*blocks: str) -> Request:
    """A prompt of blocks of 8 tokens, one for each name, and three tokens more; one sampler block is generated."""
    short = dataclasses.replace(SAMPLED, max_new_tokens=8)
    tokens = [np.random.default_rng(ord(name)).integers(0, 59, 8) for name in blocks]
    return Request(np.concatenate([*tokens, [1, 2, 3]]), short, seed=3, record_hidden=True)


def test_equal_blocks_after_another_beginning_have_keys_and_values_of_their_own():
    """A block's keys and values depend on all tokens before it, not on its own or its neighbour's alone."""
    decoder = Decoder(PARAMS, config=SMALL, compute=FLOAT32, rows=1, prefix_cache_bytes=2**20)
    for blocks, hits in (("acd", 0), ("bca", 0), ("bcd", 2), ("cda", 0)):
        before, request = decoder.prefixes.hits, prompt_of(*blocks)
        check_same(drain(decoder, [request])[0], alone(request))
        assert decoder.prefixes.hits - before == hits, blocks


def test_blocks_after_one_that_was_dropped_are_not_used():
    two_blocks = 2 * 2 * 2 * 2 * 8 * 8 * 4
    decoder = Decoder(PARAMS, config=SMALL, compute=FLOAT32, rows=1, prefix_cache_bytes=two_blocks)
    wanted = alone(prompt_of(*"acd"))
    for _ in range(2):  # the second time the first block is not stored any more, and the others still are
        check_same(drain(decoder, [prompt_of(*"acd")])[0], wanted)
    assert decoder.prefixes.size == two_blocks
    assert decoder.prefixes.hits == 0


@pytest.mark.parametrize(("drafts", "rows"), [(2, 2), (4, 1)])
def test_drafts_change_nothing_but_the_number_of_passes(drafts: int, rows: int, wanted: list[Trace]):
    decoder = Decoder(PARAMS, config=SMALL, compute=FLOAT32, rows=rows)
    found = drain(decoder, [dataclasses.replace(request, drafts=drafts) for request in requests()])
    for one, other in zip(found, wanted):
        check_same(one, other)
    assert sum(trace.passes for trace in found) < sum(trace.passes for trace in wanted)


@pytest.mark.parametrize(("drafts", "rows"), [(1, 2), (3, 1)])
def test_guided_and_steered_rows_of_a_batch(drafts: int, rows: int):
    config = dataclasses.replace(SAMPLED, cfg_scale=1.5)
    wanted = [
        Request(request.prompt, config, request.seed, plan(steering), drafts=drafts)
        for request, steering in zip(requests(), (PUSHED, None, dataclasses.replace(PUSHED, where="prompt"), PUSHED))
    ]
    decoder = Decoder(PARAMS, config=SMALL, compute=FLOAT32, rows=rows, prefix_cache_bytes=2**20)
    for found, request in zip(drain(decoder, wanted), wanted):
        canvas, commits = reference_decode(PARAMS, request.prompt, SMALL, config, request.seed, request.steering)
        np.testing.assert_array_equal(found.tokens, canvas)
        assert events(found.commits) == events(commits)
        assert found.steering == (request.steering.labels if request.steering else ())


@pytest.mark.parametrize("epsilon", ["published", "frozen"])
def test_clamped_concepts(epsilon):
    steering = sj.SteeringConfig(
        intervene_known={3: 6.0, 9: 0.0}, intervene_unknown={5: 0.9}, clamp_offsets=(2, 11), epsilon=epsilon
    )
    prompt = np.arange(1, 12)
    found = run(PARAMS, prompt, SMALL, GREEDY, steering=steering)
    canvas, commits = reference_decode(PARAMS, prompt, SMALL, GREEDY, 0, steering)
    np.testing.assert_array_equal(found.tokens, canvas)
    assert events(found.commits) == events(commits)
    assert not np.array_equal(canvas, run(PARAMS, prompt, SMALL, GREEDY).tokens)


@struct.dataclass
class LeftToRight:
    def __call__(self, view: StepView) -> jnp.ndarray:
        return -view.position.astype(jnp.float32)


def test_a_policy_of_ones_own():
    *_, trace = decode(
        PARAMS,
        np.arange(5),
        config=SMALL,
        compute=FLOAT32,
        generation=SAMPLED,
        seed=1,
        policies=Policies(order=LeftToRight()),
        drafts=2,
    )
    assert isinstance(trace, Trace)
    positions = [position for _, position, _, _ in trace.flat()]
    assert positions == list(range(5, 21))
    canvas, _ = reference_decode(PARAMS, np.arange(5), SMALL, SAMPLED, 1, policies=Policies(order=LeftToRight()))
    np.testing.assert_array_equal(trace.tokens, canvas)


def test_committing_all_that_is_confident_takes_fewer_passes():
    def passes(threshold: float) -> tuple[int, Trace]:
        policies = Policies(schedule=ConfidentEnough(jnp.float32(threshold)))
        *_, trace = decode(
            PARAMS, np.arange(5), config=SMALL, compute=FLOAT32, generation=GREEDY, seed=1, policies=policies
        )
        assert isinstance(trace, Trace)
        return trace.passes, trace

    one_by_one, same = passes(1.1)
    np.testing.assert_array_equal(same.tokens, run(PARAMS, np.arange(5), SMALL, GREEDY).tokens)
    assert one_by_one == 16
    assert passes(0.0)[0] == 2  # a block at once
    some, trace = passes(0.07)
    assert 2 < some < 16
    canvas, _ = reference_decode(
        PARAMS, np.arange(5), SMALL, GREEDY, 1, policies=Policies(schedule=ConfidentEnough(jnp.float32(0.07)))
    )
    np.testing.assert_array_equal(trace.tokens, canvas)


def test_many_prompts_in_order_of_completion():
    bundle = sj.load(GOLDEN / "base")
    taken = []

    def prompts():
        for number in range(6):
            taken.append(number)
            yield sj.Prompt([1, 2, number], dataclasses.replace(GREEDY, max_new_tokens=16 * (1 + number % 2)))

    done = sj.generate_many(bundle, prompts(), rows=2)
    first, generation = next(done)
    assert taken == [0, 1]
    assert first == 0
    assert generation.text == sj.generate(bundle, [1, 2, 0], GREEDY).text
    assert sorted([first, *(number for number, _ in done)]) == list(range(6))


def test_numbers_of_other_types_do_not_reach_a_neighbour():
    whole, other = (Policies(choice=Nucleus(*numbers)) for numbers in ((1, 1), (0.9, 0.5)))
    wanted = [Request(np.arange(4), SAMPLED, 3, policies=policies) for policies in (whole, other)]
    decoder = Decoder(PARAMS, config=SMALL, compute=FLOAT32, rows=2)
    alone = drain(Decoder(PARAMS, config=SMALL, compute=FLOAT32, rows=2), wanted[1:])
    np.testing.assert_array_equal(drain(decoder, wanted)[1].tokens, alone[0].tokens)


@struct.dataclass
class SureEnough:
    """Ends the turn at a token that is likely enough: drafts see other logits than the true pass."""

    def __call__(self, view: StepView) -> jnp.ndarray:
        return jnp.max(view.logits, axis=-1) > 2.6


def test_drafts_are_exact_for_a_stop_that_looks_at_logits():
    lengths = set()
    for seed in range(4):
        prompt = np.random.default_rng(seed).integers(0, 59, 5)
        plain, drafted = (
            Request(prompt, SAMPLED, seed, policies=Policies(stop=SureEnough()), drafts=drafts) for drafts in (1, 3)
        )
        found = [drain(Decoder(PARAMS, config=SMALL, compute=FLOAT32, rows=1), [one])[0] for one in (plain, drafted)]
        np.testing.assert_array_equal(found[0].tokens, found[1].tokens)
        lengths.add(len(list(found[0].flat())))
    assert len(lengths) > 1, "the stop never came early"


def test_a_decoder_that_was_cleared_is_as_new(wanted: list[Trace]):
    decoder = Decoder(PARAMS, config=SMALL, compute=FLOAT32, rows=4)
    for request in requests():
        decoder.submit(request)
    decoder.advance(2)
    decoder.clear()
    assert not decoder.busy
    check_same(drain(decoder, requests()[:1])[0], wanted[0])


def test_bad_requests_are_told_at_once():
    decoder = Decoder(PARAMS, config=SMALL, compute=FLOAT32)
    with pytest.raises(sj.UserError, match="seed is 4294967296"):
        decoder.submit(Request(np.arange(4), SAMPLED, 2**32))
    with pytest.raises(sj.UserError, match="steps is -1"):
        decoder.advance(-1)
    wrong: dict[str, Any]
    for wrong in ({"mai_lm_target": 1e300}, {"cutoff_tokens": 1.5}, {"inject_layer": 1.5}):
        with pytest.raises(sj.UserError, match=next(iter(wrong))):
            sj.SteeringConfig((1,), **wrong)
    for wrong in ({"temperature": 1e300}, {"temperature": 1e-50}, {"max_new_tokens": 8.0}, {"seed": True}):
        with pytest.raises(sj.UserError, match=next(iter(wrong))):
            sj.GenerationConfig(**wrong)
    with pytest.raises(sj.UserError, match="drafts is 9"):
        decoder.submit(Request(np.arange(4), SAMPLED, 0, drafts=9))
    with pytest.raises(sj.UserError, match="rows is 0"):
        next(sj.generate_many(sj.load(GOLDEN / "base"), [], rows=0))
    assert not decoder.busy


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_a_steered_text_is_explained_as_it_was_written(guidance: float):
    bundle = sj.load(GOLDEN / "base")
    steering = [
        dataclasses.replace(sj.SteeringConfig.injection([3, 5], 2.0, inject_layer=1), cutoff_tokens=5),
        sj.SteeringConfig((7,), 1.0, where="prompt", inject_layer=1),
    ]
    config = dataclasses.replace(GREEDY, cfg_scale=guidance)
    trace = sj.generate(bundle, [1, 2, 3, 4], config, steering).trace
    inputs = sj.attribute_inputs(bundle, trace, nodes=1)
    np.testing.assert_allclose(inputs.path_logits, [logit for *_, logit in trace.flat()], rtol=0, atol=1e-4)
    plain = dataclasses.replace(trace, plan=None)
    assert np.abs(sj.attribute_inputs(bundle, plain, nodes=1).path_logits - inputs.path_logits).max() > 0.01
    told, again = (sj.concept_contributions(bundle, t) for t in (trace, dataclasses.replace(trace, hidden=None)))
    np.testing.assert_allclose(again.known_contributions, told.known_contributions, rtol=0, atol=1e-4)
    if not guidance:
        assert told.error.max() < 1e-4
