"""Autoregressive generation: cached and batched it is a plain loop without a cache, whatever else is in the batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.decoding.decoder import compiled_programs, decoder_of
from steerling_jax.decoding.generation import request_of
from steerling_jax.decoding.policies import Greedy, MostConfident, Nucleus, Policies, Sample, StepView
from steerling_jax.decoding.request import BlockDone, Committed
from steerling_jax.errors import UserError
from steerling_jax.models.edits import LayerEdit, from_layer, inject, project_out
from tests.worlds.decoders import GOLDEN_DECODERS
from tests.worlds.token_reference import continue_plainly

LENGTH = 128  # to which the plain loop pads every text
LENGTHS = ((1, 7), (2, 12), (19, 5), (81, 9), (17, 3))  # of prompts, and of their continuations
HEATED: dict[str, Any] = {"temperature": 1.3, "top_k": 20, "top_p": 0.9}


@pytest.fixture(scope="module")
def llama() -> sj.Bundle:
    return sj.load(GOLDEN_DECODERS / "llama")


def prompts(bundle: sj.Bundle) -> list[list[int]]:
    draws = np.random.default_rng(0)
    return [draws.integers(0, bundle.config.vocab_size, length).tolist() for length, _ in LENGTHS]


def written(generation: sj.Generation) -> list[int]:
    return generation.tokens[generation.trace.prompt_length :].tolist()


# Full attention, sliding windows, and a recurrent state with a convolution.
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_5"])
def test_greedy_texts_of_any_lengths_in_one_batch_are_the_plain_loops(family: str):
    """Five texts through three rows, so that rows join and leave while others go on."""
    bundle = sj.load(GOLDEN_DECODERS / family)
    texts = [(prompt, count) for prompt, (_, count) in zip(prompts(bundle), LENGTHS)]
    cases = [sj.Prompt(prompt, sj.GenerationConfig(max_new_tokens=count, temperature=0.0)) for prompt, count in texts]
    results = dict(sj.generate_many(bundle, cases, rows=3))
    for number, (prompt, count) in enumerate(texts):
        tokens, logits = continue_plainly(bundle, prompt, count, length=LENGTH)
        assert written(results[number]) == tokens
        found = [logit for *_, logit in results[number].trace.flat()]
        np.testing.assert_allclose(found, logits, atol=2e-3 if family == "qwen3_5" else 1e-4)


def test_sampled_texts_are_the_plain_loops_and_depend_on_their_seed_alone(llama):
    config = sj.GenerationConfig(max_new_tokens=12, repetition_penalty=1.2, **HEATED)
    prompt = prompts(llama)[2]
    cases = [sj.Prompt(prompt, dataclasses.replace(config, seed=seed)) for seed in (3, 4, 3)]
    texts = {number: written(result) for number, result in sj.generate_many(llama, cases, rows=3)}
    alone = sj.generate(llama, prompt, dataclasses.replace(config, seed=3))
    assert written(alone) == texts[0] == texts[2] != texts[1]
    expected, _ = continue_plainly(llama, prompt, 12, length=LENGTH, seed=3, penalty=1.2, **HEATED)
    assert texts[0] == expected


def test_fields_that_are_not_given_sample_from_the_models_own_distribution(llama):
    """The published defaults, entropy sampling and a penalty of 1.1, are those of a Steerling model."""
    prompt = prompts(llama)[1]
    result = sj.generate(llama, prompt, sj.GenerationConfig(max_new_tokens=10, seed=5))
    assert written(result) == continue_plainly(llama, prompt, 10, length=LENGTH, seed=5, temperature=1.0)[0]
    assert sj.GenerationConfig().temperature == 1.2
    given = sj.GenerationConfig(temperature=1.2, top_p=0.8)
    plain = dataclasses.replace(given, seed=1).plain(256, 10)
    assert (plain.temperature, plain.top_p, plain.repetition_penalty) == (1.2, 0.8, 1.0)
    assert (plain.use_entropy_sampling, plain.max_new_tokens, plain.seed) == (False, 246, 1)
    assert sj.GenerationConfig(2000).plain(256, 10).max_new_tokens == 2000  # given, so it is an error later


def test_drawing_without_sorting_is_the_nucleus_of_everything():
    logits = 3 * jax.random.normal(jax.random.key(0), (1, 50))
    for position in range(20):
        one = jnp.zeros(1, jnp.int32)
        view = StepView(logits, one == 0, one + position, jnp.zeros(50, jnp.int32), one[0], jnp.uint32(7), one)
        assert int(Sample(0.7)(view)[0]) == int(Nucleus(0.7, 1.0)(view)[0])


@pytest.mark.parametrize("kind", ["eos", "stop_tokens"])
def test_a_text_ends_with_an_id_that_ends_it(llama, kind: str):
    """The id is the last token and no part of the text."""
    prompt = prompts(llama)[2]
    tokens, _ = continue_plainly(llama, prompt, 20, length=LENGTH, seed=2, temperature=1.0)
    end = next(token for token in tokens[3:] if token not in tokens[:3])
    config = dataclasses.replace(llama.config, eos_token_ids=(63, end)) if kind == "eos" else llama.config
    settings = sj.GenerationConfig(max_new_tokens=20, seed=2, stop_tokens=(end,) if kind == "stop_tokens" else None)
    result = sj.generate(dataclasses.replace(llama, config=config), prompt, settings)
    count = tokens.index(end) + 1
    assert written(result) == tokens[:count]
    assert result.generated_tokens == count - 1
    assert result.text == " ".join(map(str, tokens[: count - 1]))
    assert result.trace.passes == count


def edits_of(bundle: sj.Bundle, generated_only: bool) -> tuple[LayerEdit, ...]:
    D, L = bundle.config.width, bundle.config.n_layers
    vector = 2 * jax.random.normal(jax.random.key(1), (1, 1, D))
    axis = jax.random.normal(jax.random.key(2), (1, D))
    axis = axis / jnp.linalg.norm(axis)
    edits = (inject(vector, layers=from_layer(2, L)), project_out(axis))
    return tuple(dataclasses.replace(edit, generated_only=generated_only) for edit in edits)


def test_edits_are_applied_at_all_positions_or_at_generated_tokens(llama):
    """In one decoder with a text without edits, which they do not change."""
    prompt, config = prompts(llama)[2], sj.GenerationConfig(max_new_tokens=8, temperature=0.0)
    everywhere, generated = edits_of(llama, False), edits_of(llama, True)
    cases = [sj.Prompt(prompt, config, edits=edits) for edits in ((), everywhere, generated)]
    texts = {number: written(result) for number, result in sj.generate_many(llama, cases, rows=3)}
    for number, edits in enumerate(((), everywhere, generated)):
        assert texts[number] == continue_plainly(llama, prompt, 8, length=LENGTH, edits=edits)[0]
    # The first token comes from the prompt alone, so edits of generated tokens cannot change it.
    assert texts[0][0] == texts[2][0]
    assert texts[0] != texts[1] != texts[2] != texts[0]
    assert written(sj.generate(llama, prompt, config, edits=everywhere)) == texts[1]


def test_a_stream_has_every_token_as_it_is_written(llama):
    config = sj.GenerationConfig(max_new_tokens=6, temperature=0.0)
    events: Any
    *events, last = sj.stream(llama, [5, 6, 7], config, steps=1)
    assert isinstance(last, sj.Generation)
    assert [type(event) for event in events] == [Committed] * 6 + [BlockDone]
    assert (events[6].number, events[6].blocks) == (1, 1)  # without diffusion a text is one block
    commits = [commit for event in events[:6] for commit in event.commits]
    assert tuple(commits) == events[6].commits == last.trace.commits
    assert [(commit.step, commit.positions) for commit in commits] == [(i, (3 + i,)) for i in range(6)]
    assert last.trace.snapshot(2).tolist() == [*last.tokens[:5].tolist(), *[last.trace.mask_id] * 4]


def test_a_cancelled_text_leaves_its_row_to_the_next_one(llama):
    config = sj.GenerationConfig(max_new_tokens=40, temperature=0.0)
    decoder = decoder_of(llama, rows=2)
    one, two, three = (decoder.submit(request_of(llama, sj.Prompt(ids, config))) for ids in prompts(llama)[:3])
    decoder.advance(4)
    assert (decoder.running, decoder.waiting) == (2, 1)
    decoder.cancel(one)
    texts = {}
    while decoder.busy:
        texts |= {ticket: event.tokens for ticket, event in decoder.advance() if isinstance(event, sj.Trace)}
    for ticket, ids in zip((two, three), prompts(llama)[1:3]):
        np.testing.assert_array_equal(texts[ticket], sj.generate(llama, ids, config).tokens)
    assert one not in texts


def test_texts_of_all_lengths_need_few_programs(llama):
    """Settings, lengths and seeds never cause a new program; rows come in powers of two, prompts in pieces."""
    draws = np.random.default_rng(1)

    def write(lengths: list[int]) -> None:
        cases = [
            sj.Prompt(
                draws.integers(0, 64, length).tolist(),
                sj.GenerationConfig(
                    max_new_tokens=3 + length % 4, temperature=0.5 + length / 100, top_p=0.9, seed=length
                ),
            )
            for length in lengths
        ]
        assert len(list(sj.generate_many(llama, cases, rows=4))) == len(lengths)

    before = compiled_programs()
    write([1, 9, 70, 100, 3, 50, 4])
    write([2, 8, 16, 17, 33, 64, 90, 101, 5])
    new = {name: count - before[name] for name, count in compiled_programs().items()}
    # Batches of 1, 2 and 4 rows, and pieces of 16 and 64 tokens: all texts fit in one size of cache.
    assert new["decode_tokens"] <= 3
    assert new["_read_piece"] <= 2
    assert sum(new.values()) <= 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": sj.GenerationConfig(steps=4)}, "steps is 4, but it has a meaning for diffusion"),
        ({"config": sj.GenerationConfig(cfg_scale=1.5)}, "cfg_scale is 1.5, but it has a meaning for diffusion"),
        ({"config": sj.GenerationConfig(max_new_tokens=255)}, "do not fit in the model's context of 256"),
        ({"config": sj.GenerationConfig(stop_tokens=(64,))}, "stop_tokens contains token id 64"),
        ({"steering": sj.SteeringConfig((1,), 3.0)}, "needs a model with concepts"),
        ({"drafts": 2}, "drafts are for diffusion models"),
        ({"policies": Policies(order=MostConfident())}, "an order of positions is for diffusion"),
        ({"edits": [inject(jnp.ones((1, 3, 32)))]}, r"edits\[0\].push has the shape"),
        ({"edits": [inject(jnp.ones((1, 1, 8)))]}, "but the model's width is 32"),
        ({"edits": [inject(jnp.ones((1, 1, 32)), from_layer(1, 5))]}, "has 5 entries, but the model has 4 layers"),
        ({"edits": [inject(jnp.ones((1, 1, 32)), where=jnp.ones((1, 2), bool))]}, "set generated_only"),
    ],
)
def test_what_has_no_meaning_is_refused_in_a_sentence(llama, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        sj.generate(llama, [1, 2], **options)


def test_policies_of_a_caller_choose_tokens(llama):
    config = sj.GenerationConfig(max_new_tokens=4, seed=1)
    found = sj.generate(llama, [1, 2], config, policies=Policies(choice=Greedy()))
    assert written(found) == continue_plainly(llama, [1, 2], 4, length=LENGTH)[0]
