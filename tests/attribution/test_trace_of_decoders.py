"""`steerling trace` and `verify` for autoregressive models: input tokens and logits, without concepts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest

import steerling_jax as sj
from steerling_jax.attribution.trace.explanation import explain
from steerling_jax.attribution.verify.verification import verify
from steerling_jax.cli.main import main
from steerling_jax.decoding.trace_record import from_plain
from steerling_jax.errors import UserError
from steerling_jax.explain.given_text import given_trace
from tests.attribution.test_trace_outputs import HERE
from tests.io.gguf.test_gguf_models import chat_model

TEXT = "he said"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a vocabulary of bytes."""
    return chat_model(tmp_path_factory.mktemp("models") / "model.gguf")


@pytest.fixture(scope="module")
def bundle(model: Path) -> sj.Bundle:
    return sj.load(model)


@pytest.fixture(scope="module")
def outputs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all outputs of the command for one text."""
    folder = tmp_path_factory.mktemp("outputs")
    names = {"--trace": "t.json", "--html": "p.html", "--json": "d.json", "--parquet": "tables", "--graph": "g.json"}
    files = [word for option, name in names.items() for word in (option, str(folder / name))]
    line = ["trace", TEXT, "--model", str(model), "--max-new-tokens", "6", "--seed", "1", *files]
    assert main(line) in (None, 0)
    return folder


@pytest.fixture(scope="module")
def document(outputs: Path) -> dict[str, Any]:
    return json.loads((outputs / "d.json").read_text())


def test_the_document_has_inputs_and_no_concepts(bundle: sj.Bundle, document: dict[str, Any]):
    trace = document["trace"]
    prompt, tokens = trace["prompt"], trace["tokens"]
    assert bundle.tokenizer.encode(TEXT) == prompt
    assert [commit["positions"] for commit in trace["commits"]] == [[len(prompt) + i] for i in range(6)]
    assert document["concepts"] is None
    assert document["errors"]["largest_share_error"] is None
    assert document["input_baseline"] == "mean embedding"
    logits = np.asarray(sj.forward(bundle, tokens).logits[0])
    for token in document["tokens"]:
        position, inputs = token["position"], token["inputs"]
        assert token["logit"] == pytest.approx(float(logits[position - 1, token["token_id"]]), abs=1e-4)
        assert {token[name] for name in ("known", "discovered", "epsilon", "share_error")} == {None}
        assert max(inputs["positions"]) < position, "a token comes from those before it"
        total = sum(inputs["attributions"]) + inputs["rest"]
        assert total - (inputs["value"] - inputs["baseline"]) == pytest.approx(inputs["completeness_error"], abs=2e-3)
    (chunk,) = document["chunks"]
    assert (chunk["start"], chunk["end"], chunk["text"]) == (len(prompt), len(tokens), trace["text"])
    assert {chunk[name] for name in ("known", "net_shares", "epsilon_percent")} == {None}


def test_tables_and_graph(bundle: sj.Bundle, outputs: Path, document: dict[str, Any]):
    rows = {path.stem: pq.read_table(path).to_pylist() for path in (outputs / "tables").iterdir()}
    assert rows["concepts"] == rows["chunk_concepts"] == []
    written = [row for row in rows["tokens"] if not row["in_prompt"]]
    assert [row["logit"] for row in written] == pytest.approx([one["logit"] for one in document["tokens"]], rel=1e-5)
    assert {row["epsilon"] for row in written} == {None}

    graph = json.loads((outputs / "g.json").read_text())
    schema = json.loads((HERE / "data" / "neuronpedia" / "graph-schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(graph)
    kinds = {node["node_id"]: node["feature_type"] for node in graph["nodes"]}
    assert set(kinds.values()) == {"embedding", "logit"}
    last = document["tokens"][-1]
    links = {int(link["source"].split("_")[2]): link["weight"] for link in graph["links"]}
    assert {kinds[link["target"]] for link in graph["links"]} == {"logit"}
    expected = dict(zip(last["inputs"]["positions"], last["inputs"]["attributions"], strict=True))
    assert links == pytest.approx(expected, rel=1e-4)
    (logit,) = (node for node in graph["nodes"] if node["feature_type"] == "logit")
    logits = np.asarray(sj.forward(bundle, document["trace"]["tokens"]).logits[0, -2], np.float64)
    assert logit["token_prob"] == pytest.approx(
        np.exp(logits[last["token_id"]] - np.logaddexp.reduce(logits)), rel=1e-3
    )
    assert graph["metadata"]["prompt_tokens"] == document["pieces"]


def test_the_report_and_an_explanation_of_the_record(
    model: Path, outputs: Path, document: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    line = ["trace", "--model", str(model), "--from", str(outputs / "t.json")]
    assert main(line) in (None, 0)
    printed = capsys.readouterr()
    assert "chunk 1 · positions" in printed.out
    assert "prompt " in printed.out
    assert "written " in printed.out
    assert "integrated gradients" in printed.err
    for words in ("known", "discovered", "epsilon"):
        assert words not in printed.out + printed.err
    assert main([*line, "--no-inputs", "--json", "-"]) in (None, 0)
    again = json.loads(capsys.readouterr().out)
    assert again["trace"] == document["trace"]
    assert again["tokens"][0]["inputs"] is None


def test_verify_notices_what_was_changed(model: Path, bundle: sj.Bundle, outputs: Path, document: dict[str, Any]):
    assert main(["verify", str(outputs / "d.json"), "--model", str(model), "--json"]) == 0
    record = from_plain(document["trace"], "record")
    result = verify(bundle, record, document)
    names = [one.name for one in result.figures]
    assert names == ["logits", "input attributions", "input attributions of chunks", "text and chunks"]
    assert result.left_out["contributions of concepts"] == "the model has no concepts"
    assert verify(bundle, record, inputs=False).agrees

    def outcome(change: Any, inputs: bool = False) -> list[str]:
        changed = copy.deepcopy(document)
        change(changed)
        found = verify(bundle, from_plain(changed["trace"], "record"), changed, inputs=inputs)
        return [one.name for one in found.figures if not one.agrees]

    def shift(value: dict[str, Any], name: str, by: float = 0.5) -> None:
        value[name] += by

    assert outcome(lambda d: shift(d["tokens"][2], "logit")) == ["logits"]
    assert outcome(lambda d: shift(d["tokens"][2]["inputs"], "rest"), True) == ["input attributions"]
    assert outcome(lambda d: shift(d["chunks"][0]["inputs"], "value"), True) == ["input attributions of chunks"]
    for change in (
        lambda d: d["chunks"][0].update(text="other"),
        lambda d: d["tokens"][0].update(known=[{"id": 1, "activation": 0.5, "contribution": 2.0}]),
        lambda d: d["chunks"][0].update(epsilon_percent=1.0),
        lambda d: d.update(concepts={"known": {"1": "Files"}}),
    ):
        assert outcome(change) == ["text and chunks"]


def test_a_given_text_is_read_in_one_pass(bundle: sj.Bundle, model: Path, capsys: pytest.CaptureFixture[str]):
    trace = given_trace(bundle, TEXT, " the end")
    logits = np.asarray(sj.forward(bundle, trace.tokens).logits[0])
    for _, position, token, logit in trace.flat():
        assert logit == pytest.approx(float(logits[position - 1, token]), abs=1e-4)
    inputs = sj.attribute_inputs(bundle, trace, nodes=1)
    np.testing.assert_allclose(inputs.path_logits, [logit for *_, logit in trace.flat()], atol=1e-4)
    line = ["trace", TEXT, "--model", str(model), "--continuation", " the end", "--no-inputs", "--json", "-"]
    assert main(line) in (None, 0)
    found = json.loads(capsys.readouterr().out)["trace"]
    assert (found["text"], found["tokens"], found["generation"]) == (" the end", trace.tokens.tolist(), None)


def test_the_id_that_ends_a_text_is_committed_and_no_part_of_the_chunk(bundle: sj.Bundle):
    trace = given_trace(bundle, [1, 2, 3], [4, 5, 257])
    record = from_plain({**json.loads(json.dumps(_plain(bundle, trace))), "generation": None, "seed": None}, "record")
    explanation = explain(bundle, record, inputs=False)
    assert [(chunk.start, chunk.end) for chunk in explanation.chunks] == [(3, 5)]
    assert [one.position for one in explanation.committed] == [3, 4, 5]


def _plain(bundle: sj.Bundle, trace: sj.Trace) -> dict[str, Any]:
    from steerling_jax.decoding.trace_record import TraceRecord, to_plain
    from steerling_jax.io.trace_file import model_origin

    return to_plain(TraceRecord(trace, model_origin(bundle), "", ""))


def test_what_needs_concepts_is_refused(bundle: sj.Bundle, model: Path, capsys: pytest.CaptureFixture[str]):
    for options, words in (
        (("--amplify", "Files"), "Steering by name needs a model with concepts"),
        (("--cfg-scale", "1.5"), "cfg_scale is 1.5, but it has a meaning for diffusion"),
        (("--index", "nowhere", "--corpus", "nowhere"), "nowhere"),
    ):
        assert main(["trace", TEXT, "--model", str(model), *options]) == 2
        err = capsys.readouterr().err
        assert words in err.replace("\n", " ")
        assert "Traceback" not in err
    with pytest.raises(UserError, match="Steering needs a model with concepts"):
        given_trace(bundle, TEXT, " the end", sj.SteeringConfig((1,), 3.0))
