"""Trace files: a trace is read as it was written, explains the same, and invalid files are reported in one sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import steerling_jax as sj
from steerling_jax.decoding.generation import Generation, Prompt, generate, generate_many
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.trace import Commit, Trace
from steerling_jax.decoding.trace_record import (
    Origin,
    TraceRecord,
    check,
    from_plain,
    origin_of,
    record_of,
    restore,
    to_plain,
)
from steerling_jax.errors import UserError
from steerling_jax.explain.contributions import concept_contributions
from steerling_jax.io.trace_file import model_origin, read_trace, write_trace
from steerling_jax.steering.config import SteeringConfig

GOLDEN = Path(__file__).parents[1] / "golden"
STEERING = (
    SteeringConfig((3, 7), 4.0, inject_alpha_schedule="hard_cutoff", cutoff_tokens=5, label="a label"),
    SteeringConfig(relu_logit_mask={2: 3.5}),
    SteeringConfig((9,), 2.0, where="prompt", weights=(0.5,)),
)


@pytest.fixture(scope="module")
def bundle() -> sj.Bundle:
    return sj.load(GOLDEN / "base")


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return Prompt([1, 2, 3], GenerationConfig(max_new_tokens=32, seed=4, steps=16), STEERING)


@pytest.fixture(scope="module")
def written(bundle: sj.Bundle, prompt: Prompt) -> Generation:
    return generate(bundle, prompt.text_or_ids, prompt.config, prompt.steering)


@pytest.fixture(scope="module")
def record(bundle: sj.Bundle, prompt: Prompt, written: Generation) -> TraceRecord:
    return record_of(bundle, model_origin(bundle), prompt, written)


def same(a: TraceRecord, b: TraceRecord) -> None:
    """Compares all but the trace's plan and hidden states, which files omit."""
    for name in ("prompt", "tokens"):
        np.testing.assert_array_equal(getattr(a.trace, name), getattr(b.trace, name))
    left, right = (
        dataclasses.replace(one, trace=(one.trace.commits, one.trace.mask_id, one.trace.guidance, one.trace.passes))  # pyright: ignore[reportArgumentType]
        for one in (a, b)
    )
    assert left == right


NUMBERS = st.floats(-1e4, 1e4, width=32)
IDS = st.dictionaries(st.integers(0, 99), NUMBERS, max_size=3)


@st.composite
def steerings(draw: st.DrawFn) -> SteeringConfig:
    ids = tuple(draw(st.lists(st.integers(0, 99), max_size=3)))
    weights = draw(st.none() | st.tuples(*[st.floats(0.1, 1e4) for _ in ids]))
    return SteeringConfig(
        ids,
        draw(NUMBERS),
        draw(st.booleans()),
        draw(st.none() | st.integers(0, 9)),
        draw(st.sampled_from(["fixed", "hard_cutoff"])),
        draw(st.integers(1, 99)),
        draw(st.none() | IDS),
        weights if ids else None,
        draw(st.sampled_from(["masks", "prompt"])),
        draw(st.none() | IDS),
        draw(st.none() | IDS),
        draw(st.none() | st.just((2, 5))),
        draw(st.sampled_from(["published", "frozen"])),
        draw(st.text(max_size=9)),
    )


@st.composite
def records(draw: st.DrawFn) -> TraceRecord:
    ids = st.integers(0, 2**31 - 1)
    before = draw(st.lists(ids, min_size=1, max_size=5))
    places = draw(st.permutations(range(len(before), len(before) + draw(st.integers(1, 9)))))
    commits, step, canvas = [], 0, [*before, *[7] * len(places)]
    while places:
        count = draw(st.integers(1, len(places)))
        tokens = draw(st.lists(ids, min_size=count, max_size=count))
        for place, token in zip(places, tokens):
            canvas[place] = token
        logits = draw(
            st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=count, max_size=count)
        )
        commits.append(Commit(step, tuple(places[:count]), tuple(tokens), tuple(logits)))
        places, step = places[count:], step + draw(st.integers(1, 3))
    generation = draw(
        st.none()
        | st.builds(
            GenerationConfig,
            max_new_tokens=st.integers(1, 99),
            steps=st.none() | st.integers(1, 99),
            temperature=st.just(0.0) | st.floats(0.01, 99),
            cfg_scale=st.floats(0, 99),
            seed=st.none() | st.integers(0, 99),
            stop_tokens=st.none() | st.tuples(ids),
        )
    )
    text = st.text(max_size=20) | st.just("\udc80 \u2028 </script>")
    trace = Trace(
        np.asarray(before, np.int32),
        np.asarray(canvas, np.int32),
        tuple(commits),
        draw(ids),
        guidance=0.0 if generation is None else generation.cfg_scale,
        passes=draw(st.integers(0, 99)),
    )
    origin = Origin(
        draw(text),
        "0" * 16,
        "1" * 64,
        "bfloat16",
        draw(st.none() | st.just("bfloat16")),
        draw(st.none() | st.just({"documents": 3, "documents_sha256": "2" * 64})),
    )
    return TraceRecord(
        trace,
        origin,
        draw(text),
        draw(text),
        generation,
        draw(st.none() | st.integers(0, 2**32 - 1)),
        tuple(draw(st.lists(steerings(), max_size=2))),
        draw(st.dictionaries(text, text, max_size=2)),
    )


@given(records())
@settings(deadline=None, max_examples=100)
def test_what_is_read_is_what_was_written(tmp_path_factory: pytest.TempPathFactory, record: TraceRecord):
    path = tmp_path_factory.getbasetemp() / "trace.json"
    write_trace(path, record)
    found = read_trace(path)
    same(found, record)
    assert to_plain(found) == to_plain(record)


def test_a_file_explains_as_much_as_the_generation(
    bundle: sj.Bundle, written: Generation, record: TraceRecord, tmp_path: Path
):
    write_trace(tmp_path / "t.json", record)
    found = read_trace(tmp_path / "t.json")
    assert found.trace.hidden is None
    trace = restore(found, bundle)
    assert trace.plan is not None
    assert written.trace.plan is not None
    for step in range(16):
        tables = (one.injected(step, bundle.config.n_layers, bundle.config.n_embd) for one in (trace, written.trace))
        for ours, theirs in zip(*tables, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(trace.plan.suppression, written.trace.plan.suppression)
    assert trace.plan.labels == written.trace.plan.labels
    before, after = concept_contributions(bundle, written.trace), concept_contributions(bundle, trace)
    np.testing.assert_array_equal(before.known_ids, after.known_ids)
    np.testing.assert_allclose(before.known_contributions, after.known_contributions, rtol=0, atol=2e-5)
    assert after.error.max() < 1e-4


def test_one_of_many_has_the_same_record(bundle: sj.Bundle, prompt: Prompt, record: TraceRecord):
    others = [Prompt([5, 9], GenerationConfig(max_new_tokens=16, seed=1)), prompt]
    found = dict(generate_many(bundle, others, rows=2))
    one, alone = (to_plain(r) for r in (record_of(bundle, model_origin(bundle), prompt, found[1]), record))
    for ours, theirs in zip(one.pop("commits"), alone.pop("commits"), strict=True):
        logits, wanted = ours.pop("target_logits"), theirs.pop("target_logits")
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4)
        assert ours == theirs
    assert one == alone


def test_the_bundled_model_names_its_training_texts():
    bundle = sj.load()
    found = model_origin(bundle)
    assert found.corpus is not None
    documents = json.loads((bundle.folder / "documents.json").read_text())["documents"]  # pyright: ignore[reportOptionalOperand]
    assert found.corpus["documents"] == sum(one["split"] == "train" for one in documents)
    assert len(found.corpus["documents_sha256"]) == 64


def plain(record: TraceRecord, **changes: Any) -> dict[str, Any]:
    return to_plain(record) | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "steerling-explanation"}, "t.json is no trace"),
        ({"version": 3}, "a trace of version 3, and this program reads up to 2; update it"),
        ({"version": "1"}, "has the version '1'"),
        ({"commits": []}, "no commits, an empty generation"),
        ({"prompt": []}, "its prompt is empty"),
        ({"prompt": [1, 2, 4]}, "its tokens do not begin with its prompt"),
        ({"tokens": [1, 2, 3]}, "its tokens do not begin with its prompt"),
        ({"mask_id": 1.5}, "mask_id is 1.5"),
        ({"text": None}, "text is None"),
        ({"tokens": 7}, "a field has a wrong type"),
        ({"model": {"name": "x"}}, "a field has a wrong type"),
        ({"generation": {"max_new_tokens": 0}}, "max_new_tokens is 0"),
        ({"generation": {"heat": 0}}, "'heat' is not a field of GenerationConfig"),
        ({"steering_configs": [{"where": "nowhere"}]}, "where is 'nowhere'"),
    ],
)
def test_bad_fields_are_reported(record: TraceRecord, changes: dict[str, Any], words: str):
    with pytest.raises(UserError, match=r"^t\.json ") as raised:
        from_plain(plain(record, **changes), "t.json")
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step": 99}, "step 1 comes after step 99"),
        ({"positions": [5, 6, 7]}, "step 0 has lists of different lengths"),
        ({"target_logits": [1.0, float("nan")]}, "a target logit of step 0 is no finite number"),
        ({"positions": ["5", 6]}, "positions is '5'"),
    ],
)
def test_bad_commits_are_reported(record: TraceRecord, changes: dict[str, Any], words: str):
    value = plain(record)
    value["commits"][0] |= changes
    with pytest.raises(UserError) as raised:
        from_plain(value, "t.json")
    assert words in str(raised.value)


def test_missing_fields_and_truncated_files_are_reported(record: TraceRecord, tmp_path: Path):
    path = tmp_path / "t.json"
    write_trace(path, record)
    whole = path.read_bytes()
    later = {"catalogue", "index", "versions"}  # which records of earlier versions do not have
    for name in plain(record).keys() - {"steering"} - later:  # steering: labels, for people
        value = plain(record)
        del value[name]
        with pytest.raises(UserError):
            from_plain(value, "t.json")
    for size in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"t\.json is not a trace, or it is truncated"):
            read_trace(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"t\.json is not UTF-8 text"):
        read_trace(path)
    with pytest.raises(UserError, match="Cannot read the trace"):
        read_trace(tmp_path / "none.json")


def test_other_models_and_contradictions_are_reported(bundle: sj.Bundle, record: TraceRecord):
    check(record, bundle)
    with pytest.raises(UserError, match=r"The trace is of the model .*base.*, not of .*instruct.*; give that model"):
        check(record, sj.load(GOLDEN / "instruct"))
    params = bundle.params | {"tok_emb": {"weight": bundle.params["tok_emb"]["weight"] * 1.5}}
    with pytest.raises(UserError, match="not of"):
        check(record, dataclasses.replace(bundle, params=params))

    def changed(**fields: Any) -> TraceRecord:
        return dataclasses.replace(record, trace=dataclasses.replace(record.trace, **fields))

    first = record.trace.commits[0]
    outside = first._replace(positions=(2, *first.positions[1:]))
    with pytest.raises(UserError, match="single positions from 3 to 34"):
        check(changed(commits=(outside, *record.trace.commits[1:])), bundle)
    other = first._replace(token_ids=tuple(i ^ 1 for i in first.token_ids))
    with pytest.raises(UserError, match="its commits do not write what stands at position"):
        check(changed(commits=(other, *record.trace.commits[1:])), bundle)
    with pytest.raises(UserError, match="another model: its mask id"):
        check(changed(mask_id=5), bundle)
    with pytest.raises(UserError, match="not in the vocabulary"):
        check(changed(tokens=np.where(np.arange(35) == 20, 10**6, record.trace.tokens)), bundle)


def test_what_cannot_be_recorded_is_reported(bundle: sj.Bundle, prompt: Prompt, written: Generation, tmp_path: Path):
    planned = dataclasses.replace(prompt, steering=written.trace.plan)
    with pytest.raises(UserError, match="steered by a SteeringPlan cannot be recorded"):
        record_of(bundle, origin_of(bundle), planned, written)
    commits = (written.trace.commits[0]._replace(target_logits=(float("nan"), 1.0)), *written.trace.commits[1:])
    broken = dataclasses.replace(written, trace=dataclasses.replace(written.trace, commits=commits))
    with pytest.raises(UserError, match=r"is nan: the weights of .*base' are damaged"):
        write_trace(tmp_path / "t.json", record_of(bundle, origin_of(bundle), prompt, broken))
    assert list(tmp_path.iterdir()) == []


def test_a_turn_that_ended_is_no_contradiction(bundle: sj.Bundle, prompt: Prompt, record: TraceRecord):
    """Tokens after an end of turn are overwritten on the canvas, but stay in the commits."""
    flat = list(record.trace.flat())
    # A token to the left of one that was there before it.
    eot = next(
        token
        for i, (_, position, token, _) in enumerate(flat)
        if max((p for _, p, _, _ in flat[:i]), default=0) > position and token not in [t for _, _, t, _ in flat[:i]]
    )
    ended = dataclasses.replace(bundle.config, instruct=True, eot_id=eot)
    other = dataclasses.replace(bundle, config=ended)
    found = generate(other, prompt.text_or_ids, prompt.config, prompt.steering)
    after = [p for _, p, token, _ in found.trace.flat() if found.tokens[p] != token]
    assert after
    assert (found.tokens[after] == ended.eos_token_id).all()
    check(record_of(other, origin_of(other), prompt, found), other)
