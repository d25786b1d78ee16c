"""What steering adds to layers and subtracts from logits, against the published formulas in NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.model import init_params
from steerling_jax.steering.plan import ClampPlan, prepare_steering
from steerling_jax.steering.resolve import resolve_rules
from steerling_jax.steering.rules import SteeringRule
from steerling_jax.tokenizer import IdsOnlyTokenizer, SpecialIds
from tests.worlds import small_config
from tests.worlds.small_config import CONCEPT

SMALL = dataclasses.replace(small_config.SMALL, n_layers=4)
PARAMS = init_params(SMALL, jax.random.key(0))
E_CD = np.asarray(PARAMS["known_head"]["concept_embedding"]["weight"])
W_VD = np.asarray(PARAMS["tok_emb"]["weight"])
S = sj.SteeringConfig


def plan_of(*steering: S, config: ModelConfig = SMALL, dtype: str = "float32"):
    return prepare_steering(PARAMS, steering, config=config, compute=Compute(dtype=dtype))


def unit(total: np.ndarray) -> np.ndarray:
    return total / np.linalg.norm(total)


def test_the_normalised_strength_is_in_logit_units_of_the_best_aligned_token():
    direction = unit(E_CD[3] + E_CD[5])
    alpha = 8.0 / (W_VD @ direction).max()
    masks, prompt = plan_of(S((3, 5), 8.0, inject_layer=3)).tables(0, 4)
    np.testing.assert_allclose(masks[2:], np.stack([alpha * direction] * 2), rtol=1e-5)
    np.testing.assert_array_equal(masks[:2], 0)
    np.testing.assert_array_equal(prompt, 0)
    assert (W_VD @ masks[2]).max() == pytest.approx(8.0, rel=1e-5)


def test_the_raw_strength_is_the_length_of_what_is_added():
    masks, _ = plan_of(S((4,), -7.0, normalize_mai_lm_target=False)).tables(1000, 4)
    np.testing.assert_allclose(masks[1:], np.stack([-7.0 * unit(E_CD[4])] * 3), rtol=1e-5)  # from half the layers on
    np.testing.assert_array_equal(masks[0], 0)


@pytest.mark.parametrize(("layer", "first"), [(0, 0), (1, 0), (4, 3)])
def test_layers_are_numbered_from_one(layer: int, first: int):
    masks, _ = plan_of(S((4,), 1.0, inject_layer=layer)).tables(0, 4)
    np.testing.assert_array_equal(np.any(masks != 0, axis=1), np.arange(4) >= first)


def test_weights_turn_the_direction():
    masks, _ = plan_of(S((3, 5), 1.0, normalize_mai_lm_target=False, weights=(2.0, -0.5))).tables(0, 4)
    np.testing.assert_allclose(masks[3], unit(2 * E_CD[3] - 0.5 * E_CD[5]), rtol=1e-5)


def test_the_direction_is_rounded_to_the_compute_dtype_and_the_sum_is_not():
    masks, _ = plan_of(S((3,), 0.3, normalize_mai_lm_target=False), dtype="bfloat16").tables(0, 4)
    row = PARAMS["known_head"]["concept_embedding"]["weight"][3]
    rounded = np.asarray((row / (jnp.linalg.norm(row) + 1e-12)).astype("bfloat16").astype("float32"))
    np.testing.assert_array_equal(masks[3], np.float32(0.3) * rounded)


def test_several_act_together_each_until_its_own_end():
    first = S((1,), 2.0, False, 1, "hard_cutoff", 10)
    second = S((2,), 3.0, False, 1, "hard_cutoff", 4)
    third = S((3,), 5.0, False, 1, where="prompt")
    plan = plan_of(first, second, third)
    assert [plan.next_change(n) for n in (0, 3, 4, 9, 10, 99)] == [4, 4, 10, 10, None, None]
    assert plan.steers_prompt
    assert not plan_of(first, second).steers_prompt
    for written, expected in ((3, 2 * unit(E_CD[1]) + 3 * unit(E_CD[2])), (4, 2 * unit(E_CD[1])), (10, 0 * E_CD[0])):
        masks, prompt = plan.tables(written, 4)
        np.testing.assert_allclose(masks[2], expected, atol=1e-6)
        np.testing.assert_allclose(prompt[2], 5 * unit(E_CD[3]), atol=1e-6)


def test_tables_change_where_next_change_says_and_nowhere_else():
    plan = plan_of(
        S.injection(1, inject_layer=2, cutoff_tokens=3), S.injection([2, 3], inject_layer=1, cutoff_tokens=7)
    )
    tables = [plan.tables(written, 4)[0] for written in range(12)]
    changes = [n for n in range(1, 12) if not np.array_equal(tables[n], tables[n - 1])]
    assert changes == [plan.next_change(0), plan.next_change(3)] == [3, 7]


def test_suppression_is_the_summed_rectified_alignment():
    plan = plan_of(S.injection_relu(4, [7], relu_strength=20.0), S(relu_logit_mask={5: 2.0, 6: 3.0}))
    expected = sum(s * np.maximum(W_VD @ E_CD[c], 0) for c, s in ((4, 20.0), (5, 2.0), (6, 3.0)))
    np.testing.assert_allclose(plan.suppression, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(plan_of().suppression, np.zeros(64))


def test_discovered_concepts_steer_by_their_own_embeddings():
    head = PARAMS["unknown_head"]
    table = np.asarray(head["embedding_coef"]["weight"]) @ np.asarray(head["embedding_basis"]["weight"]).T
    one = S((30, 7), 2.0, relu_logit_mask={30: 3.0}, weights=(1.0, -0.5), head="discovered")
    plan = plan_of(one)
    direction = unit(table[30] - 0.5 * table[7])
    expected = 2.0 / np.max(W_VD @ direction) * direction
    np.testing.assert_allclose(plan.tables(0, 4)[0][3], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(plan.suppression, 3 * np.maximum(W_VD @ table[30], 0), rtol=1e-4, atol=1e-6)
    assert plan.labels == ("inject discovered 30,7 at 2.0; hold down discovered 30 at 3.0",)
    with pytest.raises(sj.UserError, match="names concept 40, but the discovered concepts of this model are 0 to 39"):
        plan_of(S((40,), 1.0, head="discovered"))


def test_the_unlearn_preset_subtracts_the_group_and_suppresses_the_focal_concept():
    one = S.injection_relu(4, [7, 4, 9])
    assert (one.concept_ids, one.mai_lm_target, one.normalize_mai_lm_target) == ((4, 7, 9), -7.0, False)
    assert one.relu_logit_mask == {4: 20.0}


def test_labels_name_those_that_act():
    plan = plan_of(
        S((12, 3), 8.0),
        S(),
        S((1,), 0.0),
        S.injection_relu(4),
        S((1,), 2.0, where="prompt", label="like the answer"),
        S(intervene_known={2: 1.0}),
    )
    assert plan.labels == (
        "inject 12,3 at 8.0",
        "inject 4 at -7.0 raw; hold down 4 at 20.0",
        "like the answer",
        "clamp known 2 at 1.0",
    )
    assert len(plan.parts) == 3


def test_the_injection_preset_acts_in_a_small_model_and_a_layer_that_is_missing_is_refused():
    assert S.injection(1).inject_layer is None
    assert S.injection(1, inject_layer=8) == S((1,), 8.0, True, 8, "hard_cutoff", 32)  # the published preset
    masks, _ = plan_of(S.injection(1)).tables(0, 4)
    assert [bool(row.any()) for row in masks] == [False, True, True, True]  # from half of the four layers on
    assert plan_of(S.injection(1, inject_layer=4)).tables(0, 4)[0][3].any()
    for one in (S.injection(1, inject_layer=8), S((1,), 1.0, inject_layer=5), S.injection_relu(1, inject_layer=5)):
        with pytest.raises(sj.UserError, match=r"inject_layer is \d, but the layers of") as raised:
            plan_of(one)
        assert raised.value.field == "inject_layer"
    assert plan_of(S((1,), 0.0, inject_layer=5)).parts == ()  # it injects nothing


def test_clamps_of_several_steerings_go_together_or_are_refused():
    clamp = S(intervene_known={2: 1}, intervene_unknown={"39": 0.5}, clamp_offsets=(0, 8), epsilon="frozen")  # type: ignore[arg-type, dict-item]
    assert plan_of(S.injection(1), clamp).clamps == ClampPlan({2: 1.0}, {39: 0.5}, (0, 8), "frozen")
    more = S(intervene_known={4: 0}, clamp_offsets=(0, 8), epsilon="frozen")
    assert plan_of(clamp, more).clamps == ClampPlan({2: 1.0, 4: 0.0}, {39: 0.5}, (0, 8), "frozen")
    with pytest.raises(sj.UserError, match=r"'clamp known 4 at 0\.0' clamps concept 4, as another steering does"):
        plan_of(more, more)
    assert plan_of(S.injection(1), S(intervene_known={})).clamps is None
    with pytest.raises(sj.UserError, match=r"'clamp known 2 at 1\.0; clamp discovered 39 at 0\.5' and 'x' clamp"):
        plan_of(clamp, S(intervene_known={3: 0.0}, label="x"))


def test_clamps_that_change_nothing_are_refused():
    known_only = dataclasses.replace(SMALL, concept=dataclasses.replace(CONCEPT, use_unknown=False))
    rule = SteeringRule("clamp", "3", value=1.0)
    tokenizer = IdsOnlyTokenizer(SpecialIds.last_of(64), 64)
    both, known = (sj.Bundle(config, {}, tokenizer) for config in (SMALL, known_only))
    for bundle, rules in ((both, [rule]), (known, [dataclasses.replace(rule, epsilon="frozen")])):
        (one,) = resolve_rules(rules, bundle)
        assert isinstance(one, sj.SteeringConfig)
        assert one.intervene_known == {3: 1.0}
    with pytest.raises(sj.UserError, match="no discovered concepts, so clamping known ones changes nothing"):
        resolve_rules([rule], known)


def test_no_steering_is_a_plan_that_does_nothing():
    plan = prepare_steering(PARAMS, None, config=SMALL, compute=Compute())
    assert (plan.parts, plan.clamps, plan.labels, plan.next_change(0)) == ((), None, (), None)
    assert not plan.steers_prompt
    for table in plan.tables(5, 4):
        assert table.shape == (4, 32)
        np.testing.assert_array_equal(table, 0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"concept_ids": ("x",)}, "concept_ids"),
        ({"concept_ids": (1.5,)}, "concept_ids"),
        ({"mai_lm_target": float("inf")}, "mai_lm_target"),
        ({"inject_layer": -1}, "inject_layer"),
        ({"inject_alpha_schedule": "later"}, "inject_alpha_schedule is 'later'"),
        ({"cutoff_tokens": 0}, "cutoff_tokens"),
        ({"relu_logit_mask": {1: float("nan")}}, "relu_logit_mask contains"),
        ({"concept_ids": (1, 2), "weights": (1.0,)}, "weights has 1 numbers for 2 concept ids"),
        ({"concept_ids": (1,), "weights": (0.0,)}, "weights are all 0"),
        ({"concept_ids": (1,), "weights": ("much",)}, "weights contains"),
        ({"where": "everywhere"}, "where is 'everywhere', but it must be 'masks' or 'prompt'"),
        ({"intervene_known": {1: "on"}}, "intervene_known contains"),
        ({"intervene_unknown": {"one": 1.0}}, "intervene_unknown is"),
        ({"clamp_offsets": (4, 4)}, "clamp_offsets"),
        ({"clamp_offsets": (1, 2, 3)}, "clamp_offsets"),
        ({"epsilon": "melted"}, "epsilon is 'melted'"),
    ],
)
def test_invalid_fields_are_named(fields: dict, words: str):
    with pytest.raises(sj.UserError, match=words.replace("(", r"\(")):
        S(**fields)


@pytest.mark.parametrize(
    ("steering", "words"),
    [
        (S((24,), 1.0), "names concept 24, but the known concepts of this model are 0 to 23"),
        (S(relu_logit_mask={-1: 1.0}), "names concept -1"),
        (S(intervene_known={30: 1.0}), "names concept 30"),
        (S(intervene_unknown={40: 1.0}), "names concept 40, but discovered concepts are 0 to 39"),
    ],
)
def test_concepts_that_a_model_lacks_are_named(steering: S, words: str):
    with pytest.raises(sj.UserError, match=words):
        plan_of(steering)


def test_models_without_concepts_cannot_be_steered():
    with pytest.raises(sj.UserError, match="needs a model with known concepts"):
        plan_of(S((1,), 1.0), config=dataclasses.replace(SMALL, interpretable=False, concept=None))
    known_only = dataclasses.replace(CONCEPT, use_unknown=False, n_unknown_concepts=None)
    with pytest.raises(sj.UserError, match="needs a model with discovered concepts"):
        plan_of(S(intervene_unknown={1: 1.0}), config=dataclasses.replace(SMALL, concept=known_only))
