"""`steerling name`: the catalogue that it writes, and names from a program of the user's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from steerling_jax.attribution.naming.label_command import LabelCommand, make_prompt
from steerling_jax.bundle import Bundle
from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.io.catalogue import read_catalogue
from steerling_jax.io.corpus.store import CorpusStore
from tests.worlds.topic_world import KNOWS, TOPIC


@pytest.fixture
def named(topic_bundle: Bundle, topic_store: CorpusStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command and its options."""
    monkeypatch.setattr("steerling_jax.load", lambda _: topic_bundle)
    return ["name", "--corpus", str(topic_store.folder), "--seq-len", "64", "--appearing", "0"]


def program(folder: Path, code: str) -> str:
    """A command line that runs Python code."""
    path = folder / "label.py"
    path.write_text(code)
    return f"{sys.executable} {path}"


def test_names_are_written_into_the_catalogue(named: list[str], topic_bundle: Bundle, tmp_path: Path, capsys):
    out = tmp_path / "concepts.json"
    assert main([*named, "--out", str(out), "--json", "--threshold", "0.65"]) == 0
    report = json.loads(capsys.readouterr().out)
    catalogue = read_catalogue(out, topic_bundle.config)
    knows = catalogue.get(KNOWS, "discovered")
    assert knows.is_named
    assert knows.quality is not None
    assert knows.quality.others is not None
    assert knows.quality.auc > 0.7 > knows.quality.others
    assert int(knows.words[0].removeprefix("id")) in TOPIC
    assert knows.name == " · ".join(knows.words)
    assert len(knows.examples) == 2
    assert report["all"]["concepts"] == 24
    assert report["all"]["named"] == sum(one.is_named for one in catalogue.concepts if one.head == "discovered")
    entry = next(one for one in report["concepts"] if one["entry"]["id"] == KNOWS)["entry"]
    assert entry["quality"]["auc"] == knows.quality.auc
    low = [one for one in catalogue.concepts if one.quality is not None and one.quality.auc < 0.65]
    assert low
    assert all(one.name.startswith(f"unnamed #{one.id} “id") for one in low)
    assert main([*named, "--out", str(out), "--threshold", "0.65"]) == 0
    assert "have a name" in " ".join(capsys.readouterr().err.split())


def test_names_of_a_program_are_scored_by_the_same_rule(named: list[str], topic_bundle: Bundle, tmp_path: Path, capsys):
    out = tmp_path / "concepts.json"
    code = f"""\
import re, sys
prompt = sys.stdin.read()
open({str(tmp_path / "calls")!r}, "a").write("x")
print("Topical id41 id42 id43 id44 id45" if "id4" in prompt.partition("Tokens:")[0] else "Nothing of it")
"""
    line = [*named, "--out", str(out), "--json", "--threshold", "0.6", "--command", program(tmp_path, code)]
    assert main(line) == 0
    concepts = json.loads(capsys.readouterr().out)["concepts"]
    knows = next(one for one in concepts if one["entry"]["id"] == KNOWS)
    assert knows["entry"]["name"].startswith("Topical id41 id42")
    assert knows["entry"]["quality"] == knows["label_quality"] != knows["words"]
    for one in concepts:  # words that are in no text have no score, so the words of the texts stay
        if one["label"] == "Nothing of it":
            assert one["label_quality"] is None
            assert not one["entry"]["name"].startswith("Nothing")
    assert (tmp_path / "calls").read_text() == "x" * sum(one["label"] is not None for one in concepts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calls", "concepts.json", "label.py"]


def test_answers_are_kept_for_the_next_run(tmp_path: Path):
    calls = tmp_path / "calls"
    command = program(tmp_path, f"open({str(calls)!r}, 'a').write('x'); print(' A  name ')")
    kept = tmp_path / "answers"
    prompt = make_prompt(["tide"], ["wave"], ["a text"])
    assert LabelCommand(command, 600.0, kept).name("discovered concept 1", prompt) == "A name"
    kept.write_text(kept.read_text() + '{"prompt": "cut o')
    again = LabelCommand(command, 600.0, kept)
    assert again.name("discovered concept 1", prompt) == "A name"
    assert calls.read_text() == "x"
    again.name("discovered concept 1", f"{prompt} ")
    assert calls.read_text() == "xx"
    again.forget()
    assert not kept.exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print()", "printed nothing; it must print a name"),
        ("print('x' * 81)", "which is not a name; it must print a name of at most 80"),
        ("import sys; sys.stdout.buffer.write(bytes([255, 7]))", "which is not a name"),
        ("import sys; sys.exit('no\\nkey')", r"exited with code 1 \(no key\); correct it"),
        ("import time; time.sleep(600)", "no answer within 0.5 seconds; raise --time-limit"),
    ],
)
def test_bad_answers_are_one_sentence(tmp_path: Path, code: str, words: str):
    seconds = 0.5 if "sleep" in code else 600.0
    command = LabelCommand(program(tmp_path, code), seconds, tmp_path / "answers")
    with pytest.raises(UserError, match=f"label.py', discovered concept 3: .*{words}"):
        command.name("discovered concept 3", "prompt")
    assert not (tmp_path / "answers").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--command", "no-such-program"], "cannot be started (No such file or directory)"),
        (["--command", "a 'b"], "cannot be parsed (No closing quotation)"),
        (["--command", " "], "--command is empty"),
        (["--command", "cat", "--out", "/dev/null"], "--command needs a file for --out"),
        (["--threshold", "0.2"], "--threshold is 0.2"),
    ],
)
def test_bad_options(named: list[str], tmp_path: Path, capsys, options: list[str], words: str):
    assert main([*named, "--out", str(tmp_path / "c.json"), *options]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "c.json").exists()
