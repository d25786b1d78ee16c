"""The steering evaluation: measures on cases that one can follow by hand, and on a corpus with planted concepts."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from steerling_jax.bundle import Bundle
from steerling_jax.cli.main import main
from steerling_jax.concepts.lift import lifted_tokens, set_log_probability, unrelated
from steerling_jax.corpus.bags import Bags
from steerling_jax.decoding.generation import Generation
from steerling_jax.errors import UserError
from steerling_jax.evaluation.intervals import bootstrap_mean
from steerling_jax.evaluation.text_metrics import distinct, repeated
from steerling_jax.infer import steer_eval_command as command
from steerling_jax.infer.steer_eval.judge import Judge, best_threshold, train_judge
from steerling_jax.infer.steer_eval.measure import MeasuredText, generate_texts, measure
from steerling_jax.infer.steer_eval.plot import plot
from steerling_jax.infer.steer_eval.prompts import HeldOutChunks, Opening
from steerling_jax.infer.steer_eval.random_control import random_control
from steerling_jax.infer.steer_eval.report import flat, overall, render, summarise
from steerling_jax.infer.steer_eval.text_specs import (
    AGAIN,
    AMPLIFY,
    CONCEPT,
    NOTHING,
    RANDOM,
    SUPPRESS,
    SUPPRESSED,
    WORDS,
    Condition,
    SteerEvalSettings,
    TextSpec,
    make_text_specs,
)
from steerling_jax.inference import forward
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.corpus.writer import corpus_writer
from steerling_jax.io.pictures import check_plot
from steerling_jax.io.weights.published_writer import write_published
from steerling_jax.models.compute import Compute
from steerling_jax.models.families import init_params
from steerling_jax.models.steerling.backbone import lm_head_weight
from steerling_jax.steering.config import SteeringConfig
from steerling_jax.steering.features import FeatureSteering
from steerling_jax.steering.plan import prepare_steering
from steerling_jax.tokenizer import IdsOnlyTokenizer, SpecialIds
from tests.worlds.small_decoder import small_config
from tests.worlds.steering_world import COMMON, C, N, V, make_bundle, make_store, words_of

SETTINGS = SteerEvalSettings(strengths=(2.0, 8.0), samples=3, new_tokens=N, seed=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    return make_store(tmp_path_factory.mktemp("corpus") / "store")


@pytest.fixture(scope="module")
def judge(store: CorpusStore) -> Judge:
    return train_judge(store, C, [], N)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make_bundle()


@pytest.fixture(scope="module")
def specs(bundle: Bundle, store: CorpusStore, judge: Judge) -> list[TextSpec]:
    held = HeldOutChunks.read(store, C)
    return make_text_specs(bundle.tokenizer, held, judge, [1, 4], dict.fromkeys(range(C), ""), SETTINGS)


def test_repetition_by_hand():
    assert distinct([1, 2, 1, 2, 1], 1) == 2 / 5
    assert distinct([1, 2, 1, 2, 1], 2) == 2 / 4
    assert repeated([1, 2, 1, 2, 1], 3) == 2 / 3  # 121 twice, 212 once
    assert repeated([1, 2, 3, 4], 2) == 0
    assert repeated([7] * 9, 3) == 1
    assert distinct([1], 2) is None
    assert repeated([], 1) is None


def test_lift_by_hand():
    # The concept's chunks are the first two: 6 of 12 tokens. Id 5 occurs there 3 times of 4, id 7 once of once.
    bags = Bags(np.array([[5, 5, 1], [5, 7, 1], [1, 1, 5], [1, 2, 3]], np.int32))
    positive = np.array([[True], [True], [False], [False]])
    (found,) = lifted_tokens(bags, positive, 9, support=1, least=1.2, most=9)
    assert dict(zip(found.tokens.tolist(), found.lift)) == pytest.approx({7: 2.0, 5: (3 / 6) / (4 / 12)})
    (found,) = lifted_tokens(bags, positive, 9, support=2, least=0.5, most=9)
    assert found.tokens.tolist() == [5, 1]  # 7 is in one chunk only
    (found,) = lifted_tokens(bags, positive, 9, support=1, least=0.0, most=1, without={7})
    assert found.tokens.tolist() == [5]


def test_unrelated_by_hand():
    positive = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 1], [0, 0, 0]], bool)
    expected = [[False, False, True], [False, False, True], [True, True, False]]  # 0 and 2: 1 together, as expected
    assert unrelated(positive).tolist() == expected


def test_set_log_probability_is_the_softmax_summed(bundle: Bundle):
    result = forward(bundle, [[1, 2, 3, 63, 63]])
    suppression = np.zeros(V, np.float32)
    suppression[:5] = 3.0
    members = np.zeros(V, bool)
    members[[2, 9, 30]] = True
    hidden = result.decomposition.hidden[0]
    found = set_log_probability(
        bundle.params, hidden, members, suppression, config=bundle.config, compute=bundle.compute
    )
    p = np.asarray(jax.nn.softmax(result.logits[0] - suppression[None, :], axis=-1), np.float64)
    np.testing.assert_allclose(found, np.log(p[:, [2, 9, 30]].sum(axis=1)), rtol=1e-4)


def test_bootstrap():
    key = jax.random.key(0)
    draw = np.random.default_rng(0)
    groups = [draw.normal(0, 1, 200), draw.normal(4, 1, 50)]
    found = bootstrap_mean(groups, key)
    assert found is not None
    assert found.mean == pytest.approx((groups[0].mean() + groups[1].mean()) / 2)  # of groups, however large each is
    error = math.sqrt(1 / 200 + 1 / 50) / 2
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.2)
    assert bootstrap_mean([np.array([2.0, math.nan]), np.array([math.nan])], key) == (2.0, 2.0, 2.0, 1)
    assert bootstrap_mean([np.array([math.nan]), np.zeros(0)], key) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "steering", [SteeringConfig((1, 2), 8.0), SteeringConfig.injection_relu(3), SteeringConfig.injection(0)]
)
def test_random_control_is_of_equal_norm(bundle: Bundle, dtype, steering: SteeringConfig):
    compute = Compute(dtype=dtype)
    plan = prepare_steering(bundle.params, steering, config=bundle.config, compute=compute)
    controls = [random_control(plan, jax.random.key(i), params=bundle.params, compute=compute) for i in (0, 0, 1)]
    first, again, other = (control.tables(0, bundle.config.n_layers)[0] for control in controls)
    tables = plan.tables(0, bundle.config.n_layers)[0]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), np.linalg.norm(tables, axis=1), rtol=1e-2)
    for control in controls:
        norms = jnp.linalg.norm(control.suppression), jnp.linalg.norm(plan.suppression)
        np.testing.assert_allclose(*norms, rtol=1e-5)
        assert control.next_change(0) == plan.next_change(0)
    if plan.parts:
        cosine = [np.sum(a * b) / np.linalg.norm(tables) ** 2 for a, b in ((first, tables), (first, other))]
        assert np.max(np.abs(cosine)) < 0.8
    if steering.relu_logit_mask:
        direction = controls[0].parts[0].direction
        aligned = np.asarray(lm_head_weight(bundle.params)) @ direction
        assert np.corrcoef(np.maximum(aligned, 0), controls[0].suppression)[0, 1] > 0.99


def test_random_control_of_features_is_of_equal_norm():
    """Also in a model without concepts, whose output projection has another place."""
    config = small_config()
    params, compute = init_params(config, jax.random.key(0)), Compute()
    feature = FeatureSteering(3, 2.0, 1, (3.0, 4.0, *[0.0] * (config.width - 2)), label="it")
    plan = prepare_steering(params, [feature], config=config, compute=compute)
    first, again, other = (random_control(plan, jax.random.key(i), params=params, compute=compute) for i in (0, 0, 1))
    assert first.features == again.features
    assert first.features != other.features
    (control,) = first.features
    assert (control.feature, control.alpha, control.layer, control.label) == (3, 2.0, 1, "random, as it")
    assert np.linalg.norm(control.direction) == pytest.approx(5.0, rel=1e-5)
    cosine = np.dot(control.direction, feature.direction) / 25
    assert abs(cosine) < 0.9


def test_judge_knows_what_was_planted(judge: Judge):
    assert judge.concepts.tolist() == list(range(C))
    for concept in range(C):
        assert sorted(judge.lifted[concept].tokens.tolist()) == words_of(concept)
    assert judge.recall.min() > 0.95
    assert judge.false_alarm.max() < 0.02
    draw = np.random.default_rng(1)
    common = Bags(draw.choice(COMMON, (400, N)).astype(np.int32))
    assert (judge.score(common) > judge.threshold).mean() < 0.01
    assert len(judge.choose(3)) == 3
    assert set(judge.choose(50)) == set(range(C))


def test_best_threshold():
    scores, positive = np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, False, True, False])
    assert best_threshold(scores, positive) == 1.5
    assert best_threshold(scores, np.array([True, True, False, False])) == 0.5  # 2 of 3 found are right, and all found
    assert best_threshold(scores, np.ones(4, bool)) == 0.0
    assert best_threshold(scores, np.zeros(4, bool)) == math.inf


def test_openings(store: CorpusStore):
    held = HeldOutChunks.read(store, C)
    found = list(held.without(2, N, (0, 2)))
    assert len(found) > 10
    for opening in found:
        record = next(d for d in store.documents if d.name == opening.document)
        assert record.split == "heldout"
        ids = [*opening.ids, *opening.continuation]
        assert ids == store.tokens(record.start, record.start + len(ids)).tolist()
        assert len(opening.continuation) == N
        first, last = store.chunks_between(record.start, record.end)
        labels = [label for i in range(first, last) for label in store.chunk(i).labels]
        assert 2 not in labels
        assert set(opening.own) <= set(labels)
    found = list(held.having(2, N, (0, 2)))
    documents = [opening.document for opening in found]
    assert len(found) == held.positive[:, 2].sum()
    assert len(set(documents)) == len(set(documents[: len(set(documents))]))  # each document once, before any again
    assert all(set(words_of(2)) & {*opening.ids[-12:], *opening.continuation[:12]} for opening in found)
    assert all(2 in opening.own for opening in found)
    assert list(held.having(2, N, (0, 2))) == found
    assert list(held.having(2, N, (1, 2))) != found


def test_text_specs(bundle: Bundle, judge: Judge, specs: list[TextSpec]):
    assert len(specs) == 2 * 3 * (3 + 2 * 2 + 4)
    for spec in specs:
        twins = [
            j
            for j in specs
            if (j.condition.arm, j.concept, j.sample) == (spec.condition.arm, spec.concept, spec.sample)
        ]
        assert {j.opening for j in twins} == {spec.opening}
        assert {j.seed == spec.seed for j in twins if j.condition.name != AGAIN} == {spec.condition.name != AGAIN}
        assert judge.finds(spec.concept, spec.opening.continuation) == (spec.condition.arm == SUPPRESS)
        prompt = spec.prompt(bundle.config, N)
        expected = list(spec.opening.ids)
        if spec.condition.name == WORDS:
            bos, words, end = bundle.config.bos_token_id, words_of(spec.concept), bundle.config.endofchunk_token_id
            assert (prompt[0], sorted(prompt[1:5]), prompt[5]) == (bos, words, end)
            prompt = [bos, *prompt[6:]]
        assert prompt == expected
        plan = spec.plan(bundle)
        assert (plan is not None) == (spec.condition.name in (CONCEPT, RANDOM, SUPPRESSED))
    doses = [
        j.plan(bundle)
        for j in specs
        if (j.condition.name, j.condition.arm, j.concept, j.sample) == (RANDOM, AMPLIFY, 1, 0)
    ]
    suppressed = [j for j in specs if j.condition.name == SUPPRESSED and (j.concept, j.sample) == (1, 0)]
    assert [j.condition.strength for j in suppressed] == [None]
    whole, tenth = (
        dataclasses.replace(suppressed[0], condition=Condition(SUPPRESS, SUPPRESSED, strength)).plan(bundle)
        for strength in (None, 0.7)
    )
    assert whole is not None
    assert tenth is not None
    assert whole.parts[0].alpha == pytest.approx(10 * tenth.parts[0].alpha)
    np.testing.assert_allclose(whole.suppression, 10 * tenth.suppression, rtol=1e-5)
    assert len(doses) == 2
    low, high = (dose.parts[0] for dose in doses if dose is not None)
    np.testing.assert_array_equal(low.direction, high.direction)
    assert high.alpha == pytest.approx(4 * low.alpha)


def test_a_corpus_without_what_is_needed_is_refused(bundle: Bundle, store: CorpusStore, judge: Judge, tmp_path: Path):
    held = HeldOutChunks.read(store, C)
    everywhere = dataclasses.replace(held, positive=np.ones_like(held.positive))
    with pytest.raises(UserError, match="No held-out document without 'Concept 4' has 32 tokens"):
        make_text_specs(bundle.tokenizer, everywhere, judge, [4, 1], dict.fromkeys(range(C), ""), SETTINGS)
    concepts = [{"id": 0, "name": "Concept 0", "group": "test", "description": ""}]
    tokenizer = IdsOnlyTokenizer(SpecialIds.last_of(V), V)
    with corpus_writer(tmp_path / "store", tokenizer, concepts=concepts, source={"kind": "test"}) as writer:
        writer.add(name="one", source="test", sha256="0" * 64, split="train", chunks=[([1, 2, 3], [0])])
    with pytest.raises(UserError, match="has no held-out documents"):
        train_judge(CorpusStore(tmp_path / "store"), 1, [], N)


def test_prefix_is_cut_where_the_context_has_no_room(bundle: Bundle):
    spec = TextSpec(Condition(AMPLIFY, WORDS), 0, 0, Opening("d", (61, 5, 6), (), ()), 0, tuple(range(60)))
    assert len(spec.prompt(bundle.config, 16)) == 64 - 16


def planted_generation(specs: list[TextSpec], obeys: bool):
    """A stand-in for `generate_many`. If the model `obeys`, texts contain the concept's words exactly where steering
    should lead to them, otherwise common words; texts with the concept unsteered have it under random steering too."""

    def generate(bundle: Bundle, prompts) -> Iterator[tuple[int, Generation]]:
        order = list(enumerate(prompts))
        draw = np.random.default_rng(0)
        for number, prompt in reversed(order):  # the order of results is not that of prompts
            spec = specs[number]
            arm, name, _ = spec.condition
            has = (name == CONCEPT and obeys) if arm == AMPLIFY else not (name == SUPPRESSED and obeys)
            ids = draw.choice(words_of(spec.concept) if has else list(COMMON), N)
            hidden = 9.0 * has * np.asarray(lm_head_weight(bundle.params))[ids]
            tokens = np.concatenate([prompt.text_or_ids, ids])
            start = len(prompt.text_or_ids)
            commits = [(i, start + i, int(token), 0.0) for i, token in enumerate(ids)]
            trace = SimpleNamespace(prompt_length=start, hidden=hidden, flat=lambda commits=commits: commits)
            yield number, Generation("", tokens, N, trace, spec.seed)  # type: ignore[arg-type]

    return generate


def figures(bundle: Bundle, judge: Judge, specs: list[TextSpec], obeys: bool) -> tuple[list[MeasuredText], dict]:
    generated = generate_texts(bundle, judge, specs, SETTINGS, generate=planted_generation(specs, obeys))
    assert [text.spec for text in generated] == specs
    texts = measure(bundle, judge, generated)
    found = overall(summarise(texts, 0))
    return texts, {condition: {name: e.mean for name, e in row.items()} for condition, row in found.items()}


def test_perfect_steering_and_none(bundle: Bundle, judge: Judge, specs: list[TextSpec]):
    _, perfect = figures(bundle, judge, specs, obeys=True)
    _, none = figures(bundle, judge, specs, obeys=False)
    steered, suppressed = Condition(AMPLIFY, CONCEPT, 8.0), Condition(SUPPRESS, SUPPRESSED)
    assert perfect[steered]["found"] == 1
    assert perfect[steered]["score_gain"] > 3
    assert perfect[steered]["lifted_gain"] > 1
    assert perfect[suppressed]["found"] == perfect[suppressed]["still_found"] == 0
    assert none[steered]["found"] < 0.2
    assert none[steered]["lifted_gain"] == 0
    assert none[suppressed]["still_found"] == 1
    for found in (perfect, none):
        assert (
            found[Condition(AMPLIFY, NOTHING)]["lifted_gain"]
            == found[Condition(AMPLIFY, NOTHING)]["others_change"]
            == found[Condition(AMPLIFY, NOTHING)]["own_change"]
            == 0
        )
        assert found[Condition(AMPLIFY, RANDOM, 8.0)]["found"] < 0.2
        assert found[Condition(SUPPRESS, NOTHING)]["found"] == found[Condition(SUPPRESS, RANDOM)]["still_found"] == 1
        assert found[Condition(SUPPRESS, AGAIN)]["still_found"] == 1
        assert found[steered]["nats_per_token"] == pytest.approx(math.log(V), rel=0.5)  # fresh parameters


def test_rows_for_programs(bundle: Bundle, judge: Judge, specs: list[TextSpec]):
    texts, found = figures(bundle, judge, specs, obeys=True)
    rows = list(flat(summarise(texts, 0), {1: "one", 4: "four"}))
    steered = [r for r in rows if (r["condition"], r["strength"], r["figure"]) == (CONCEPT, 2.0, "distinct_1")]
    by_concept = {row["concept"]: row for row in steered}
    assert set(by_concept) == {"", "one", "four"}
    assert by_concept[""]["mean"] == found[Condition(AMPLIFY, CONCEPT, 2.0)]["distinct_1"]
    assert by_concept[""]["mean"] == pytest.approx((by_concept["one"]["mean"] + by_concept["four"]["mean"]) / 2)
    assert by_concept[""]["texts"] == 6
    assert all(row["low"] <= row["mean"] <= row["high"] for row in rows)
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(render(summarise(texts, 0), {1: "one", 4: "four"}))
    lines = console.export_text().splitlines()
    shown = next(line for line in lines if line.startswith("concept at 8")).split()
    assert shown[3:5] == [f"{found[Condition(AMPLIFY, CONCEPT, 8.0)][name]:.2f}" for name in ("lifted_gain", "found")]
    last = next(line for line in lines if line.startswith("four"))
    assert last.split() == ["four", "0.00", "0.00", "1.00", "0.00", "1.00", "0.00"]


def test_the_same_figures_give_the_same_plot(bundle: Bundle, judge: Judge, specs: list[TextSpec], tmp_path: Path):
    texts, _ = figures(bundle, judge, specs, obeys=True)
    drawn = overall(summarise(texts, 0))
    for name in ("a.svg", "b.svg", "c.png"):
        check_plot(tmp_path / name)
        plot(drawn, tmp_path / name, "title")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_needs_matplotlib(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"must end in \.svg"):
        check_plot(Path("figures.txt"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="steerling-jax\\[plot\\]"):
        check_plot(Path("figures.svg"))


@pytest.fixture(scope="module")
def model(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_published(folder, bundle.config, bundle.params)
    return folder


@pytest.mark.slow
def test_command(model: Path, store: CorpusStore, tmp_path: Path, capsys: pytest.CaptureFixture):
    line = ["steer-eval", "--model", str(model), "--corpus", str(store.folder), "--strengths", "4", "--samples", "1"]
    line += ["--suppress-strengths", "0.7,0.1"]
    line += ["--max-new-tokens", "8", "--concepts", "concept 5,Concept 2"]
    assert main([*line, "--json", "--csv", str(tmp_path / "f.csv"), "--plot", str(tmp_path / "f.svg")]) == 0
    output = json.loads(capsys.readouterr().out)
    assert [concept["name"] for concept in output["concepts"]] == ["Concept 5", "Concept 2"]
    assert len(output["texts"]) == 2 * (3 + 2 + 4 + 2)
    assert output["settings"] == {
        "strengths": [4.0],
        "samples": 1,
        "new_tokens": 8,
        "seed": 0,
        "suppress_strengths": [0.1, 0.7],
        "own": False,
    }
    with (tmp_path / "f.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(output["figures"])
    assert [float(row["mean"]) for row in rows] == [row["mean"] for row in output["figures"]]
    assert "</svg>" in (tmp_path / "f.svg").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--strengths", "2,x"], "--strengths is '2,x'"),
        (["--suppress-strengths", "x"], "--suppress-strengths is 'x'"),
        (["--strengths", "0"], "a strength must be above 0"),
        (["--samples", "0"], "--samples is 0, but it must be a whole number of at least 1"),
        (["--concepts", "0"], "--concepts is 0"),
        (["--concepts", "Concept"], "did you mean 'Concept"),
        (["--concepts", "zebra"], "'zebra', which the corpus does not have"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0, but it must be at least 1"),
        (["--max-new-tokens", "40"], "give at most 32"),
        (["--plot", "figures.txt"], "--plot is figures.txt"),
        (["--corpus", "nowhere"], "There is no corpus at nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(
    options: list[str],
    words: str,
    model: Path,
    store: CorpusStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    corpus = [] if "--corpus" in options else ["--corpus", str(store.folder)]
    assert main(["steer-eval", "--model", str(model), *corpus, *options]) == 2
    output = capsys.readouterr().err
    assert words in output
    assert output.count("\n") == 1


def test_other_concepts_are_refused(bundle: Bundle, store: CorpusStore):
    with pytest.raises(UserError, match=r"Concept 0 of the corpus .* is 'Concept 0', but not that of this model"):
        command.check_concepts(SimpleNamespace(**vars(bundle) | {"concept_names": ("cats",) * C}), store)  # type: ignore[arg-type]
    assert command.check_concepts(bundle, store) == C
