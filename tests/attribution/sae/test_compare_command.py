"""`steerling sae compare` on small files, beside the figures from every latent of every text."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.cli.main import main
from steerling_jax.io.autoencoders.load import load_autoencoders
from tests.worlds.topic_texts import AUTOENCODER, MODEL, READ_WITH, topic_texts, write_lines


@pytest.fixture(scope="module")
def vocabulary() -> int:
    return sj.load(MODEL).config.vocab_size


@pytest.fixture
def files(tmp_path: Path, vocabulary: int) -> list[str]:
    """Two samples of the low topic, the first with two texts that are there twice, and one of the high topic."""
    low, high = topic_texts("low", 16, vocabulary), topic_texts("high", 8, vocabulary)
    parts = {"one": low[:10] + low[:2], "two": low[10:], "other": high}
    return [str(write_lines(tmp_path / f"{name}.jsonl", [{"question": text, "n": "1"} for text in texts]))
            for name, texts in parts.items()]  # fmt: skip


def test_figures_of_benchmarks(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    line = ["sae", "compare", *files, *READ_WITH, "--column", "question", "--draws", "20", "--ngram", "1"]
    assert main([*line, "--json", "--plot", str(tmp_path / "map.svg")]) == 0
    report = json.loads(capsys.readouterr().out)
    bundle, autoencoder = sj.load(MODEL, dtype="float32"), sj.load_autoencoder(AUTOENCODER, k=10)
    sets, means = [], []
    for name in files:
        texts = [json.loads(row)["question"] for row in Path(name).read_text().splitlines()]
        sets.append([])
        means.append([])
        for text in texts:
            ids = [int(word) for word in text.split()]
            rows = sj.hidden_states(bundle, [ids], layers=[1])[1][0]
            norms = np.linalg.norm(rows, axis=1)
            usual = norms <= 6 * np.median(norms)
            last = np.asarray(autoencoder.encode(rows[-1:], dense=True))[0] * usual[-1]
            means[-1].append(rows[usual].mean(axis=0))
            sets[-1].append(set(np.flatnonzero(last > 0).tolist()))
    for one, samples in zip(report["benchmarks"], sets, strict=True):
        everything = set().union(*samples)
        assert (one["samples"], one["features"]) == (len(samples), len(everything))
        assert set().union(*(samples[i] for i in one["cover"])) == everything
        assert len(one["cover"]) <= len(set(map(frozenset, samples)))
        for i in one["adds_nothing"]:
            assert samples[i] <= set().union(*(other for j, other in enumerate(samples) if j != i))
        assert one["growth"][-1] == {"samples": len(samples), "features": pytest.approx(len(everything))}
        assert one["redundancy_share"] == pytest.approx(one["redundancy"] * len(everything) / len(samples))
    unions = [set().union(*samples) for samples in sets]
    expected = [[len(a & b) / len(a) for b in unions] for a in unions]
    np.testing.assert_allclose(report["overlap"]["of_row"], expected)
    assert {0, 1, 10, 11} <= set(report["benchmarks"][0]["adds_nothing"])  # the texts that are there twice
    assert report["matched"]["size"] == 3
    matched = {kind: np.array(report["matched"]["of_row"][kind]) for kind in ("low", "mean", "high")}
    assert np.all((matched["low"] <= matched["mean"]) & (matched["mean"] <= matched["high"]))
    ngrams = np.array(report["ngrams"]["of_row"]["mean"])
    assert ngrams[0, 1] > 0
    assert ngrams[0, 2] == 0  # no id in common
    centred = np.concatenate(means) - np.concatenate(means).mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    cosines = centred @ centred.T
    np.testing.assert_allclose(report["embeddings"][0][1], cosines[:12, 12:18].mean(), rtol=1e-3, atol=1e-4)
    inside = cosines[12:18, 12:18]
    np.testing.assert_allclose(report["embeddings"][1][1], (inside.sum() - 6) / 30, rtol=1e-3, atol=1e-4)
    assert "<svg" in (tmp_path / "map.svg").read_text()
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert "add nothing" in printed
    assert "two subsets of one benchmark" in printed


def test_a_limit_draws_random_samples(files: list[str], capsys: pytest.CaptureFixture):
    line = ["sae", "compare", files[0], *READ_WITH, "--column", "question", "--draws", "2", "--json", "--limit", "6"]
    figures = []
    for seed in ("0", "0", "1"):
        assert main([*line, "--seed", seed]) == 0
        (one,) = json.loads(capsys.readouterr().out)["benchmarks"]
        figures.append(one)
    assert figures[0] == figures[1]
    assert figures[0] != figures[2]
    assert figures[0]["samples"] == 6


def shards(file: str, folder: Path, count: int) -> str:
    """The lines of a file in several files, and the pattern that matches them."""
    lines = Path(file).read_text().splitlines(keepends=True)
    for number in range(count):
        own = lines[len(lines) * number // count : len(lines) * (number + 1) // count]
        (folder / f"{Path(file).stem}-{number}.jsonl").write_text("".join(own))
    return str(folder / f"{Path(file).stem}-*.jsonl")


def test_stages_over_shards_give_the_same_figures(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    patterns = [shards(file, tmp_path, 3) for file in files[:2]]
    options = ["--column", "question", "--draws", "5", "--ngram", "1", "--json", "--sample", "6"]
    assert main(["sae", "compare", *files[:2], *READ_WITH, *options]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert [one["samples"] for one in expected["benchmarks"]] == [12, 6]
    work = tmp_path / "work"
    staged = ["sae", "compare", *patterns, *READ_WITH, *options, "--work", str(work)]
    assert main(staged) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one.pop("name") for one in report["benchmarks"]] == ["one-*", "two-*"]
    assert [one.pop("name") for one in expected["benchmarks"]] == ["one", "two"]
    np.testing.assert_allclose(report.pop("embeddings"), expected.pop("embeddings"), rtol=1e-5, atol=1e-6)
    assert report == expected
    # Without --work the files of a pattern are read in this process.
    assert main(["sae", "compare", *patterns, *READ_WITH, *options]) == 0
    in_memory = json.loads(capsys.readouterr().out)
    assert in_memory["overlap"] == report["overlap"]
    # A task whose output is missing is done again, the others are not.
    read, counted = work / "features" / "000001.json", work / "counts" / "000000.npz"
    before = (work / "features" / "000000.npz").stat().st_mtime_ns
    read.unlink()
    counted.unlink()
    assert main(staged) == 0
    assert json.loads(capsys.readouterr().out)["overlap"] == report["overlap"]
    assert read.exists()
    assert (work / "features" / "000000.npz").stat().st_mtime_ns == before
    assert main([*staged, "--ngram", "2"]) == 2
    assert "another ngram" in capsys.readouterr().err


def test_stages_on_beam(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    if importlib.util.find_spec("apache_beam") is None:
        pytest.skip("needs Apache Beam")
    pattern = shards(files[0], tmp_path, 2)
    line = ["sae", "compare", pattern, *READ_WITH, "--column", "question", "--draws", "2", "--ngram", "1", "--json"]
    staged = [*line, "--work", str(tmp_path / "work"), "--runner", "FnApiRunner", "--runner-options"]
    beam = subprocess.run(
        [sys.executable, "-m", "steerling_jax.cli.main", *staged, "direct_num_workers=1"],
        capture_output=True,
        text=True,
    )
    assert beam.returncode == 0, beam.stderr
    written = sorted(path.name for path in (tmp_path / "work").rglob("*.npz"))
    assert written == ["000000.npz", "000000.npz", "000001.npz"]  # two files and one collection
    assert main(line) == 0
    report, expected = json.loads(beam.stdout), json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(report.pop("embeddings"), expected.pop("embeddings"), rtol=1e-5, atol=1e-6)
    assert report == expected


def test_bad_input(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture):
    single = write_lines(tmp_path / "single.jsonl", [{"question": "1 2 3"}])
    other = write_lines(tmp_path / "other.jsonl", [{"problem": "1 2 3"}, {"problem": "4"}])
    empty = write_lines(tmp_path / "empty.jsonl", [{"question": "1"}, {"question": " "}])
    for arguments, words in (
        ([str(single)], "single.jsonl has one sample"),
        ([str(other)], "has no column 'question'; its columns are 'problem'"),
        ([str(empty)], "empty.jsonl, line 2: 'question' is empty"),
        ([files[0], files[0]], "named twice"),
        ([str(tmp_path / "none.jsonl")], "Cannot read"),
        ([files[0], "--size", "7"], "give at most 6"),
        ([files[0], "--layer", "0"], "layer"),
        ([files[0], "--plot", "map.txt"], "must end in"),
        ([str(tmp_path / "none-*.jsonl")], "no file matches it as a pattern"),
        ([files[0], "--workers", "2"], "also give --work"),
        ([files[0], "--work", str(tmp_path / "w"), "--limit", "4"], "give --sample N"),
    ):
        assert main(["sae", "compare", *arguments, *READ_WITH, "--column", "question"]) == 2
        assert words in capsys.readouterr().err
    line = ["sae", "compare", files[0], "--column", "question", *READ_WITH[:2]]
    assert main([*line, "--autoencoder", str(tmp_path / "none")]) == 2
    assert "give an autoencoder's" in capsys.readouterr().err


def test_the_group_lists_its_commands(capsys: pytest.CaptureFixture):
    assert main(["sae"]) == 0
    printed = capsys.readouterr().out
    assert "compare" in printed
    assert "classify" in printed
    assert main(["sae", "comapre"]) == 2
    assert "did you mean `steerling sae compare`?" in capsys.readouterr().err
    assert main(["sae", "--bogus"]) == 2


def test_autoencoders_of_several_layers(tmp_path: Path):
    one = sj.load_autoencoder(AUTOENCODER, k=10)
    for layer in (2, 0):
        sj.save_autoencoder(one, tmp_path / f"layers.{layer}", format="sparsify")
    assert [loaded.layer for loaded in load_autoencoders(tmp_path)] == [0, 2]
    assert [loaded.layer for loaded in load_autoencoders(tmp_path, layers=[2])] == [2]
    assert [loaded.layer for loaded in load_autoencoders(tmp_path / "layers.2")] == [2]
    with pytest.raises(sj.UserError, match="no autoencoder of layer 1, but of 0, 2"):
        load_autoencoders(tmp_path, layers=[1])
    sj.save_autoencoder(one, tmp_path / "more" / "layers.2", format="sparsify")
    with pytest.raises(sj.UserError, match="several autoencoders of one layer"):
        load_autoencoders(tmp_path)
