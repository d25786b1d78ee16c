"""`steerling sae classify` on small files, the file that it writes, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.cli.main import main
from steerling_jax.explain.text_classification import COUNTS, split_texts, tenth_of
from steerling_jax.io.classifier_file import load_classifier
from tests.worlds.paths import REPOSITORY
from tests.worlds.topic_texts import MODEL, READ_WITH, topic_texts


@pytest.fixture(scope="module")
def bundle() -> sj.Bundle:
    return sj.load(MODEL, dtype="float32")


@pytest.fixture
def table(tmp_path: Path, bundle: sj.Bundle) -> Path:
    """40 texts of each topic in two groups."""
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["group", "label", "text"])
        for topic in ("low", "high"):
            for number, text in enumerate(topic_texts(topic, 40, bundle.config.vocab_size)):
                writer.writerow([f"g{number % 2}", topic, text])
    return path


def test_methods_a_classifier_and_groups(table: Path, bundle: sj.Bundle, capsys: pytest.CaptureFixture):
    saved = table.with_name("low.json")
    line = ["sae", "classify", str(table), *READ_WITH, "--positive", "low", "--count", "4"]
    options = ["--group", "group", "--save", str(saved), "--plot", str(table.with_name("f1.svg"))]
    assert main([*line, *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["settings"]["train"], report["settings"]["test"]) == (40, 40)
    (one,) = report["classes"]
    methods = {(m["name"], m["count"]): m for m in one["methods"]}
    for name in ("best layer", "all layers", "a tenth of the texts", "random features"):
        assert [count for key, count in methods if key == name] == list(COUNTS)
    # There is one layer, so all layers are the best one.
    assert methods["best layer", 5]["f1"] == methods["all layers", 5]["f1"]
    assert methods["a tenth of the texts", 5]["train"] == 4
    assert methods["logistic, words", None]["auc"]["mean"] > 0.9  # no word in common
    assert methods["best layer", 1]["f1"]["mean"] > methods["random features", 1]["f1"]["mean"]
    assert np.shape(one["transfer"]["f1"]) == (2, 2)
    assert report["groups"] == ["g0", "g1"]
    classifier = load_classifier(saved, bundle)
    assert [list(feature) for feature in classifier.features] == [
        [1, feature["feature"], feature["difference"]] for feature in one["features"]
    ]
    # The file finds what the report's rule finds.
    stored = json.loads(saved.read_text())["figures"]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    kinds = [f"{row['label']}\t{row['group']}" for row in rows]
    test = split_texts(kinds, 0.5, 0)[1].tolist()
    found = [bool(classifier.fired(bundle, rows[i]["text"])) for i in test]
    positive = [rows[i]["label"] == "low" for i in test]
    hits = sum(a and b for a, b in zip(found, positive, strict=True))
    assert stored["recall"]["mean"] == pytest.approx(hits / sum(positive))
    assert stored["f1"]["mean"] == pytest.approx(2 * hits / (sum(found) + sum(positive)))
    assert classifier.fired(bundle, "") == []
    assert main(line) == 0
    assert "logistic, hidden rows" in capsys.readouterr().out


def test_each_label_in_turn_and_a_file_to_test_on(table: Path, capsys: pytest.CaptureFixture):
    line = ["sae", "classify", str(table), "--test", str(table), *READ_WITH, "--limit", "6", "--json"]
    assert main(line) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["label"] for one in report["classes"]] == ["high", "low"]
    assert (report["settings"]["train"], report["settings"]["test"]) == (12, 12)


def test_stages_over_shards_give_the_same_figures(table: Path, capsys: pytest.CaptureFixture):
    head, *rows = table.read_text().splitlines(keepends=True)
    for number, own in enumerate((rows[:30], rows[30:50], rows[50:])):
        table.with_name(f"shard-{number}.csv").write_text("".join([head, *own]))
    options = ["--positive", "low", "--limit", "10", "--json"]
    assert main(["sae", "classify", str(table), *READ_WITH, *options]) == 0
    expected = json.loads(capsys.readouterr().out)
    staged = ["sae", "classify", str(table.with_name("shard-*.csv")), *READ_WITH, *options]
    assert main([*staged, "--work", str(table.with_name("work"))]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert len(list(table.with_name("work").rglob("*.npz"))) == 4  # three files and their counts


def test_a_classifier_is_for_one_model_and_its_autoencoders(
    table: Path, bundle: sj.Bundle, capsys: pytest.CaptureFixture
):
    saved = table.with_name("low.json")
    assert main(["sae", "classify", str(table), *READ_WITH, "--positive", "low", "--save", str(saved)]) == 0
    capsys.readouterr()
    with pytest.raises(sj.UserError, match="another model"):
        load_classifier(saved, sj.load(REPOSITORY / "tests" / "golden_decoders" / "llama"))
    content = json.loads(saved.read_text())
    for change, words in (
        ({"kind": "other"}, "is not a classifier"),
        ({"features": [{"layer": 1}]}, "is damaged"),
        ({"autoencoders": content["autoencoders"] | {"path": "missing"}}, "autoencoders.path"),
        ({"features": [{"layer": 1, "feature": 10**6, "difference": 0.5}]}, "feature 1000000"),
        ({"autoencoders": content["autoencoders"] | {"layers": [{"layer": 1, "k": 10, "digest": "0"}]}}, "holds other"),
    ):
        saved.write_text(json.dumps(content | change))
        with pytest.raises(sj.UserError, match=words):
            load_classifier(saved, bundle)


def test_bad_input(table: Path, capsys: pytest.CaptureFixture):
    single = table.with_name("single.csv")
    single.write_text("label,text\nlow,1 2 3\nlow,4 5\n")
    few = table.with_name("few.csv")
    few.write_text("label,text,group\n" + "low,1 2 3,a\nhigh,4 5,a\n" * 4 + "low,3 4,b\n" * 4)
    ragged = table.with_name("ragged.csv")
    ragged.write_text("label,text\nlow,1, 2\n")
    for arguments, words in (
        ([str(single)], "All labels of"),
        ([str(table), "--positive", "middle"], "--positive is 'middle', but the labels of"),
        ([str(table), "--label-column", "topic"], "has no column 'topic'; its columns are 'group', 'label', 'text'"),
        ([str(few), "--positive", "low", "--group", "group"], "only texts of the class 'low' in the group 'b'"),
        ([str(few), "--positive", "high", "--group", "group"], "no text of the class 'high' in the group 'b'"),
        ([str(ragged)], "line 2: 3 values"),
        ([str(table), "--save", "c.json"], "name it with --positive"),
    ):
        assert main(["sae", "classify", *arguments, *READ_WITH]) == 2
        assert words in capsys.readouterr().err


def test_splits_are_random_and_even_in_every_kind():
    kinds = ["a"] * 10 + ["b"] * 4 + ["c"]
    train, test = split_texts(kinds, 0.5, 0)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(15))
    assert [sum(kinds[i] == kind for i in train) for kind in "abc"] == [5, 2, 1]
    assert split_texts(kinds, 0.5, 0)[0].tolist() == train.tolist() != split_texts(kinds, 0.5, 1)[0].tolist()
    tenth = tenth_of(np.array([True] * 30 + [False] * 3))
    assert tenth.tolist() == [0, 1, 2, 30]
