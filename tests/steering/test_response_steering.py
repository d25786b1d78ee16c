"""Steering towards a response: which concepts are read from it, where, and what is injected."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.models.steerling.model import compiled_forward
from steerling_jax.steering.response import mean_activations, response_steering

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def bundle() -> sj.Bundle:
    return sj.load(GOLDEN / "base")


def test_each_token_is_read_where_it_is_masked_after_clean_blocks(bundle: sj.Bundle):
    """Against one plain pass a block and turn: the text up to the block, and every second of its positions masked."""
    config = bundle.config
    L = config.diff_block_size
    tokens = np.random.default_rng(0).integers(0, 200, 2 * L + 5)
    total = np.zeros(100)
    for start in range(0, len(tokens), L):
        for turn in (0, 1):
            canvas = np.full(3 * L, config.mask_token_id)
            canvas[: min(start + L, len(tokens))] = tokens[: start + L]
            read = [p for p in range(start, min(start + L, len(tokens))) if (p + turn) % 2 == 0]
            canvas[read] = config.mask_token_id
            out = compiled_forward(bundle.params, jnp.asarray(canvas)[None], config=config, compute=bundle.compute)
            found = out.decomposition
            assert found.known_topk_logits is not None
            for p in read:
                ids = np.asarray(found.known_topk_indices[0, p])
                total[ids] += 1 / (1 + np.exp(-np.asarray(found.known_topk_logits[0, p])))
    np.testing.assert_allclose(mean_activations(bundle, tokens.tolist()), total / len(tokens), atol=2e-5)


def test_the_strongest_concepts_become_a_weighted_direction_in_the_prompt(bundle: sj.Bundle):
    text = [5, 9, 12, 40, 7]
    activations = mean_activations(bundle, text)
    one = response_steering(bundle, text, strength=3.0, top=4)
    assert one.concept_ids == tuple(np.argsort(-activations, kind="stable")[:4].tolist())
    assert one.weights == tuple(activations[list(one.concept_ids)].tolist())
    assert (one.where, one.mai_lm_target, one.inject_layer) == ("prompt", 3.0, 1)  # a quarter of four layers
    assert one.label.startswith(f"like the response at 3: concept {one.concept_ids[0]}, ")
    one.check(bundle.config)
    assert response_steering(bundle, text, layer=3).inject_layer == 3


def test_it_changes_the_text_from_the_first_token_on(bundle: sj.Bundle):
    greedy = sj.GenerationConfig(max_new_tokens=16, temperature=0.0, use_entropy_sampling=False)
    plain = sj.generate(bundle, [1, 2, 3], greedy)
    steered = sj.generate(bundle, [1, 2, 3], greedy, response_steering(bundle, [5, 9, 12], strength=20.0))
    assert plain.trace.commits[0].target_logits != steered.trace.commits[0].target_logits
    assert steered.trace.steering[0].startswith("like the response")


def test_invalid_values_are_reported_in_one_sentence(bundle: sj.Bundle):
    with pytest.raises(sj.UserError, match="The response is empty"):
        response_steering(bundle, "")
    with pytest.raises(sj.UserError, match="top is 0"):
        response_steering(bundle, [1], top=0)
    with pytest.raises(sj.UserError, match=r"mai_lm_target contains \[inf\], but these must be finite"):
        response_steering(bundle, [1], strength=float("inf"))
    with pytest.raises(sj.UserError, match="needs a model with known concepts"):
        response_steering(dataclasses.replace(sj.load(GOLDEN / "backbone")), [1])
