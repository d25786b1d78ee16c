"""Steering by name: rules from options, JSON and policy files, and what each does."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

import steerling_jax as sj
from steerling_jax.cli.steering_options import add_steering_options, parse_steering_options, with_catalogue
from steerling_jax.concepts.catalogue import Catalogue
from steerling_jax.io.catalogue import make_catalogue
from steerling_jax.io.steering_policy import read_policy
from steerling_jax.io.strengths import read_strengths
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.steering.plan import ClampPlan, prepare_steering
from steerling_jax.steering.resolve import resolve_rules
from steerling_jax.steering.rule_syntax import parse_json, parse_option, parse_policy
from steerling_jax.steering.rules import Rule, SteeringRule, make_rule
from steerling_jax.tokenizer import IdsOnlyTokenizer, SpecialIds

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = ModelConfig(n_layers=6, concept=ConceptConfig(n_concepts=40))
NAMES = [
    {"id": 0, "name": "Networking", "group": "topic"},
    {"id": 1, "name": "Email", "group": "topic"},
    {"id": 5, "name": "Poems", "group": "form"},
]
CATALOGUE = make_catalogue(NAMES, CONFIG, "list")


def resolved(rules: Sequence[Rule], bundle: sj.Bundle) -> tuple[sj.SteeringConfig, ...]:
    """The configurations of rules about concepts."""
    found = resolve_rules(rules, bundle)
    assert all(isinstance(one, sj.SteeringConfig) for one in found)
    return cast(tuple[sj.SteeringConfig, ...], found)


def steer(*rules: Rule, config: ModelConfig = CONFIG, **fields: Any) -> tuple[sj.SteeringConfig, ...]:
    tokenizer = IdsOnlyTokenizer(SpecialIds.last_of(64), 64)
    return resolved(rules, sj.Bundle(config, {}, tokenizer, catalogue=CATALOGUE, **fields))


def named_bundle(names: list[dict[str, Any]], **fields: Any) -> sj.Bundle:
    """A bundle with a catalogue and without weights, for looking up names."""
    tokenizer = IdsOnlyTokenizer(SpecialIds.last_of(64), 64)
    return sj.Bundle(CONFIG, {}, tokenizer, catalogue=make_catalogue(names, CONFIG, "list"), **fields)


def test_amplify_is_the_injection_preset():
    (one,) = steer(parse_option("amplify", "poems"))
    assert one == dataclasses.replace(sj.SteeringConfig.injection(5), label="amplify Poems at 8")
    (one,) = steer(parse_option("amplify", "#12=2.5"))
    assert (one.concept_ids, one.mai_lm_target, one.label) == ((12,), 2.5, "amplify concept 12 at 2.5")


@pytest.mark.parametrize("action", ["amplify", "suppress"])
def test_rules_start_at_the_same_layer_as_the_presets_of_python(action: Any):
    (one,) = steer(SteeringRule(action, "Poems"), config=dataclasses.replace(CONFIG, n_layers=32))
    preset = sj.SteeringConfig.injection(5) if action == "amplify" else sj.SteeringConfig.injection_relu(5)
    assert one.first_layer(32) == preset.first_layer(32) == 16


def test_a_rule_without_a_number_has_the_strength_of_the_model():
    rules = [parse_option("amplify", "Poems"), parse_option("suppress", "Email"), parse_option("amplify", "7=3")]
    labels = ["amplify Poems at 0.5", "suppress Email at 0.7", "amplify concept 7 at 3"]
    poems, email, _ = steered = steer(*rules, strengths={"amplify": 0.5, "suppress": 0.7})
    assert [one.label for one in steered] == labels
    assert (poems.mai_lm_target, email.mai_lm_target, email.relu_logit_mask) == (0.5, -0.7, {1: pytest.approx(2.0)})
    assert [one.label for one in steer(*rules[:2], strengths={"suppress": 1.0})] == [
        "amplify Poems at 8",
        "suppress Email at 1",
    ]
    (listed,) = steer(*parse_json({"amplify": ["Poems"]}), strengths={"amplify": 0.25})
    assert listed.mai_lm_target == 0.25


def test_a_strength_measured_for_the_concept_comes_before_that_of_the_model():
    names = [{"id": 0, "name": "Tides", "amplify": 0.9}, {"id": 1, "name": "Winds", "group": "air", "suppress": 0}]
    bundle = named_bundle(names, strengths={"amplify": 0.5, "suppress": 0.7})
    texts = (("amplify", "tides"), ("suppress", "tides"), ("suppress", "Winds"), ("amplify", "Tides=0.1"))
    labels = [resolved([parse_option(*text)], bundle)[0].label for text in texts]
    assert labels == [
        "amplify Tides at 0.9",
        "suppress Tides at 0.7",
        "suppress Winds at 0",
        "amplify Tides at 0.1",
    ]
    both = make_rule({"action": "amplify", "concepts": {"Tides": 1, "Winds": 1}}, "p")
    assert resolved([both], bundle)[0].mai_lm_target == 0.5  # measured for one alone


def test_names_of_discovered_concepts():
    names = [
        {"id": 0, "name": "Tides"},
        {"id": 5, "name": "self · def", "head": "discovered", "amplify": 0.3},
        {"id": 6, "name": "tides", "head": "discovered"},
        {"id": 7, "words": ["import", "from"], "head": "discovered"},
        {"id": 8, "name": "a=b", "head": "discovered"},
    ]
    bundle = named_bundle(names, strengths={"amplify": 0.5})
    for text, ids, label in (
        ("Self · def", (5,), "amplify discovered self · def at 0.3"),
        ("self def=2", (5,), "amplify discovered self · def at 2"),
        ("tides", (0,), "amplify Tides at 0.5"),  # a known concept comes first
        ("discovered:tides", (6,), "amplify discovered tides at 0.5"),
        ("Discovered: 7=1", (7,), "amplify discovered unnamed #7 “import · from” at 1"),
        ("a=b", (8,), "amplify discovered a=b at 0.5"),
    ):
        (one,) = resolved([parse_option("amplify", text)], bundle)
        assert (one.concept_ids, one.label, one.head) == (ids, label, "known" if ids == (0,) else "discovered")
    (one,) = resolved([parse_option("suppress", "self def=1")], bundle)
    assert (one.head, one.relu_logit_mask) == ("discovered", {5: pytest.approx(20 / 7)})
    (one,) = resolved([make_rule({"action": "amplify", "concept": "12", "head": "discovered"}, "p")], bundle)
    assert (one.head, one.concept_ids) == ("discovered", (12,))
    mixed = make_rule({"action": "amplify", "concepts": {"Tides": 1, "self def": 1}}, "p")
    with pytest.raises(sj.UserError, match="'self def' is a discovered concept, but a known one is needed here"):
        resolved([mixed], bundle)
    same_number = [parse_option("amplify", "0=1"), parse_option("suppress", "discovered:0=1")]
    assert [one.head for one in resolved(same_number, bundle)] == ["known", "discovered"]


def test_the_strengths_of_a_model_are_in_its_folder(tmp_path: Path):
    bundled = sj.load()
    assert 0 < bundled.strengths["amplify"] < 8  # below those of the published models
    assert 0 < bundled.strengths["suppress"] < 7
    assert sj.load(GOLDEN / "base").strengths == {}
    for text, words in (
        ('{"amplify": "1"}', "the strength of amplify is '1'; give a number"),
        ('{"amplify": -1}', "the strength of amplify is -1; give a number that is not negative"),
        ('{"amplfy": 1}', "'amplfy' is not a kind of steering with a strength; did you mean 'amplify'?"),
        ("[]", "must hold a JSON object"),
    ):
        (tmp_path / "steering.json").write_text(text)
        with pytest.raises(sj.UserError, match=r"steering\.json.*" + re.escape(words)):
            read_strengths(tmp_path)


def test_suppress_is_the_unlearn_preset_in_proportion_to_its_strength():
    (one,) = steer(parse_option("suppress", "Email"))
    assert one == dataclasses.replace(sj.SteeringConfig.injection_relu(1), label="suppress Email at 7")
    (one,) = steer(parse_option("suppress", "Email = 0.7"))
    assert (one.mai_lm_target, one.relu_logit_mask) == (-0.7, {1: pytest.approx(2.0)})


def test_groups():
    whole, with_group = steer(
        SteeringRule("suppress", group="topic"),
        SteeringRule("suppress", "Email", group="topic", strength=3.5, reason="no letters"),
    )
    assert (whole.concept_ids, whole.relu_logit_mask) == ((0, 1), {0: 10.0, 1: 10.0})
    assert (with_group.concept_ids, with_group.relu_logit_mask) == ((1, 0), {1: 10.0})
    assert with_group.label == "suppress Email with group:topic at 3.5 (no letters)"
    (amplified,) = steer(parse_option("amplify", "group:topic"))
    assert (amplified.concept_ids, amplified.label) == ((0, 1), "amplify group:topic at 8")


def test_a_rule_reaches_every_field_of_the_config():
    full = {"strength": 3, "layer": 2, "tokens": "all", "raw": True, "where": "prompt"}
    plain = {"action": "amplify", "concept": "Poems"}
    (one,) = steer(make_rule(plain | full, "p"))
    assert one == sj.SteeringConfig((5,), 3.0, False, 2, "fixed", where="prompt", label="p: amplify Poems at 3")
    (one,) = steer(make_rule(plain | {"tokens": 9}, "p"))
    assert (one.inject_alpha_schedule, one.cutoff_tokens, one.inject_layer) == ("hard_cutoff", 9, None)
    (one,) = steer(make_rule({"action": "amplify", "concepts": {"Email": 2, "Poems": -0.5}}, "p"))
    assert (one.concept_ids, one.weights, one.label) == ((1, 5), (2.0, -0.5), "p: amplify 2 Email + -0.5 Poems at 8")
    (one,) = steer(make_rule({"action": "suppress", "concept": "Poems", "strength": 0, "words": 4, "raw": False}, "p"))
    assert (one.mai_lm_target, one.normalize_mai_lm_target, one.relu_logit_mask) == (0.0, True, {5: 4.0})
    clamp = {"action": "clamp", "group": "topic", "value": 0.25, "at": [2, 5], "epsilon": "frozen", "reason": "why"}
    (one,) = steer(make_rule(clamp, "p"))
    label = "p: clamp group:topic at 0.25 (why)"
    assert one == sj.SteeringConfig(
        intervene_known={0: 0.25, 1: 0.25}, clamp_offsets=(2, 5), epsilon="frozen", label=label
    )
    with pytest.raises(sj.UserError, match=r"p: concepts are group:topic, but a weight belongs to one concept"):
        steer(make_rule({"action": "amplify", "concepts": {"group:topic": 1}}, "p"))
    reached = {name for rule in (full, clamp) for name in rule} | {"words", "concepts", "head", "concept"}
    assert reached | {"action", "origin", "option"} == {field.name for field in dataclasses.fields(SteeringRule)}


@pytest.mark.parametrize("text", ["Poems=", "Poems=lots", "Poems=-1", "Poems=nan", "Poems=inf", "Poems=1e999"])
def test_bad_strengths(text: str):
    with pytest.raises(sj.UserError, match=f"--amplify '{text}': the strength is .* not negative"):
        steer(parse_option("amplify", text))


def test_names_that_contain_an_equals_sign_are_looked_up_whole_first():
    names = [{"id": 0, "name": "x"}, {"id": 1, "name": "X=1"}, {"id": 2, "name": "a=b"}, {"id": 3, "name": "d = -2"}]
    bundle = sj.Bundle(
        CONFIG,
        {},
        IdsOnlyTokenizer(SpecialIds.last_of(64), 64),
        catalogue=make_catalogue(names, CONFIG, "list"),
    )
    for text, (concept, strength) in {
        "x=1": (1, 8.0),
        "x=1=2": (1, 2.0),
        "x=1.0": (0, 1.0),
        "x": (0, 8.0),
        "a=b": (2, 8.0),
        "a=b=0.5": (2, 0.5),
        "d = -2": (3, 8.0),
    }.items():
        (one,) = resolved([parse_option("amplify", text)], bundle)
        assert (one.concept_ids, one.mai_lm_target) == ((concept,), strength), text
    (one,) = resolved([parse_option("suppress", "A=B")], bundle)
    assert one.concept_ids == (2,)
    for text, ids in {"x=1": {0: 1.0}, "x=1=0.5": {1: 0.5}, "a=b=0": {2: 0.0}}.items():
        (one,) = resolved([parse_option("clamp", text)], bundle)
        assert one.intervene_known == ids
    names[0]["name"] = "y"
    bundle = dataclasses.replace(bundle, catalogue=make_catalogue(names, CONFIG, "list"))
    with pytest.raises(sj.UserError, match="--clamp 'x=1' names a concept, but no value; give 'x=1=1'"):
        resolved([parse_option("clamp", "x=1")], bundle)


def test_a_rule_for_a_layer_that_the_model_lacks():
    with pytest.raises(sj.UserError, match=r"p, rule 1: layer is 7, but the layers of this model are 1 to 6"):
        steer(SteeringRule("amplify", "Email", layer=7, origin="p, rule 1"))
    assert steer(SteeringRule("amplify", "Email", layer=6))[0].inject_layer == 6


def test_rules_that_contradict_each_other_are_named():
    with pytest.raises(sj.UserError, match="Email: an option says amplify, and p, rule 2 says suppress; keep one"):
        steer(SteeringRule("amplify", "1"), SteeringRule("suppress", "email", origin="p, rule 2"))
    assert len(steer(SteeringRule("amplify", "group:topic"), SteeringRule("suppress", "Email"))) == 2


def test_errors_about_unknown_names_name_the_rule():
    with pytest.raises(
        sj.UserError, match=r"^p\.toml, rule 1: There is no known concept 'Emial'; did you mean 'Email'"
    ):
        steer(*parse_policy({"rule": [{"action": "amplify", "concept": "Emial"}]}, "p.toml"))
    with pytest.raises(sj.UserError, match=r"^There is no group 'topics'"):
        steer(parse_option("suppress", "group:topics"))


POLICY = """\
[[rule]]
action = "suppress"
concept = "Email"
strength = 2
reason = "not in this handbook"

[[rule]]
action = "amplify"
concept = 5

[[rule]]
action = "amplify"
group = "topic"
"""


def test_a_policy_file(tmp_path: Path):
    (tmp_path / "house.toml").write_text(POLICY)
    assert [one.label for one in steer(*read_policy(tmp_path / "house.toml"))] == [
        "house.toml, rule 1: suppress Email at 2 (not in this handbook)",
        "house.toml, rule 2: amplify Poems at 8",
        "house.toml, rule 3: amplify group:topic at 8",
    ]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"strenght": 3}, "'strenght' is not a field of a rule; did you mean 'strength'"),
        ({"xyzzy": 3}, "'xyzzy' is not a field of a rule; valid names are action, concept, group"),
        ({"action": "amplfy"}, "action is 'amplfy'; give action = 'amplify', 'suppress' or 'clamp'"),
        ({"action": None}, "there is no action"),
        ({"action": ["amplify"]}, "action is"),
        ({"concept": None}, "concept is None"),
        ({"concept": True}, "concept is True; give a name or an id"),
        ({"concept": " "}, "concept is ' '"),
        ({"group": 3.5}, "group is 3.5; give a name"),
        ({"strength": "lots"}, "the strength is 'lots'"),
        ({"strength": True}, "the strength is True"),
        ({"strength": -1}, "the strength is -1"),
        ({"strength": 10**400}, "the strength is 1000"),
        ({"strength": 1e5}, "the strength is 100000.0; give at most 10000"),
        ({"reason": 4}, "reason is 4; give a text"),
        ({"layer": -1}, "layer is -1; give a whole number, at least 0"),
        ({"tokens": 0}, "tokens is 0; give a whole number, at least 1"),
        ({"tokens": "none"}, "tokens is 'none'"),
        ({"raw": 1}, "raw is 1; give one of False, True"),
        ({"where": "here"}, "where is 'here'; give one of 'masks', 'prompt'"),
        ({"words": 3}, "words is not a field of amplify, which has action"),
        ({"value": 3}, "value is not a field of amplify"),
        ({"concepts": {"Email": 1}}, "concepts cannot be combined with concept or group"),
        ({"action": "clamp"}, "there is no value; give the activation"),
        ({"action": "clamp", "value": "on"}, "the value is 'on'; give a number"),
        ({"action": "clamp", "value": 1, "head": "unknown"}, "head is 'unknown'; give one of 'known', 'discovered'"),
        ({"action": "clamp", "value": 1, "at": [4, 4]}, r"at is \[4, 4\]; give a start, from 0, and a later end"),
        ({"action": "clamp", "value": 1, "at": 4}, "at is 4; give a start, from 0, and a later end"),
        ({"action": "clamp", "value": 1, "epsilon": "off"}, "epsilon is 'off'; give one of 'published', 'frozen'"),
        ({"action": "clamp", "value": 1, "strength": 3}, "strength is not a field of clamp"),
    ],
)
def test_bad_rules_name_file_rule_and_field(rule: dict[str, Any], words: str):
    good = {"action": "amplify", "concept": "Email"}
    with pytest.raises(sj.UserError, match=rf"^p\.toml, rule 2: {words}"):
        parse_policy({"rule": [good, good | rule]}, "p.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no rule"),
        ("rule = 3", "there is no rule"),
        ("rule = [3]", "rule 1 is 3; give an action"),
        ("[[rules]]\naction = 'amplify'", r"'rules' is not part of a policy.*did you mean 'rule'"),
        ("[[rule]\n", "is not valid TOML"),
        ("[[rule]]\naction = 'amplify'", "rule 1: there is no concept; give a concept or a group"),
    ],
)
def test_bad_policy_files_are_named(tmp_path: Path, text: str, words: str):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(sj.UserError, match=rf"p\.toml.*{words}"):
        read_policy(tmp_path / "p.toml")


def test_policy_files_that_cannot_be_read_are_named(tmp_path: Path):
    with pytest.raises(sj.UserError, match=r"Cannot read the policy .*none\.toml"):
        read_policy(tmp_path / "none.toml")
    (tmp_path / "p.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(sj.UserError, match=r"The policy .*p\.toml is not UTF-8 text"):
        read_policy(tmp_path / "p.toml")


def test_rules_from_json():
    values = {"amplify": {"Email": 3, "Poems": None}, "suppress": ["0"], "rules": [{"action": "amplify", "concept": 7}]}
    rules = parse_json(values)
    assert rules == (
        SteeringRule("amplify", "Email", strength=3.0),
        SteeringRule("amplify", "Poems"),
        SteeringRule("suppress", "0"),
        SteeringRule("amplify", "7", origin="steering, rule 1"),
    )
    assert [one.label for one in steer(*rules)][:3] == [
        "amplify Email at 3", "amplify Poems at 8", "suppress Networking at 7",
    ]  # fmt: skip
    assert parse_json({"amplify": None}) == ()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "steering is .*; give an object"),
        ({"amplfy": {}}, "'amplfy' is not a kind of steering; did you mean 'amplify'"),
        ({"amplify": "Email"}, "amplify is 'Email'; give an object"),
        ({"amplify": {"Email": "lots"}}, "steering, amplify 'Email': the strength is 'lots'"),
        ({"amplify": {" ": 1}}, "concept is ' '"),
        ({"rules": {}, "amplify": {"x": 1}}, "have no names"),
        ({"rules": {"a": 1}}, "rules is"),
        ({"rules": [1]}, "rule 1 is 1"),
        ({"like_response": 3}, "like_response is 3; give a text"),
        ({"clamp": {"4": "on"}}, "steering, clamp '4': the value is 'on'; give a number"),
        ({"clamp": ["4"]}, r"clamp is \['4'\]; give an object"),
        ({"epsilon": "frozen"}, "clamp_at and epsilon need clamp"),
        ({"clamp": {"4": 1}, "clamp_at": [3]}, r"steering, clamp '4': at is \[3\]"),
        ({"clamp_discovered": {"4": 1}}, "alone changes nothing"),
        ({"clamp": {"4": 1, "#4": 2}}, "'clamp concept 4 at 2' clamps concept 4, as another steering does"),
        ({"like_strength": 3}, "like_strength needs like_response"),
        ({"like_response": "1 2", "like_strength": "x"}, "the strength is 'x'"),
    ],
)
def test_invalid_json_is_reported_in_one_sentence(values: Any, words: str):
    bundle = sj.load(GOLDEN / "base")
    with pytest.raises(sj.UserError, match=words):
        prepare_steering(
            bundle.params, resolved(parse_json(values), bundle), config=bundle.config, compute=bundle.compute
        )


def options(*args: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_steering_options(parser)
    return parser.parse_args(args)


def test_options_and_json_mean_the_same(tmp_path: Path):
    bundle = sj.load(GOLDEN / "base")
    (tmp_path / "answer.txt").write_text("5 9 12")
    (tmp_path / "names.json").write_text('[{"id": 3, "name": "Gardens"}]')
    (tmp_path / "p.toml").write_text("[[rule]]\naction = 'amplify'\nconcept = 'Gardens'")
    args = options(
        *("--amplify", "4=2", "--amplify", "#7", "--suppress", "9=1"),
        *("--policy", str(tmp_path / "p.toml"), "--catalogue", str(tmp_path / "names.json")),
        *("--like-response", f"@{tmp_path / 'answer.txt'}", "--like-strength", "3"),
        *("--clamp", "gardens=0.5", "--clamp", "8 = -1", "--clamp-discovered", "11=0"),
        *("--clamp-at", "0:16", "--epsilon", "frozen"),
    )
    configs = resolved(parse_steering_options(args), with_catalogue(bundle, args.catalogue))
    assert [one.describe() for one in configs[:7]] == [
        "amplify concept 4 at 2", "amplify concept 7 at 8", "suppress concept 9 at 1",
        "clamp Gardens at 0.5", "clamp concept 8 at -1", "clamp discovered concept 11 at 0",
        "p.toml, rule 1: amplify Gardens at 8",
    ]  # fmt: skip
    plan = prepare_steering(bundle.params, configs, config=bundle.config, compute=bundle.compute)
    assert plan.clamps == ClampPlan({3: 0.5, 8: -1.0}, {11: 0.0}, (0, 16), "frozen")
    rules = parse_json(
        {
            "amplify": {"4": 2, "7": None},
            "suppress": {"9": 1},
            "clamp": {"3": 0.5, "8": -1},
            "clamp_discovered": {"11": 0},
            "clamp_at": [0, 16],
            "epsilon": "frozen",
            "rules": [{"action": "amplify", "concept": 3}],
            "like_response": "5 9 12",
            "like_strength": 3,
        }
    )
    same = resolved(rules, bundle)
    assert [dataclasses.replace(one, label="") for one in same] == [
        dataclasses.replace(one, label="") for one in configs
    ]
    backbone = sj.load(GOLDEN / "backbone")
    assert resolved(parse_steering_options(options()), backbone) == ()
    with pytest.raises(sj.UserError, match="needs a model with known concepts"):
        resolved(parse_steering_options(options("--amplify", "1")), backbone)


def test_invalid_options_are_reported_in_one_sentence(tmp_path: Path):
    with pytest.raises(sj.UserError, match="--like-strength needs --like-response"):
        parse_steering_options(options("--like-strength", "3"))
    with pytest.raises(sj.UserError, match=r"Cannot read the response .*none\.txt"):
        parse_steering_options(options("--like-response", f"@{tmp_path / 'none.txt'}"))
    for args, words in (
        (("--amplify", "=3"), "names no concept"),
        (("--clamp", "3"), "does not set a concept; give NAME=1"),
        (("--clamp", "3=on"), "the value is 'on'"),
        (("--clamp-discovered", "=1"), "does not set a concept"),
        (("--clamp-at", "0:4"), "need --clamp"),
        (("--clamp", "3=1", "--clamp-at", "4"), "give START:END"),
        (("--clamp", "3=1", "--clamp-at", "4:4"), "a start, from 0, and a later end"),
    ):
        with pytest.raises(sj.UserError, match=words):
            parse_steering_options(options(*args))


def test_a_rule_needs_no_model_to_be_checked():
    assert make_rule({"action": "suppress", "concept": "any name"}, "here").concept == "any name"
    assert Catalogue((), 3).resolve("2") == (2,)
