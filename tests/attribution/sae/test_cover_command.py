"""`steerling sae cover` on small files: targets, coverage, a generator with its controls, and what it refuses."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.cli.main import main
from steerling_jax.explain.text_features import read_text_features
from tests.worlds.topic_texts import AUTOENCODER, MODEL, READ_WITH, topic_texts, write_lines

# Answers with a text of the high topic for a feature that it knows by the words of the prompt, and with one of the low
# topic otherwise; --fail-at N fails at that call, as --how says, unless the file --once exists.
GENERATOR = """
import json, os, re, signal, sys, time
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
table, prompt, call = json.load(open(sys.argv[1])), sys.stdin.read(), int(options["--call"])
log = options.get("--log")
if log:
    open(log, "a").write(f"{call}\\n")
if call == int(options.get("--fail-at", -1)) and not os.path.exists(options.get("--once", "")):
    if "--once" in options:
        open(options["--once"], "w").close()
    how = options["--how"]
    if how == "kill":
        os.kill(os.getppid(), signal.SIGKILL)
        sys.exit()
    if how == "exit":
        sys.exit("no key")
    if how == "hang":
        time.sleep(600)
    if how == "bytes":
        sys.stdout.buffer.write(bytes([255, 7]))
    if how == "endless":
        while True:
            print("1 " * 1000)
    sys.exit()
words = re.search("belong to it: (.*)", prompt)
texts = table.get(words[1], []) if words else []
print(prompt if call % 3 == 2 else "", texts[call % len(texts)] if texts else table[""][call])
"""


def run(*words: str) -> int:
    return main(["sae", "cover", *words, *READ_WITH])


class World:
    """A data set of the low topic, a pool of both, and what fires in each text."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._fires: dict[str, np.ndarray] = {}
        self.bundle, self.autoencoder = sj.load(MODEL, dtype="float32"), sj.load_autoencoder(AUTOENCODER, k=10)
        vocabulary = self.bundle.config.vocab_size
        self.texts = {
            "data": topic_texts("low", 12, vocabulary),
            "high": topic_texts("high", 24, vocabulary, seed=1),
            "low": topic_texts("low", 24, vocabulary, seed=2),
            "more": topic_texts("high", 24, vocabulary, seed=3),
        }
        self.texts["pool"] = [*self.texts["high"][:12], *self.texts["low"]]
        for name, texts in self.texts.items():
            write_lines(folder / f"{name}.jsonl", [{"text": text} for text in texts])

    def file(self, name: str) -> str:
        return str(self.folder / f"{name}.jsonl")

    def fires(self, name: str) -> np.ndarray:
        """(texts, S) bool."""
        if name not in self._fires:
            (read,) = read_text_features(self.bundle, [self.autoencoder], self.texts[name])
            self._fires[name] = read.strongest.toarray() > 0
        return self._fires[name]

    def missed(self, count: int) -> list[int]:
        """Features that fire in some texts of the high topic, and in none of the data set."""
        here = ~self.fires("data").any(axis=0)
        often = self.fires("high").sum(axis=0) * here
        return np.argsort(-often, kind="stable")[:count].tolist()

    def generator(self, features: list[int], **options: object) -> str:
        """The command of a generator that knows texts for all of the features but the last."""
        from steerling_jax.explain.feature_texts import promoted_tokens_of

        fires = self.fires("more")
        table: dict[str, list[str]] = {"": self.texts["low"]}
        promoted = promoted_tokens_of(self.bundle, self.autoencoder, features, 8)
        for feature, words in list(zip(features, promoted, strict=True))[:-1]:
            known = [text for text, fired in zip(self.texts["more"], fires[:, feature], strict=True) if fired]
            table[", ".join(dict.fromkeys(words))] = known
        path, program = self.folder / "table.json", self.folder / "generator.py"
        path.write_text(json.dumps(table))
        program.write_text(GENERATOR)
        words = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        return " ".join([sys.executable, "-I", "-S", str(program), str(path), "--call", "{call}", *words])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("cover"))


Report = Callable[..., dict[str, Any]]


@pytest.fixture
def report(capsys: pytest.CaptureFixture) -> Report:
    def run_json(*words: str) -> dict[str, Any]:
        assert run(*words, "--json") == 0
        return json.loads(capsys.readouterr().out)

    return run_json


def test_a_data_set_covers_what_fires_in_it(world: World, report: Report, tmp_path: Path, capsys):
    counts = world.fires("data").sum(axis=0)
    features = [int(counts.argmax()), world.missed(1)[0], int(counts.argmax())]
    line = [world.file("data"), *(word for one in features for word in ("--feature", f"feature:{one}"))]
    result = report(*line, "--plot", str(tmp_path / "cover.svg"))
    assert [one["feature"] for one in result["targets"]] == features[:2]
    assert [one["texts"] for one in result["targets"]] == [counts.max(), 0]
    assert [one["covered"] for one in result["targets"]] == [True, False]
    assert result["all_features"] == {"fired": int((counts > 0).sum()), "features": len(counts)}
    assert "<svg" in (tmp_path / "cover.svg").read_text()
    assert report(*line, "--least", str(counts.max() + 1))["missed"] == 2
    assert report(*line, "--limit", "3")["texts"] == 3
    assert run(*line) == 0
    assert "12 texts cover 1 of 2 targets" in capsys.readouterr().out


def test_targets_by_contrast(world: World, report: Report):
    sets = ["--positive", world.file("high"), "--negative", world.file("low")]
    result = report(world.file("data"), *sets, "--targets", "4")
    high, low = world.fires("high"), world.fires("low")
    difference = high.mean(axis=0) - low.mean(axis=0)
    scores = [one["score"] for one in result["targets"]]
    np.testing.assert_allclose(scores, np.sort(difference)[::-1][:4])
    for one in result["targets"]:
        assert one["score"] == pytest.approx(difference[one["feature"]])


def test_targets_by_name_and_by_description(world: World, tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = tmp_path / "layers.1"
    sj.save_autoencoder(world.autoencoder, folder, format="sparsify")
    entries = [{"id": 3, "head": "feature", "name": "Open files"}, {"id": 9, "head": "feature", "name": "Sockets"}]
    (folder / "features.json").write_text(json.dumps(entries))
    own = ["--model", str(MODEL), "--autoencoder", str(folder), "--k", "10", "--json"]
    for options, features in (
        (["--feature", "sockets", "--feature", "3"], [9, 3]),
        (["--about", "files that a program opened", "--targets", "1"], [3]),
    ):
        assert main(["sae", "cover", world.file("data"), *options, *own]) == 0
        targets = json.loads(capsys.readouterr().out)["targets"]
        assert [one["feature"] for one in targets] == features
        assert targets[-1]["name"] == "Open files"
    assert main(["sae", "cover", world.file("data"), "--about", "herons", *own]) == 2
    assert "No feature has a word of 'herons'" in capsys.readouterr().err


def test_a_generator_covers_what_is_missed(world: World, report: Report, tmp_path: Path, capsys):
    missed = world.missed(3)
    out = tmp_path / "run"
    line = [world.file("data"), *(word for one in missed for word in ("--feature", str(one))), "--passages",
            world.file("high"), "--generator", world.generator(missed), "--out", str(out), "--budget", "8"]  # fmt: skip
    result = report(*line, "--controls", "--pool", world.file("pool"), "--plot", str(tmp_path / "cover.svg"))
    figures = result["synthesis"]
    # The generator knows texts for all features but the last, which takes the rest of the budget.
    assert figures["calls"] == 8
    assert [one["covered"] for one in figures["features"]][:2] == [True, True]
    examples = [json.loads(row) for row in (out / "examples.jsonl").read_text().splitlines()]
    assert len(examples) == figures["kept"] >= 2
    (read,) = read_text_features(world.bundle, [world.autoencoder], [one["text"] for one in examples])
    for number, one in enumerate(examples):
        assert one["text"] in world.texts["more"]  # without the prompt that the generator repeats
        assert read.strongest[number, one["feature"]] == pytest.approx(one["latent"], rel=1e-4)
        fired = [feature for feature in missed if read.strongest[number, feature] > 0]
        assert one["fires"] == sorted(fired)
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(result))
    arms = figures["arms"]
    assert {name: arm["calls"] for name, arm in arms.items()} == dict.fromkeys(arms, 8)
    assert list(arms) == ["targets", "other features", "no feature"]
    assert arms["targets"]["curve"][-1] == arms["targets"]["covered"] >= 2
    assert arms["no feature"]["covered"] == world.fires("low")[:8][:, missed].any(axis=0).sum()
    pool = world.fires("pool")[:, missed]
    assert figures["natural"]["in_pool"] == pool.any(axis=0).sum()
    assert 0 < figures["natural"]["covered"] <= figures["natural"]["in_pool"]
    assert figures["differences"]["no feature"]["mean"] == pytest.approx(
        (arms["targets"]["covered"] - arms["no feature"]["covered"]) / 3
    )
    # What is kept is a data set that covers the features.
    again = report(str(out / "examples.jsonl"), *line[1:7])
    assert [one["covered"] for one in again["targets"]][:2] == [True, True]
    # A larger budget continues the run, and the same one makes no call.
    calls = (out / "calls.jsonl").read_text()
    assert report(*line)["synthesis"]["calls"] == 8
    assert (out / "calls.jsonl").read_text() == calls
    assert report(*line[:-1], "10")["synthesis"]["calls"] == 10
    assert (out / "calls.jsonl").read_text().startswith(calls)
    assert run(*line) == 0
    assert "missed targets" in " ".join(capsys.readouterr().out.split())


def test_nothing_is_asked_where_nothing_is_missed(world: World, report: Report, tmp_path: Path):
    feature = int(world.fires("data").sum(axis=0).argmax())
    line = [
        world.file("data"),
        "--feature",
        str(feature),
        "--generator",
        "no-such-program",
        "--out",
        str(tmp_path / "r"),
    ]
    result = report(*line, "--controls", "--pool", world.file("pool"), "--budget", "2")
    assert result["synthesis"]["calls"] == 0


def test_a_generator_that_fails_stops_the_run_and_loses_nothing(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture
):
    missed = world.missed(3)
    out, log = tmp_path / "run", tmp_path / "log"
    line = [world.file("data"), *(word for one in missed for word in ("--feature", str(one))), "--out", str(out)]
    broken = world.generator(missed, fail_at=1, how="exit", log=log)
    assert run(*line, "--budget", "4", "--tries", "2", "--generator", broken) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "call 2: exited with code 1 (no key); correct it; all finished calls are stored" in error
    assert log.read_text().split() == ["0", "1", "1"]
    assert len((out / "examples.jsonl").read_text().splitlines()) == 1
    assert run(*line, "--budget", "4", "--generator", world.generator(missed, log=log)) == 0
    assert log.read_text().split() == ["0", "1", "1", "1", "2", "3"]
    calls = [json.loads(row) for row in (out / "calls.jsonl").read_text().splitlines()]
    assert [call["number"] for call in calls] == [0, 1, 2, 3]


def test_a_generator_that_hangs(world: World, tmp_path: Path, capsys: pytest.CaptureFixture):
    missed = world.missed(2)
    generator = world.generator(missed, fail_at=0, how="hang")
    line = [world.file("data"), "--feature", str(missed[0]), "--out", str(tmp_path / "run"), "--generator", generator]
    assert run(*line, "--time-limit", "0.5", "--tries", "1") == 2
    assert "call 1: no answer within 0.5 seconds; raise --time-limit" in " ".join(capsys.readouterr().err.split())


def test_a_killed_run_continues_exactly(world: World, report: Report, tmp_path: Path):
    missed = world.missed(3)
    line = [world.file("data"), *(word for one in missed for word in ("--feature", str(one))), "--budget", "6",
            "--controls"]  # fmt: skip
    killed, whole, log = tmp_path / "killed", tmp_path / "whole", tmp_path / "log"
    kill = {"fail_at": 2, "how": "kill", "once": tmp_path / "once", "log": log}
    command = [sys.executable, "-m", "steerling_jax.cli.main", "sae", "cover", *line, *READ_WITH]
    own = ["--generator", world.generator(missed, **kill), "--out", str(killed)]
    done = subprocess.run([*command, *own], check=False, timeout=600)
    assert done.returncode == -signal.SIGKILL
    assert len((killed / "calls.jsonl").read_text().splitlines()) == 2
    with (killed / "calls.jsonl").open("a") as file:
        file.write('{"arm": "targets", "number": 2, "te')  # as if it had been killed while it wrote a line
    continued = report(*line, *own)
    expected = report(*line, "--generator", world.generator(missed), "--out", str(whole))
    assert continued["synthesis"] == expected["synthesis"]
    assert (killed / "examples.jsonl").read_text() == (whole / "examples.jsonl").read_text()
    texts = [[json.loads(row)["text"] for row in (folder / "calls.jsonl").read_text().splitlines()]
             for folder in (killed, whole)]  # fmt: skip
    assert texts[0] == texts[1]
    assert log.read_text().split() == ["0", "1", "2", *map(str, range(2, 6)), *map(str, range(6)), *map(str, range(6))]


def test_two_runs_do_not_write_to_one_folder(world: World, tmp_path: Path, capsys: pytest.CaptureFixture):
    missed = world.missed(2)
    out = tmp_path / "run"
    out.mkdir()
    with (out / "calls.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        line = [world.file("data"), "--feature", str(missed[0]), "--generator", world.generator(missed)]
        assert run(*line, "--out", str(out)) == 2
    assert "Another run writes to" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("how", "words"),
    [("bytes", "not UTF-8 at byte 0"), ("endless", "wrote more than 20000 bytes"), ("empty", "empty")],
)
def test_an_unusable_output_is_reported_and_the_run_goes_on(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture, how: str, words: str
):
    missed = world.missed(3)
    features = [word for one in missed for word in ("--feature", str(one))]
    line = [world.file("data"), *features, "--generator", world.generator(missed, fail_at=1, how=how), "--budget", "3"]
    assert run(*line, "--out", str(tmp_path / "run")) == 0
    assert words in " ".join(capsys.readouterr().err.split())
    calls = [json.loads(row) for row in (tmp_path / "run" / "calls.jsonl").read_text().splitlines()]
    assert [call["outcome"] == "unusable" for call in calls] == [False, True, False]
    assert run(*line, "--out", str(tmp_path / "other"), "--tries", "1") == 2
    assert "the last 1 outputs are unusable" in " ".join(capsys.readouterr().err.split())


def test_bad_input(world: World, tmp_path: Path, capsys: pytest.CaptureFixture):
    target = ["--feature", "3"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    out, generator = ["--out", str(tmp_path / "run")], ["--generator", world.generator([3, 4])]
    assert run(world.file("data"), "--feature", str(world.missed(1)[0]), *generator, *out, "--budget", "1") == 0
    capsys.readouterr()
    for options, words in (
        ([], "one of --feature, --about, and --positive with --negative"),
        ([*target, "--about", "files"], "one of --feature, --about"),
        (["--positive", world.file("low")], "--positive and --negative belong together"),
        (["--positive", world.file("low"), "--negative", world.file("low")], "No feature fires more often in"),
        (["--feature", "100000"], "There is no feature 100000"),
        (["--feature", "sockets"], "'sockets' is not an id"),
        ([*target, *out], "--out is for the texts of a generator"),
        ([*target, *generator], "--generator needs --out"),
        ([*target, "--generator", "a 'b", *out], "cannot be parsed"),
        ([*target, *generator, "--out", str(foreign)], "holds other files and no run"),
        ([*target, *generator, *out, "--seed", "1"], "holds a run with another"),
        ([*target, *generator, *out, "--pool", world.file("data")], "has 12 texts, fewer than --budget, 100"),
        ([*target, "--column", "question"], "has no column 'question'"),
        (["--feature", str(world.missed(1)[0]), "--generator", "no-such-program", "--out", str(tmp_path / "new")],
         "call 1: cannot be started (No such file or directory)"),
    ):  # fmt: skip
        assert run(world.file("data"), *options) == 2, words
        assert words in " ".join(capsys.readouterr().err.split())
    llama = ["--model", str(MODEL.parent / "llama"), *READ_WITH[2:]]
    line = ["sae", "cover", world.file("data"), "--feature", str(world.missed(1)[0]), *generator, *out, *llama]
    assert main(line) == 2
    assert "holds a run with another model" in " ".join(capsys.readouterr().err.split())
