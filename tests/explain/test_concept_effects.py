"""Effects of removed concepts equal clamped forward passes, and concept gradients equal finite differences."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.concepts.concept import Head
from steerling_jax.concepts.heads import concept_embeddings
from steerling_jax.errors import UserError
from steerling_jax.explain.agreement import EffectAgreement, agreement, shuffled_concepts
from steerling_jax.explain.concept_gradients import SourceConcept, TargetConcept, concept_gradients
from steerling_jax.explain.effects import REMOVALS, ConceptEffects, concept_effects
from steerling_jax.explain.given_text import given_trace
from steerling_jax.models.attention import attend_masked, block_causal_mask
from steerling_jax.models.steerling.backbone import embed_tokens, unstack_layers
from steerling_jax.models.steerling.layers import Block, Norm, rope_tables
from tests.worlds.golden_traces import golden_trace

STEPS = 3  # commits whose effects are compared


@pytest.fixture(scope="module")
def explained(golden):
    """A bundle, its golden trace and the trace's contributions."""
    bundle = sj.load(golden / "base")
    trace = golden_trace(np.load(golden / "base" / "attribution.npz"), bundle.config.mask_token_id)
    return bundle, trace, sj.concept_contributions(bundle, trace)


def sample_effects(explained, head: Head) -> tuple[ConceptEffects, list[int]]:
    """Effects on a few tokens of a listed concept and of one that may not be listed."""
    bundle, trace, shares = explained
    listed = shares.known_ids if head == "known" else shares.discovered_ids
    start = trace.prompt_length
    first = np.flatnonzero((shares.positions >= start) & (shares.positions < start + STEPS))[0]
    ids = [int(listed[first, 0]), (int(listed[first, 0]) + 7) % 50]
    return concept_effects(bundle, trace, shares, ids, head=head, start=start, end=start + STEPS), ids


@pytest.mark.parametrize("head", ["known", "discovered"])
@pytest.mark.parametrize("rule", ["frozen", "published"])
def test_removal_in_the_head_is_the_clamped_forward(explained, head, rule):
    bundle, trace, shares = explained
    effects, _ = sample_effects(explained, head)
    for pair in (0, 1, len(effects.orders) - 1):
        order, position = effects.orders[pair], effects.positions[pair]
        canvas = trace.snapshot(int(shares.steps[order]))
        where = np.arange(len(canvas)) == position
        clamp = {int(effects.concept_ids[pair]): 0.0}
        known, unknown = (clamp, None) if head == "known" else (None, clamp)
        plain = sj.forward(bundle, canvas).logits[0, position]
        edited = sj.forward(
            bundle, canvas, positions=where, epsilon=rule, intervene_known=known, intervene_unknown=unknown
        ).logits[0, position]
        token = shares.token_ids[order]
        assert effects.logit[rule][pair] == pytest.approx(float(plain[token] - edited[token]), abs=2e-4)
        fell = jax.nn.log_softmax(plain)[token] - jax.nn.log_softmax(edited)[token]
        assert effects.log_probability[rule][pair] == pytest.approx(float(fell), abs=2e-4)


@pytest.mark.parametrize("head", ["known", "discovered"])
def test_frozen_removal_is_the_share(explained, head):
    effects, _ = sample_effects(explained, head)
    np.testing.assert_allclose(effects.logit["frozen"], effects.direct, atol=2e-4)
    assert np.abs(effects.direct).max() > 1e-3


def test_discovered_concepts_are_refilled_by_the_published_epsilon(explained):
    effects, _ = sample_effects(explained, "discovered")
    np.testing.assert_allclose(effects.logit["published"], 0.0, atol=2e-4)


def hidden_without(bundle, canvas: np.ndarray, direction: np.ndarray, first_layer: int) -> jax.Array:
    """Hidden rows (T, D) with `direction` projected out after each layer from `first_layer` on: a plain loop."""
    config, at = bundle.config, jnp.arange(len(canvas))
    unit = direction / np.linalg.norm(direction)
    x = embed_tokens(bundle.params, jnp.asarray(canvas[None]), bundle.compute)
    attention = partial(attend_masked, mask=block_causal_mask(at, at, config.diff_block_size))
    for number, layer in enumerate(unstack_layers(bundle.params)["blocks"], 1):
        x, _ = Block(config, bundle.compute).apply({"params": layer}, x, rope_tables(config, at), attention)
        if number >= first_layer:
            x = x - jnp.outer(x[0] @ unit, jnp.asarray(unit))[None]
    return Norm(config).apply({"params": bundle.params["ln_f"]}, x)[0]


@pytest.mark.parametrize("head", ["known", "discovered"])
def test_removal_in_the_pass_is_the_plain_loop(explained, head):
    bundle, trace, shares = explained
    effects, _ = sample_effects(explained, head)
    for pair in (0, 3):
        order, position = effects.orders[pair], effects.positions[pair]
        canvas = trace.snapshot(int(shares.steps[order]))
        vector = concept_embeddings(
            bundle.params,
            jnp.asarray(effects.concept_ids[pair : pair + 1]),
            head=head,
            config=bundle.config,
            compute=bundle.compute,
        )[0]
        rows = hidden_without(bundle, canvas, np.asarray(vector), bundle.config.n_layers // 2)
        edited = rows[position] @ bundle.params.get("lm_head", bundle.params["tok_emb"])["weight"].T
        plain = sj.forward(bundle, canvas).logits[0, position]
        token = shares.token_ids[order]
        assert effects.logit["pass"][pair] == pytest.approx(float(plain[token] - edited[token]), abs=5e-4)
        assert abs(effects.logit["pass"][pair]) > 1e-3


def test_positions_after_the_text_are_not_seen(explained):
    """In a text that ends inside an attention block."""
    bundle, trace, _ = explained
    block = bundle.config.diff_block_size
    length = len(trace.tokens) // block * block - block // 2
    text = given_trace(bundle, trace.tokens[: length - 2].tolist(), [1, 2])
    shares = sj.concept_contributions(bundle, text)
    effects = concept_effects(bundle, text, shares, [3], head="known")
    last = int(np.argmax(effects.positions))
    canvas = text.snapshot(int(shares.steps[effects.orders[last]]))
    vector = concept_embeddings(
        bundle.params, jnp.asarray([3]), head="known", config=bundle.config, compute=bundle.compute
    )[0]
    rows = hidden_without(bundle, canvas, np.asarray(vector), bundle.config.n_layers // 2)
    edited = rows[length - 1] @ bundle.params.get("lm_head", bundle.params["tok_emb"])["weight"].T
    plain = sj.forward(bundle, canvas).logits[0, length - 1]
    assert effects.logit["pass"][last] == pytest.approx(float(plain[2] - edited[2]), abs=5e-4)


def test_sums_over_a_chunk(explained):
    effects, ids = sample_effects(explained, "known")
    (whole,) = effects.summed([(0, 10**6)])
    assert whole.concept_ids.tolist() == sorted(ids)
    for name in REMOVALS:
        for concept, value in zip(whole.concept_ids, whole.logit[name]):
            terms = effects.logit[name][effects.concept_ids == concept].astype(np.float64)
            # The order of a sum in float32 is not defined: the error grows with its terms, not with its value.
            assert value == pytest.approx(terms.sum(), rel=0, abs=1e-6 * max(np.abs(terms).sum(), 1.0))


def test_agreement_of_hand_made_values():
    x = np.array([1.0, 2.0, -1.0, 0.0])
    found = agreement(x, 2 * x + 1)
    assert found.correlation == pytest.approx(1)
    assert found.slope == pytest.approx(2)
    assert found.sign == 1  # 0 has no sign
    assert found.pairs == 4
    assert agreement(x, x + 1.5).sign == pytest.approx(2 / 3)
    assert np.isnan(agreement(x, np.ones(4)).correlation)


def test_shuffling_keeps_each_token_its_shares(explained):
    effects, _ = sample_effects(explained, "known")
    found = shuffled_concepts(effects, jax.random.key(0))
    for order in np.unique(effects.orders):
        here = effects.orders == order
        assert sorted(found[here]) == sorted(effects.direct[here])
    assert isinstance(agreement(found, effects.direct), EffectAgreement)


def test_no_share_stays_at_its_own_concept():
    """A control with some of the true pairs would agree too well. A token with a single concept gets NaN."""
    orders = np.array([4, 7, 4, 7, 4, 9], np.int32)
    direct = np.arange(1.0, 7.0, dtype=np.float32)
    effects = ConceptEffects("known", orders, orders, np.arange(6, dtype=np.int32), direct, {}, {})
    for seed in range(20):
        found = shuffled_concepts(effects, jax.random.key(seed))
        assert np.isnan(found[5])
        assert not np.any(found[:5] == direct[:5])
        assert sorted(found[orders == 4]) == [1, 3, 5]
        assert sorted(found[orders == 7]) == [2, 4]
        assert agreement(found, direct).pairs == 5


def test_invalid_effects_raise(explained):
    bundle, trace, shares = explained
    with pytest.raises(UserError, match="There is no known concept 100000; the ids are 0 to"):
        concept_effects(bundle, trace, shares, [100_000])
    with pytest.raises(UserError, match=r"No token is committed in \[0, 1\)"):
        concept_effects(bundle, trace, shares, [0], start=0, end=1)
    with pytest.raises(UserError, match="first_layer is 99, but the layers are 1 to"):
        concept_effects(bundle, trace, shares, [0], first_layer=99)


@pytest.mark.parametrize("head", ["known", "discovered"])
def test_gradients_are_finite_differences(explained, head):
    """Against a small injection of each source from every layer on, with the public forward."""
    bundle, trace, _ = explained
    config = bundle.config
    canvas = trace.snapshot(list(trace.commits)[3].step)
    T, position = len(canvas), trace.prompt_length
    targets = [TargetConcept(4, position, head), TargetConcept(9, 2, head)]
    sources = [SourceConcept(1, "known"), SourceConcept(2, "discovered")]
    found = concept_gradients(bundle, canvas, targets, sources)
    plain = sj.forward(bundle, canvas, dense=True).decomposition
    logits = plain.known_logits if head == "known" else plain.unknown_logits
    assert logits is not None
    np.testing.assert_allclose(found.logits, [logits[0, t.position, t.concept_id] for t in targets], atol=1e-4)
    step = 0.02
    for m, source in enumerate(sources):
        vector = np.asarray(
            concept_embeddings(
                bundle.params, jnp.asarray([source.concept_id]), head=source.head, config=config, compute=bundle.compute
            )[0]
        )
        for layer in range(1, config.n_layers + 1):
            for where in (np.arange(T) == position, np.arange(T) < trace.prompt_length):
                injection = vector[None, :] * where[:, None]
                ends = []
                for sign in (1, -1):
                    out = sj.forward(bundle, canvas, dense=True, injection=injection, inject_layer=layer,
                                     inject_alpha=sign * step).decomposition  # fmt: skip
                    values = out.known_logits if head == "known" else out.unknown_logits
                    assert values is not None
                    ends.append(np.array([values[0, t.position, t.concept_id] for t in targets]))
                difference = (ends[0] - ends[1]) / (2 * step)
                predicted = found.injected(layer, where)[:, m]
                np.testing.assert_allclose(predicted, difference, rtol=0.03, atol=3e-3)
    assert np.abs(found.gradients[0]).max() > 1e-2


def test_gradients_do_not_reach_back_in_time(explained):
    """Injection into a later attention block, or after the last layer at another position, has no effect."""
    bundle, trace, _ = explained
    canvas = np.asarray(trace.tokens)
    found = concept_gradients(bundle, canvas, [TargetConcept(4, 2)], [SourceConcept(1)])
    block = bundle.config.diff_block_size
    assert not found.gradients[..., (2 // block + 1) * block :].any()
    last = found.gradients[0, 0, -1]
    assert last[2] != 0
    assert not np.delete(last, 2).any()


def test_gradients_of_activations(explained):
    bundle, trace, _ = explained
    found = concept_gradients(bundle, trace.tokens, [TargetConcept(4, 2)], [SourceConcept(1)])
    a = found.activations[0]
    np.testing.assert_allclose(found.of_activations, found.gradients * (a * (1 - a)), rtol=1e-6)


@pytest.mark.parametrize(
    ("targets", "sources", "sentence"),
    [
        ([TargetConcept(0, 10_000)], [SourceConcept(0)], "Position 10000 is outside the text of"),
        ([TargetConcept(-1, 0)], [SourceConcept(0)], "There is no known concept -1; the ids are 0 to"),
        (
            [TargetConcept(0, 0)],
            [SourceConcept(10**6, "discovered")],
            "There is no discovered concept 1000000; the ids are 0 to",
        ),
        ([], [SourceConcept(0)], "Give at least one target and one source"),
    ],
)
def test_invalid_gradients_raise(explained, targets, sources, sentence):
    bundle, trace, _ = explained
    with pytest.raises(UserError, match=sentence):
        concept_gradients(bundle, trace.tokens, targets, sources)


def test_effects_of_guided_text_are_refused(explained):
    bundle, trace, shares = explained
    with pytest.raises(UserError, match="Effects cannot be measured in guided text"):
        concept_effects(bundle, replace(trace, guidance=0.5), shares, [0])
