"""What the public functions return: short tables when printed, data frames with every fact."""

from __future__ import annotations

import pickle
import sys

import jax
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.decoding.tables import Table

CONFIG = sj.GenerationConfig(max_new_tokens=16, seed=1)


@pytest.fixture(scope="module")
def bundle(text_model):
    return sj.load(text_model)


@pytest.fixture(scope="module")
def made(bundle):
    return sj.generate(bundle, "The quick brown", CONFIG)


@pytest.fixture(scope="module")
def shares(bundle, made):
    return sj.concept_contributions(bundle, made.trace)


def test_a_table_is_aligned_and_cut():
    table = Table("Title", {"name": ["a\nb", "안녕", None, "x" * 90], "number": np.array([1.0, -0.123456, 2e-9, 7])})
    title, head, *rows = table.text(rows=3).splitlines()
    assert title == "Title"
    assert head.split() == ["name", "number"]
    assert [row.split() for row in rows] == [["a\\nb", "1"], ["안녕", "-0.1235"], ["2e-09"], ["…", "1", "more", "row"]]
    # A Hangul syllable takes two columns of a terminal.
    assert {len(row) + 2 * row.count("안") for row in rows[:3]} == {len(head)}
    assert len(table.text().splitlines()[-1]) < 90
    assert Table("Nothing", {"a": []}).text() == "Nothing"


def test_a_table_in_html_is_escaped():
    page = Table("<b>", {"<i>": ["<script>", "b", "c"]}).html(rows=1)
    assert "<script>" not in page
    assert "<b>" not in page
    assert "<td>&lt;script&gt;</td>" in page
    assert "… 2 more rows" in page


def test_results_print_in_a_few_lines_with_the_text_of_tokens(bundle, made, shares):
    ids = bundle.tokenizer.encode("The quick brown")
    inputs = sj.attribute_inputs(bundle, made.trace, sample=2, nodes=2)
    start, end = made.trace.prompt_length, len(made.trace.tokens)
    results = {
        "forward": sj.forward(bundle, "The quick brown"),
        "generation": made,
        "trace": made.trace,
        "contributions": shares,
        "ranking": sj.rank_chunk(shares, start, end),
        "inputs": inputs,
        "embedding": sj.embed(bundle, ["The quick", "brown fox"]),
        "likelihood": sj.log_likelihood(bundle, "The quick", " brown fox", samples=2),
        "likelihoods": sj.log_likelihoods(bundle, [("The quick", " brown fox")] * 2, samples=2),
        "texts": sj.generate_many(bundle, ["The quick", "brown fox"], CONFIG),
    }
    for name, result in results.items():
        lines = repr(result).splitlines()
        assert 1 <= len(lines) <= 13, name
        assert max(map(len, lines)) < 200, name
        assert "array(" not in repr(result), name
        assert result._repr_html_().startswith("<div>"), name
        assert len(result.to_dataframe()) >= 1, name
    piece = bundle.tokenizer.piece(ids[0])
    assert piece in repr(results["forward"])
    assert piece in repr(results["inputs"])
    frame = results["ranking"].to_dataframe()
    assert list(zip(frame.concept, frame.type, frame.share, frame.concept_id)) == list(results["ranking"])
    assert repr(bundle).startswith(f"Bundle {bundle.name!r}: 1 layers of width 32, ")
    assert len(repr(bundle)) < 200


def test_a_forward_pass_lists_the_likeliest_tokens(bundle):
    result = sj.forward(bundle, [[1, 2, 3], [4, 5, 6]])
    frame = result.to_dataframe()
    logits = np.asarray(result.logits).reshape(6, -1)
    assert frame.row.tolist() == [0, 0, 0, 1, 1, 1]
    assert frame.likeliest.tolist() == [bundle.tokenizer.piece(int(i)) for i in logits.argmax(axis=1)]
    probability = np.exp(logits.max(axis=1)) / np.exp(logits).sum(axis=1)
    np.testing.assert_allclose(frame.probability, probability, rtol=1e-4)
    first, _ = result  # as the named tuple that it is
    assert first is result.logits
    shapes = jax.tree.map(lambda leaf: leaf.shape, result)
    assert "logits=(2, 3," in repr(shapes)


def test_the_rows_of_contributions_add_up_to_the_logits(shares):
    frame = shares.to_dataframe()
    sums = frame.groupby("position").contribution.sum().loc[shares.positions]
    np.testing.assert_allclose(sums, shares.target_logits, atol=1e-4)
    assert set(frame.kind) == {"known", "discovered", "epsilon"}
    assert len(frame) == (shares.known_ids >= 0).sum() + (shares.discovered_ids >= 0).sum() + len(shares)
    strongest = shares.summary().columns["contribution"]
    listed = frame[frame.kind != "epsilon"]
    np.testing.assert_allclose(
        np.abs(strongest), listed.contribution.abs().groupby(listed.position).max().loc[shares.positions]
    )


def test_the_rows_of_a_trace_and_of_input_attributions(bundle, made):
    frame = made.trace.to_dataframe()
    assert list(zip(frame.step, frame.position, frame.token_id, frame.logit)) == list(made.trace.flat())
    assert frame.token.tolist() == [bundle.tokenizer.piece(i) for i in frame.token_id]
    inputs = sj.attribute_inputs(bundle, made.trace, sample=2, nodes=2)
    rows = inputs.to_dataframe()
    sums = rows.groupby("position").attribution.sum().loc[inputs.target_positions]
    np.testing.assert_allclose(sums, inputs.attributions.sum(axis=1), atol=1e-4)


def test_embeddings_stay_arrays(bundle):
    found = sj.embed(bundle, ["The quick", "brown fox"])
    assert type(found + 1) is np.ndarray
    assert type(found @ found.T) is np.ndarray
    assert isinstance(found.mean(), np.floating)
    assert "array" in repr(found[0])
    assert jax.jit(lambda x: x.sum())(found).shape == ()
    assert pickle.loads(pickle.dumps(found)).tolist() == found.tolist()
    np.testing.assert_allclose(found.to_dataframe().to_numpy(), found)
    cosine = found[1] @ found[0] / np.linalg.norm(found[1]) / np.linalg.norm(found[0])
    assert found.table().columns["cosine_to_first"][1] == pytest.approx(float(cosine), abs=1e-5)


def test_a_likelihood_is_a_number_with_its_error(bundle):
    pairs = [("The quick", " brown fox"), ([1], [])]
    one, nothing = sj.log_likelihoods(bundle, pairs, samples=8, seed=3)
    assert str(one) == str(float(one))
    assert f"{one:.2f}" == f"{float(one):.2f}"
    assert one.samples == 8
    assert one.tokens == len(bundle.tokenizer.encode("The quick brown fox")) - len(bundle.tokenizer.encode("The quick"))
    assert 0 < one.standard_error < abs(one)
    assert (nothing, nothing.tokens) == (0.0, 0)
    assert np.isnan(sj.log_likelihood(bundle, *pairs[0], samples=1).standard_error)
    copy = pickle.loads(pickle.dumps(one))
    assert (copy, copy.tokens, copy.standard_error) == (one, one.tokens, one.standard_error)


def test_without_pandas_one_sentence(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(sj.UserError, match="needs pandas: pip install"):
        made.to_dataframe()
