"""`sj.amplify`, `sj.suppress` and `sj.clamp`: what they mean, and where they are taken."""

from __future__ import annotations

from typing import Any, cast

import pytest

import steerling_jax as sj
from steerling_jax.decoding.trace_record import origin_of, record_of
from steerling_jax.steering.resolve import plan_steering, resolve_rules, resolve_steering
from steerling_jax.steering.rules import make_rule

CONFIG = sj.GenerationConfig(max_new_tokens=16, seed=1)


@pytest.fixture(scope="module")
def bundle(text_model):
    return sj.load(text_model)


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        (sj.amplify("Email", 0.5), {"action": "amplify", "concept": "Email", "strength": 0.5}),
        (sj.amplify(1, layer=1, tokens="all"), {"action": "amplify", "concept": "1", "layer": 1, "tokens": "all"}),
        (sj.amplify({"Email": 2, 2: -1}), {"action": "amplify", "concepts": {"Email": 2, "2": -1}}),
        (sj.suppress("Email", 3, words=1.5), {"action": "suppress", "concept": "Email", "strength": 3, "words": 1.5}),
        (
            sj.clamp(7, 0.0, head="discovered", at=(0, 4), epsilon="frozen"),
            {"action": "clamp", "concept": "7", "value": 0.0, "head": "discovered", "at": [0, 4], "epsilon": "frozen"},
        ),
    ],
)
def test_they_mean_what_rules_of_a_policy_mean(bundle, rule, fields):
    expected = resolve_rules([make_rule(fields, "")], bundle)
    assert resolve_steering(bundle, rule) == expected


def test_they_are_taken_wherever_a_config_is(bundle):
    rule = sj.amplify("Email", 0.5)
    config = resolve_steering(bundle, rule)[0]
    by_name, by_config = (sj.generate(bundle, "The quick", CONFIG, steering) for steering in (rule, config))
    assert by_name.tokens.tolist() == by_config.tokens.tolist()
    assert by_name.trace.steering == ("amplify Email at 0.5",)
    prompt = sj.Prompt("The quick", CONFIG, rule)
    assert record_of(bundle, origin_of(bundle), prompt, by_name).steering == (config,)
    (many,) = sj.generate_many(bundle, ["The quick"], CONFIG, rule)
    assert many.tokens.tolist() == by_name.tokens.tolist()
    scores = [sj.log_likelihood(bundle, "The", " fox", samples=2, steering=one) for one in (rule, config, None)]
    assert scores[0] == scores[1] != scores[2]
    trace = sj.given_trace(bundle, "The quick", " brown fox", rule)
    assert trace.steering == ("amplify Email at 0.5",)


def test_they_add_up(bundle):
    first, second = sj.amplify("Email", 0.5), sj.suppress("Dates", 0.1)
    config = sj.SteeringConfig(concept_ids=(2,), mai_lm_target=0.25)
    assert first + second == (first, second)
    assert first + second + config == (first, second, config)
    assert config + (first + [second]) == (config, first, second)  # noqa: RUF005
    assert sum([first, config]) == (first, config)
    plans = [plan_steering(bundle, one) for one in (first + second + config, [first, config])]
    assert [len(plan.parts) for plan in plans] == [3, 2]
    with pytest.raises(TypeError):
        _ = first + "Email"


def test_bad_values_are_reported_in_a_sentence(bundle):
    suppress, generate = cast(Any, sj.suppress), cast(Any, sj.generate)
    for make, words in (
        (lambda: sj.amplify("Email", -1), "sj.amplify: the strength is -1"),
        (lambda: sj.amplify(""), "sj.amplify: concept is ''"),
        (lambda: sj.amplify({}), "sj.amplify: concepts is {}"),
        (lambda: suppress("Email", where="both"), "sj.suppress: where is 'both'"),
        (lambda: sj.clamp("Email", float("nan")), "sj.clamp: the value is nan"),
        (lambda: sj.generate(bundle, "The", CONFIG, sj.amplify("Emial")), "did you mean 'Email'"),
        (lambda: generate(bundle, "The", CONFIG, "Email"), "steering contains 'E'"),
        (lambda: generate(bundle, "The", CONFIG, [0.5]), "steering contains 0.5"),
        (lambda: sj.generate(bundle, "The", CONFIG, sj.amplify(1) + sj.suppress(1)), "keep one of the two"),
    ):
        with pytest.raises(sj.UserError, match=words):
            make()


def test_a_rule_prints_what_was_given():
    assert repr(sj.amplify("Email", 0.5)) == "SteeringRule('amplify', concept='Email', strength=0.5)"
