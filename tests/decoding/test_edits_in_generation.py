"""Layer edits in diffusion generation: with caches, drafts and neighbours the text is that of whole edited canvases."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.decoding.decoder import Decoder, Request
from steerling_jax.errors import UserError
from steerling_jax.models.edits import LayerEdit, from_layer, inject, project_out
from tests.decoding.test_decoder import PARAMS, SAMPLED, drain, plan
from tests.decoding.test_generation import FLOAT32, GOLDEN, GREEDY, PUSHED, SMALL, events
from tests.worlds.reference_decoder import reference_decode

SHORT = dataclasses.replace(SAMPLED, max_new_tokens=16)
PROMPT = np.random.default_rng(5).integers(0, 59, 21)  # the first sampler block straddles two attention blocks


def edit_of(width: int, generated_only: bool, strength: float = 1.0) -> LayerEdit:
    vector = strength * jax.random.normal(jax.random.key(1), (1, 1, width))
    return dataclasses.replace(inject(vector, layers=from_layer(2, 2)), generated_only=generated_only)


EVERYWHERE, STRONGER, GENERATED = (edit_of(32, False),), (edit_of(32, False, 2.0),), (edit_of(32, True),)
MIXED = (*GENERATED, project_out(jnp.eye(32)[3:4]))


def decoder() -> Decoder:
    return Decoder(PARAMS, config=SMALL, compute=FLOAT32, rows=1, prefix_cache_bytes=2**20)


@pytest.mark.parametrize(
    ("guidance", "drafts", "cases"),
    [
        (0.0, 1, [((), None), (MIXED, None), (MIXED, PUSHED), ((), None)]),
        (1.5, 3, [(MIXED, dataclasses.replace(PUSHED, where="prompt"))]),
    ],
)
def test_edited_texts_are_those_of_whole_canvases(guidance: float, drafts: int, cases: list):
    """One prompt with different edits in one decoder, whose prefix cache must not mix them, also under steering."""
    config = dataclasses.replace(SHORT, cfg_scale=guidance)
    requests = [
        Request(PROMPT, config, 3, plan(steering), drafts=drafts, record_hidden=True, edits=edits)
        for edits, steering in cases
    ]
    texts = []
    for trace, (edits, steering) in zip(drain(decoder(), requests), cases):
        canvas, commits = reference_decode(PARAMS, PROMPT, SMALL, config, 3, steering, edits=edits)
        np.testing.assert_array_equal(trace.tokens, canvas)
        assert events(trace.commits) == events(commits)
        texts.append(tuple(trace.tokens.tolist()))
    assert texts[0] == texts[-1]
    assert len(set(texts)) == max(len(cases) - 1, 1)


def test_prefixes_are_shared_with_requests_of_the_same_edits_only():
    one, short = decoder(), dataclasses.replace(SHORT, max_new_tokens=8)
    for edits, hits in (
        ((), 0),
        (EVERYWHERE, 0),
        (EVERYWHERE, 2),  # the whole blocks of 8 before the window of a prompt of 21
        (STRONGER, 0),
        (GENERATED, 2),  # the prompt's blocks are those without edits
        ((), 2),
    ):
        before = one.prefixes.hits
        drain(one, [Request(PROMPT, short, 3, record_hidden=True, edits=edits)])
        assert one.prefixes.hits - before == hits, edits
    # What an edit after the prompt makes of the text is not stored for others: a longer prompt finds its prompt alone.
    (trace,) = drain(one, [Request(PROMPT, SHORT, 3, record_hidden=True, edits=GENERATED)])
    before = one.prefixes.hits
    drain(one, [Request(trace.tokens[:29], short, 3, record_hidden=True)])
    assert one.prefixes.hits - before == 2


def test_generate_takes_edits_and_the_trace_is_explained_with_them():
    bundle = sj.load(GOLDEN / "base")
    edits = [edit_of(bundle.config.width, False, 0.5), edit_of(bundle.config.width, True, 0.5)]
    (made,) = sj.generate_many(bundle, [[1, 2, 3, 4]], GREEDY, edits=edits)
    assert not np.array_equal(sj.generate(bundle, [1, 2, 3, 4], GREEDY).tokens, made.tokens)
    trace, recorded = made.trace, [logit for *_, logit in made.trace.flat()]
    inputs = sj.attribute_inputs(bundle, trace, nodes=1)
    np.testing.assert_allclose(inputs.path_logits, recorded, rtol=0, atol=1e-4)
    again = sj.concept_contributions(bundle, dataclasses.replace(trace, hidden=None))
    assert again.error.max() < 1e-4
    without = sj.concept_contributions(bundle, dataclasses.replace(trace, hidden=None, edits=()))
    assert without.error.max() > 0.01


def test_an_edit_of_another_model_is_refused():
    edit = inject(jnp.ones((1, 1, 16)))
    with pytest.raises(UserError, match="but the model's width is 32"):
        decoder().submit(Request(PROMPT, SHORT, 0, edits=(edit,)))
    per_layer = LayerEdit(push=jnp.ones((3, 1, 1, 32)))
    with pytest.raises(UserError, match=r"edits\[0\].push is for 3 layers, but the model has 2"):
        decoder().submit(Request(PROMPT, SHORT, 0, edits=(per_layer,)))
