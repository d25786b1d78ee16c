"""Output formats of an explanation: document, tables, graph and page contain the attribution's values."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import steerling_jax as sj
from steerling_jax.attribution.index.evidence import Evidence, Hit
from steerling_jax.attribution.trace.document import INPUTS, make_document
from steerling_jax.attribution.trace.explanation import ExplainedChunk, Explanation, explain
from steerling_jax.attribution.trace.graph import make_graph
from steerling_jax.attribution.trace.tables import check_folder, make_tables, write_tables
from steerling_jax.attribution.trace.terminal import accuracy_note, render
from steerling_jax.decoding.generation import Prompt, generate
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.trace_record import TraceRecord, record_of
from steerling_jax.explain.contributions import Contributions
from steerling_jax.explain.given_text import given_trace
from steerling_jax.explain.inputs.targets import TokenAboveMean, TokenLogit
from steerling_jax.explain.logit_shares import REFERENCES, Reference
from steerling_jax.explain.ranking import ChunkRanking, split_by_sign
from steerling_jax.inference import forward
from steerling_jax.io.trace_file import model_origin
from steerling_jax.steering.config import SteeringConfig

HERE = Path(__file__).parents[1]
NASTY = "</script><img src=x onerror=alert(1)>{{data}}&amp;\u2028'\""


def shares_of(explanation: Explanation) -> Contributions:
    """The shares of an explanation of a model with concepts."""
    assert explanation.shares is not None
    return explanation.shares


def ranking_of(chunk: ExplainedChunk) -> ChunkRanking:
    assert chunk.ranking is not None
    return chunk.ranking


@pytest.fixture(scope="module")
def bundle(text_model: Path) -> sj.Bundle:
    return sj.load(text_model)


def evidence(tokens: np.ndarray, start: int, end: int) -> Evidence:
    hit = Hit("verbatim", 4.0, 7, 2, NASTY, "docs", "0" * 64, 30, 34, 3, f"hit {NASTY}", (start, start + 4))
    other = dataclasses.replace(hit, value=2.0, source="code")
    return Evidence(start, end, (hit, other), {"verbatim": 1.0, "signature": 0.5}, {"verbatim": 4.0, "signature": 0.25})


@pytest.fixture(scope="module")
def explanation(bundle: sj.Bundle) -> Explanation:
    """Sampled, steered text after a prompt that tries to escape from the page's data."""
    prompt = Prompt("return </script>", GenerationConfig(max_new_tokens=32, seed=3), SteeringConfig((1,), 3.0))
    written = generate(bundle, prompt.text_or_ids, prompt.config, prompt.steering)
    record = record_of(bundle, model_origin(bundle), prompt, written)
    return explain(bundle, dataclasses.replace(record, prompt_text=NASTY), find_evidence=evidence)


@pytest.fixture(scope="module")
def document(explanation: Explanation) -> dict[str, Any]:
    return make_document(explanation, 3)


@pytest.fixture(scope="module")
def graph(bundle: sj.Bundle, explanation: Explanation) -> dict[str, Any]:
    return make_graph(bundle, explanation)


def test_parts_of_every_token_sum_to_its_centred_logit(document: dict[str, Any], explanation: Explanation):
    assert explanation.inputs is not None
    assert document["reference"] == "vocabulary"
    assert len(document["tokens"]) == 32
    for row, token in enumerate(document["tokens"]):
        parts = [entry["contribution"] for kind in ("known", "discovered") for entry in token[kind]]
        whole = sum(parts) + token["other_known"] + token["other_discovered"] + token["epsilon"]
        assert whole == pytest.approx(token["logit"] - token["reference_logit"], abs=2e-3)
        assert len(token["known"]) == len(token["discovered"]) == 3
        inputs = token["inputs"]
        assert len(inputs["positions"]) == len(inputs["attributions"]) <= INPUTS
        total = sum(inputs["attributions"]) + inputs["rest"]
        assert total == pytest.approx(explanation.inputs.attributions[row].sum(), abs=2e-3)
        assert total - (inputs["value"] - inputs["baseline"]) == pytest.approx(inputs["completeness_error"], abs=2e-3)
        for values in (token["net_shares"], token["absolute_shares"]):
            assert sum(values.values()) == pytest.approx(1, abs=1e-4)
        sizes = [*token["raised_shares"].values(), *token["lowered_shares"].values()]
        assert (sum(sizes), min(sizes) >= 0) == (pytest.approx(1, abs=1e-4), True)
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_reports_rank_by_centred_logits_beside_log_probabilities(bundle: sj.Bundle, explanation: Explanation):
    """The order is that of `reference="vocabulary"`, the numbers beside it are those of "model", and "raw" is the
    published ranking."""
    trace = explanation.trace
    of = {name: sj.concept_contributions(bundle, trace, reference=name) for name in REFERENCES}
    for chunk in explanation.chunks:
        expected = sj.rank_chunk(of["vocabulary"], chunk.start, chunk.end)
        assert ranking_of(chunk).entries == expected.entries
        beside = {(e.type, e.concept_id): e.contribution for e in sj.rank_chunk(of["model"], chunk.start, chunk.end)}
        assert ranking_of(chunk).log_probability_shares == pytest.approx(beside, abs=1e-6)
        assert set(ranking_of(chunk).to_dataframe().log_probability_share) == set(
            ranking_of(chunk).log_probability_shares.values()
        )
    raw = explain(bundle, explanation.record, inputs=False, reference="raw")
    published = [sj.rank_chunk(of["raw"], chunk.start, chunk.end).entries for chunk in raw.chunks]
    assert [ranking_of(chunk).entries for chunk in raw.chunks] == published
    assert published != [ranking_of(chunk).entries for chunk in explanation.chunks]
    document = make_document(raw, 3)
    assert document["reference"] == "raw"
    assert not any(token["reference_logit"] for token in document["tokens"])


def test_shares_of_a_chunk_are_on_one_scale(explanation: Explanation):
    """Raising and lowering parts make up 100 %, and their differences are the sums of the concepts' signed shares."""
    c = shares_of(explanation)
    for chunk in explanation.chunks:
        ranking, rows = ranking_of(chunk), (c.positions >= chunk.start) & (c.positions < chunk.end)
        raised, lowered = ranking.raised_shares, ranking.lowered_shares
        assert sum(raised) + sum(lowered) == pytest.approx(1, abs=1e-5)
        whole = chunk.end - chunk.start == rows.sum()  # positions without a commit count in the concepts' shares alone
        for i, kind in enumerate(("known", "discovered") if whole else ()):
            total = sum(entry.contribution for entry in ranking if entry.type == kind)
            assert raised[i] - lowered[i] == pytest.approx(total, abs=1e-5)
        assert 100 * (raised[2] - lowered[2]) == pytest.approx(ranking.epsilon_percent, abs=1e-3)
        # By hand, for one token: a part's share is its size over the sum of all sizes.
        row = int(np.flatnonzero(rows)[0])
        parts = [c.known_contributions[row], c.discovered_contributions[row], c.remainder[row : row + 1]]
        mass = sum(float(np.abs(values).sum()) for values in parts)
        up, down = split_by_sign(c, np.array([row]))
        assert up == pytest.approx([float(values[values > 0].sum()) / mass for values in parts], abs=1e-6)
        assert down == pytest.approx([float(-values[values < 0].sum()) / mass for values in parts], abs=1e-6)


def test_one_meaning_for_each_colour(explanation: Explanation):
    """Green is what raises a logit and red what lowers it, in lists and bars; kinds of parts have no colour."""
    console = Console(width=100, color_system="standard", force_terminal=True)
    coloured = {"red": "", "green": ""}
    for segment in console.render(render(explanation, 3)):
        colour = segment.style.color.name if segment.style is not None and segment.style.color is not None else ""
        if colour in coloured:
            coloured[colour] += segment.text + " "
        else:
            assert "█" not in segment.text
    assert coloured["red"]
    assert coloured["green"]
    assert "+" not in coloured["red"]
    assert "-" not in coloured["green"]
    assert not re.search("known|discovered|epsilon", coloured["red"] + coloured["green"])


def test_chunks_have_names_and_evidence(document: dict[str, Any], explanation: Explanation):
    for chunk, ours in zip(document["chunks"], explanation.chunks, strict=True):
        assert ours.inputs is not None
        assert [entry["id"] for entry in chunk["known"]] == [e.concept_id for e in ours.top("known", 3)]
        assert chunk["evidence"]["nothing_close"] == ["signature"]
        assert chunk["evidence"]["best"] == {"verbatim": 4.0, "signature": 0.25}
        assert chunk["evidence"]["sources"]["verbatim"] == {"docs": 0.666667, "code": 0.333333}
        assert chunk["evidence"]["hits"][0]["name"] == NASTY
        summed = sum(chunk["inputs"]["attributions"]) + chunk["inputs"]["rest"]
        assert summed == pytest.approx(ours.inputs.attributions.sum(), abs=2e-2)
    names = document["concepts"]["known"]
    assert names.get("1", "Email") == "Email"
    assert document["trace"]["steering"] == ["inject 1 at 3.0"]


def test_tables_of_a_trace_with_lone_surrogates(explanation: Explanation, tmp_path: Path):
    """JSON can hold them, and so can a trace that was read from a file; Parquet cannot."""
    tables = {name: [dict(row) for row in rows] for name, rows in make_tables(explanation).items()}
    tables["concepts"][0]["name"] = "a \ud800"
    write_tables(tmp_path, tables, explanation)
    assert pq.read_table(tmp_path / "concepts.parquet")["name"][0].as_py() == "a ?"


def test_terminal_report(explanation: Explanation):
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render(explanation, 3))
    text = console.export_text()
    assert text.count("chunk ") == len(explanation.chunks)
    assert "nothing close (threshold 0.5, best 0.25)" in text
    assert "known concepts" in text
    # The sum of the prompt's tokens, then its five strongest ones; the same for what was written before.
    for name in ("prompt", "written"):
        lines = re.findall(rf"^│ {name} .*$", text, re.MULTILINE)
        assert {len(re.findall(r" [+-]\d+\.\d\d ", line)) for line in lines} == {6}, lines
    assert "0 of" not in accuracy_note(explanation)
    assert f"{explanation.share_error:.1e}" in accuracy_note(explanation)


def test_tables_contain_every_value(explanation: Explanation, tmp_path: Path):
    write_tables(tmp_path, make_tables(explanation), explanation)
    tables = {path.stem: pq.read_table(path) for path in tmp_path.iterdir()}
    rows = {name: table.to_pylist() for name, table in tables.items()}
    assert tables["tokens"].schema.metadata[b"fingerprint"].decode() == explanation.record.origin.fingerprint
    tokens = {row["position"]: row for row in rows["tokens"]}
    assert len(tokens) == len(explanation.trace.tokens)
    assert tokens[0]["in_prompt"]
    assert tokens[0]["logit"] is None
    for position, row in tokens.items():
        if row["in_prompt"]:
            continue
        parts = sum(one["contribution"] for one in rows["concepts"] if one["position"] == position)
        assert parts + row["epsilon"] == pytest.approx(row["logit"] - row["reference_logit"], abs=1e-4)
        inputs = sum(one["attribution"] for one in rows["inputs"] if one["position"] == position)
        error = inputs - (row["path_logit"] - row["baseline_logit"])
        assert error == pytest.approx(row["completeness_error"], abs=1e-4)
    assert {row["chunk"] for row in rows["chunks"]} == {row["chunk"] for row in rows["evidence"]}
    assert [row["rank"] for row in rows["evidence"] if row["chunk"] == 0] == [0, 1]
    check_folder(tmp_path)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(sj.UserError, match="contains other files than tables"):
        check_folder(tmp_path)


def test_graph_is_in_the_published_format(graph: dict[str, Any], explanation: Explanation):
    schema = json.loads((HERE / "data" / "neuronpedia" / "graph-schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    check = jsonschema.Draft7Validator(schema)
    check.validate(json.loads(json.dumps(graph, allow_nan=False)))
    with pytest.raises(jsonschema.ValidationError):  # the schema checks nodes and links
        check.validate(graph | {"links": [{"source": "a", "target": "b"}]})
    nodes = [node["node_id"] for node in graph["nodes"]]
    assert len(set(nodes)) == len(nodes) == len({node["jsNodeId"] for node in graph["nodes"]})
    assert {end for link in graph["links"] for end in (link["source"], link["target"])} == set(nodes)
    assert graph["qParams"]["clickedId"] in nodes
    assert max(node["ctx_idx"] for node in graph["nodes"]) < len(graph["metadata"]["prompt_tokens"])


@pytest.mark.parametrize("reference", ["raw", "vocabulary", "model"])
def test_graph_adds_up(bundle: sj.Bundle, explanation: Explanation, reference: Reference):
    """Links into the logit sum to what is split; links out of an input sum to its attribution to the same value."""
    split = explain(bundle, explanation.record, inputs=False, reference=reference)
    position = int(shares_of(split).positions[-1])
    target = TokenLogit() if reference == "raw" else TokenAboveMean(reference)
    inputs = sj.attribute_inputs(bundle, split.trace, target=target, positions=[position])
    graph = make_graph(bundle, split)
    row = len(shares_of(explanation)) - 1
    kinds = {node["node_id"]: node["feature_type"] for node in graph["nodes"]}
    (logit,) = (name for name, kind in kinds.items() if kind == "logit")
    assert list(kinds.values()).count("mlp reconstruction error") == 1
    into = sum(link["weight"] for link in graph["links"] if link["target"] == logit)
    assert into == pytest.approx(float(shares_of(split).split_logits[row]), abs=1e-4)
    assert inputs.path_logits[0] == pytest.approx(float(shares_of(split).split_logits[row]), abs=1e-4)
    places = {node["node_id"]: node["ctx_idx"] for node in graph["nodes"] if node["feature_type"] == "embedding"}
    out = np.zeros(len(explanation.trace.tokens))
    for link in graph["links"]:
        if link["source"] in places:
            out[places[link["source"]]] += link["weight"]
    if len(places) <= 32:  # all inputs are linked
        np.testing.assert_allclose(out, inputs.attributions[0], rtol=0, atol=1e-4)
    assert out[position] == 0
    shown = {node["node_id"]: node for node in graph["nodes"] if node["feature_type"] == "cross layer transcoder"}
    listed = shares_of(explanation).known_ids.shape[1] + shares_of(explanation).discovered_ids.shape[1]
    assert len(shown) == listed
    assert all(0 <= node["activation"] <= 1 for node in shown.values())


def test_graph_probability_is_the_models(bundle: sj.Bundle, graph: dict[str, Any], explanation: Explanation):
    """It equals the probability of `forward` for a text without steering."""
    (logit,) = (node for node in graph["nodes"] if node["feature_type"] == "logit")
    trace = given_trace(bundle, "The quick", " brown fox")
    record = TraceRecord(trace, model_origin(bundle), "The quick", " brown fox")
    plain = make_graph(bundle, explain(bundle, record, inputs=False), trace.prompt_length)
    (first,) = (node for node in plain["nodes"] if node["feature_type"] == "logit")
    logits = np.asarray(forward(bundle, trace.snapshot(0)).logits[0, trace.prompt_length], np.float64)
    expected = np.exp(logits[trace.tokens[trace.prompt_length]] - np.logaddexp.reduce(logits))
    assert first["token_prob"] == pytest.approx(expected, rel=1e-4)
    assert 0 < logit["token_prob"] <= 1
    with pytest.raises(sj.UserError, match="No token was committed at position 0"):
        make_graph(bundle, explanation, 0)


def test_a_clamped_concept_has_no_inputs(bundle: sj.Bundle, explanation: Explanation):
    """What the inputs added to the logit goes through the other concepts and epsilon."""
    clamped = int(shares_of(explanation).known_ids[0, 0])
    steering = SteeringConfig((), intervene_known={clamped: 0.9})
    prompt = Prompt("return", GenerationConfig(max_new_tokens=16, seed=3), steering)
    written = generate(bundle, prompt.text_or_ids, prompt.config, prompt.steering)
    one = explain(bundle, record_of(bundle, model_origin(bundle), prompt, written), inputs=False)
    position = int(shares_of(one).positions[-1])
    inputs = sj.attribute_inputs(bundle, one.trace, target=TokenAboveMean(), positions=[position])
    graph = make_graph(bundle, one, position)
    node = next(node["node_id"] for node in graph["nodes"] if node["feature"] == clamped and node["layer"] != "E")
    assert any(link["source"] == node for link in graph["links"])
    assert not any(link["target"] == node for link in graph["links"])
    places = {node["node_id"] for node in graph["nodes"] if node["feature_type"] == "embedding"}
    out = sum(link["weight"] for link in graph["links"] if link["source"] in places)
    assert out == pytest.approx(float(inputs.attributions.sum()), abs=1e-4)


def test_a_token_overwritten_by_an_end_of_turn_is_shown_as_committed(bundle: sj.Bundle, explanation: Explanation):
    flat = list(explanation.trace.flat())
    eot = next(
        token
        for i, (_, position, token, _) in enumerate(flat)
        if max((p for _, p, _, _ in flat[:i]), default=0) > position and token not in [t for _, _, t, _ in flat[:i]]
    )
    other = dataclasses.replace(bundle, config=dataclasses.replace(bundle.config, instruct=True, eot_id=eot))
    prompt = Prompt("return </script>", GenerationConfig(max_new_tokens=32, seed=3), SteeringConfig((1,), 3.0))
    written = generate(other, prompt.text_or_ids, prompt.config, prompt.steering)
    after = {p: token for _, p, token, _ in written.trace.flat() if written.tokens[p] != token}
    assert after
    one = explain(other, record_of(other, model_origin(other), prompt, written), inputs=False)
    rows = {row["position"]: row for row in make_tables(one)["tokens"]}
    for position, token in after.items():
        assert (rows[position]["token_id"], rows[position]["piece"]) == (token, other.tokenizer.piece(token))
    position, token = next(iter(after.items()))
    (logit,) = (node for node in make_graph(other, one, position)["nodes"] if node["feature_type"] == "logit")
    assert logit["clerp"].startswith(f'"{other.tokenizer.piece(token)}"')


def test_given_text_is_read_from_left_to_right(bundle: sj.Bundle):
    trace = given_trace(bundle, "The quick brown", " fox jumps over")
    P = trace.prompt_length
    assert [commit.positions for commit in trace.commits] == [(P + i,) for i in range(len(trace.tokens) - P)]
    for step, position, token, logit in trace.flat():
        canvas = trace.snapshot(step)
        assert (canvas[position:] == bundle.config.mask_token_id).all()
        np.testing.assert_array_equal(canvas[:position], trace.tokens[:position])
        whole = forward(bundle, canvas).logits
        assert logit == pytest.approx(float(whole[0, position, token]), abs=2e-4)
    with pytest.raises(sj.UserError, match="The continuation is empty"):
        given_trace(bundle, "a", "")
    with pytest.raises(sj.UserError, match="more than the model's context"):
        given_trace(bundle, "a", [5] * 128)
    with pytest.raises(sj.UserError, match="contains the mask"):
        given_trace(bundle, "a", [5, bundle.config.mask_token_id])
