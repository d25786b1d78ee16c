"""A text that was stopped can be checked, recorded and explained as far as it was written."""

from __future__ import annotations

import json

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.decoding.generation import request_of, stopped_generation
from steerling_jax.decoding.request import Committed
from steerling_jax.decoding.trace import Commit
from steerling_jax.decoding.trace_record import check, from_plain, origin_of, record_of, restore, to_plain
from tests.worlds.decoders import GOLDEN_DECODERS
from tests.worlds.paths import REPOSITORY

PUSHED = sj.SteeringConfig.injection([3, 5], mai_lm_target=2.0, inject_layer=1, cutoff_tokens=11)
DIFFUSION = sj.Prompt([1, 2, 3], sj.GenerationConfig(max_new_tokens=32, seed=4, cfg_scale=0.5), PUSHED)
TOKENS = sj.Prompt(list(range(5, 13)), sj.GenerationConfig(max_new_tokens=6, seed=1))


def commits_so_far(bundle: sj.Bundle, prompt: sj.Prompt, count: int) -> list[Commit]:
    """The commits of a text that is stopped after `count` of them."""
    commits: list[Commit] = []
    for event in sj.stream(bundle, prompt.text_or_ids, prompt.config, prompt.steering, steps=1):
        if isinstance(event, Committed):
            commits += event.commits
        if len(commits) >= count:
            return commits
    raise AssertionError("the text ended before it was stopped")


@pytest.mark.parametrize(
    ("model", "prompt", "count"),
    [
        (REPOSITORY / "tests" / "golden" / "base", DIFFUSION, 20),  # within the second block
        (GOLDEN_DECODERS / "gemma2", TOKENS, 4),
    ],
)
def test_a_stopped_text_is_the_beginning_of_the_whole_one(model, prompt: sj.Prompt, count: int):
    bundle = sj.load(model)
    commits = commits_so_far(bundle, prompt, count)
    request = request_of(bundle, prompt)
    stopped = stopped_generation(bundle, request, commits)
    whole = sj.generate(bundle, prompt.text_or_ids, prompt.config, prompt.steering)
    assert [one[:3] for one in stopped.trace.commits] == [one[:3] for one in whole.trace.commits[:count]]
    assert stopped.generated_tokens == count
    stopped.trace.check(bundle.config)

    record = record_of(bundle, origin_of(bundle), prompt, stopped)
    again = from_plain(json.loads(json.dumps(to_plain(record))), "The text")
    check(again, bundle)
    restored = restore(again, bundle)
    np.testing.assert_array_equal(restored.tokens, stopped.trace.tokens)
    assert restored.commits == stopped.trace.commits
    for step in (0, commits[-1].step):
        np.testing.assert_array_equal(restored.snapshot(step)[: len(stopped.tokens)], stopped.trace.snapshot(step))
    if isinstance(bundle.config, sj.ModelConfig):
        ours, theirs = (sj.concept_contributions(bundle, trace) for trace in (restored, whole.trace))
        assert len(ours) == count
        np.testing.assert_array_equal(ours.known_ids, theirs.known_ids[:count])
        for name in ("known_contributions", "discovered_contributions", "epsilon", "target_logits"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name)[:count], rtol=0, atol=2e-4)
    inputs, all_inputs = (
        sj.attribute_inputs(bundle, trace, positions=[commits[0].positions[0]], nodes=1)
        for trace in (restored, whole.trace)
    )
    np.testing.assert_allclose(
        inputs.attributions[0], all_inputs.attributions[0, : len(restored.tokens)], rtol=0, atol=2e-4
    )


def test_nothing_written_and_nothing_missing():
    bundle = sj.load(REPOSITORY / "tests" / "golden" / "base")
    request = request_of(bundle, DIFFUSION)
    with pytest.raises(sj.UserError, match="stopped before its first token"):
        stopped_generation(bundle, request, [])
    whole = sj.generate(bundle, DIFFUSION.text_or_ids, DIFFUSION.config, DIFFUSION.steering)
    stopped = stopped_generation(bundle, request, whole.trace.commits)
    np.testing.assert_array_equal(stopped.tokens, whole.tokens)
    assert stopped.text == whole.text
