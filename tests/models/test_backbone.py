"""The `Backbone` interface: a toy recurrent model decodes through it, and Steerling's keeps its promises."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.models.backbone import Backbone, PassResult
from steerling_jax.models.compute import Compute
from steerling_jax.models.edits import LayerEdit, apply_edits, from_layer, inject, project_out
from steerling_jax.models.steerling.backbone import steerling_backbone, unstack_layers
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.models.steerling.model import init_params
from tests.worlds.greedy_tokens import greedy_tokens

L, D, V = 3, 16, 24


def toy_backbone() -> Backbone:
    """A stack of gated recurrences: the cache is their state, (L, B, D), whatever the number of positions."""

    def run(params, x, *, start: jax.Array | int = 0, lengths=None, cache=None, edits=(), capture=()):
        B, T, _ = x.shape
        cache = jnp.zeros((L, B, D)) if cache is None else cache
        states, captured = [], {}
        held = jnp.arange(T)[:, None] < (jnp.full(B, T) if lengths is None else lengths)[None, :]
        for layer in range(L):

            def step(state, inputs, layer=layer):
                x_t, held = inputs
                after = jax.nn.sigmoid(params["decay"][layer])[None] * state + jnp.tanh(x_t @ params["mix"][layer])
                state = jnp.where(held[:, None], after, state)
                return state, state

            state, h = jax.lax.scan(step, cache[layer], (jnp.swapaxes(x, 0, 1), held))
            x = apply_edits(x + jnp.swapaxes(h, 0, 1), layer, edits)
            states.append(state)
            captured |= {layer: x} if layer in capture else {}
        return PassResult(x, jnp.stack(states), captured)

    return Backbone(
        n_layers=L,
        width=D,
        vocab_size=V,
        embed=lambda params, tokens: params["embed"][tokens],
        run=run,
        logits=lambda params, hidden: hidden @ params["embed"].T,
        empty_cache=lambda rows, positions: jnp.zeros((L, rows, D)),
    )


def toy_params() -> dict:
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "embed": jax.random.normal(keys[0], (V, D)),
        "mix": jax.random.normal(keys[1], (L, D, D)) / D**0.5,
        "decay": jax.random.normal(keys[2], (L, D)),
    }


@pytest.mark.parametrize("push", [None, 0.3])
def test_decoding_with_a_cache_is_decoding_without_one(push: float | None):
    """Token by token the whole text through the model again, without a cache."""
    backbone, params = toy_backbone(), toy_params()
    edits = () if push is None else (inject(jnp.full((1, 1, D), push), layers=from_layer(2, L)),)
    prompt = jax.random.randint(jax.random.key(1), (2, 5), 0, V)
    found = greedy_tokens(params, prompt, backbone=backbone, count=8, edits=edits)
    text = prompt
    for _ in range(8):
        hidden = backbone.run(params, backbone.embed(params, text), edits=edits).hidden
        token = jnp.argmax(backbone.logits(params, hidden[:, -1]), axis=-1)
        text = jnp.concatenate([text, token[:, None]], axis=1)
    np.testing.assert_array_equal(found, text[:, 5:])
    assert len(np.unique(found)) > 2


W = 4
CONFIG = ModelConfig(
    n_layers=3, n_head=2, n_kv_heads=1, n_embd=32, block_size=32, diff_block_size=W, vocab_size=40,
    pad_token_id=36, bos_token_id=37, eos_token_id=35, endofchunk_token_id=38, mask_token_id=39,
    concept=ConceptConfig(n_concepts=8, n_unknown_concepts=16, concept_dim=32, factorize_rank=16),
)  # fmt: skip
BACKBONE = steerling_backbone(CONFIG, Compute())


def edits_of(rows: int, length: int) -> tuple[LayerEdit, ...]:
    keys = jax.random.split(jax.random.key(3), 3)
    axis = jax.random.normal(keys[1], (rows, 32))
    axis = axis / jnp.linalg.norm(axis, axis=1, keepdims=True)
    where = jax.random.bernoulli(keys[2], 0.5, (rows, length))
    vector = jax.random.normal(keys[0], (rows, 1, 32))
    return (
        inject(vector, layers=from_layer(2, 3), where=where),
        project_out(axis),
        LayerEdit(axis=axis, level=jnp.ones(rows)),
    )


def on_positions(edits: tuple[LayerEdit, ...], positions: slice) -> tuple[LayerEdit, ...]:
    cut = [None if edit.where is None else edit.where[:, positions] for edit in edits]
    return tuple(dataclasses.replace(edit, where=where) for edit, where in zip(edits, cut, strict=True))


@pytest.mark.parametrize("layout", ["stacked", "unstacked"])
def test_steerling_in_two_passes_with_a_cache_is_one_pass(layout: str):
    params = init_params(CONFIG, jax.random.key(0))
    params = unstack_layers(params) if layout == "unstacked" else params
    tokens = jax.random.randint(jax.random.key(1), (2, 3 * W), 0, 40)
    x, edits = BACKBONE.embed(params, tokens), edits_of(2, 3 * W)
    whole = jax.jit(partial(BACKBONE.run, capture=(0, 2)))(params, x, edits=edits)
    first, second = slice(0, 2 * W), slice(2 * W, 3 * W)
    run = jax.jit(partial(BACKBONE.run, capture=(2,)))
    before = run(params, x[:, first], cache=BACKBONE.empty_cache(2, 5 * W), edits=on_positions(edits, first))
    after = run(params, x[:, second], start=2 * W, cache=before.cache, edits=on_positions(edits, second))
    np.testing.assert_allclose(after.hidden, whole.hidden[:, second], atol=1e-5)
    np.testing.assert_allclose(after.captured[2], whole.captured[2][:, second], atol=1e-5)
    assert set(whole.captured) == {0, 2}


def test_steerling_rows_have_starts_and_lengths_of_their_own():
    """Two texts of 4 and 8 tokens go on by 8 and 4: with padding, in one pass, and each row alone."""
    params, S = init_params(CONFIG, jax.random.key(0)), 4 * W
    tokens = jax.random.randint(jax.random.key(1), (2, 3 * W), 0, 40)
    x = BACKBONE.embed(params, tokens)
    before = jnp.array([W, 2 * W])
    first = BACKBONE.run(params, x[:, : 2 * W], lengths=before, cache=BACKBONE.empty_cache(2, S))
    rest = jnp.stack([x[0, W:], jnp.concatenate([x[1, 2 * W :], x[1, :W]])])  # row 1 is padded with other tokens
    both = BACKBONE.run(params, rest, start=before, lengths=3 * W - before, cache=first.cache)
    whole = BACKBONE.run(params, x).hidden
    np.testing.assert_allclose(both.hidden[0], whole[0, W:], atol=1e-5)
    np.testing.assert_allclose(both.hidden[1, :W], whole[1, 2 * W :], atol=1e-5)
    np.testing.assert_allclose(first.hidden[0, :W], whole[0, :W], atol=1e-5)


def test_edits_against_numpy():
    rows, T = 2, 5
    edits = edits_of(rows, T)
    x = np.asarray(jax.random.normal(jax.random.key(9), (rows, T, 32)))
    pushed, projected, clamped = (np.asarray(edit.apply(jnp.asarray(x), 2)) for edit in edits)
    vector, where = np.asarray(edits[0].push)[0], np.asarray(edits[0].where)[:, :, None]
    np.testing.assert_allclose(pushed, x + where * vector, atol=1e-6)
    axis = np.asarray(edits[1].axis)[:, None, :]
    np.testing.assert_allclose((projected * axis).sum(-1), 0, atol=1e-6)
    np.testing.assert_allclose((clamped * axis).sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(clamped - projected, np.broadcast_to(axis, x.shape), atol=1e-6)
    np.testing.assert_array_equal(edits[0].apply(jnp.asarray(x), 0), x)  # before the first edited layer


def test_rows_of_a_pass_that_belong_together_share_an_edit():
    """Branches and drafts of a request are rows in turn: (request, branch and draft)."""
    vector = jnp.arange(2.0)[:, None, None] * jnp.ones((2, 1, 4)) + 1
    found = inject(vector).apply(jnp.zeros((6, 3, 4)), 1)
    np.testing.assert_array_equal(found[:, 0, 0], [1, 1, 1, 2, 2, 2])
