"""Files that users write, from `steerling prepare --check` to a corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.train.corpus.ontology import read_concepts

SEA = [
    "The boat sails on the sea.",
    "Waves rock the boat.",
    "Sails fill with wind at sea.",
    "A harbour for the boat.",
    "The sea has high waves today.",
]
LAND = ["The train runs on rails.", "A field of wheat.", "The car is on the road.", "Houses line the road."]


MINE = f"""
[[concept]]
name = "The sea"
group = "topic"
description = "Boats, waves and harbours."
examples = {json.dumps(SEA)}
counterexamples = {json.dumps(LAND)}
most = 0.5

[[concept]]
name = "Houses"
group = "topic"
description = "Where people live."
words = ["house"]
examples = ["Two houses."]

[[source]]
name = "tales"
description = "Short tales."
license = "CC0-1.0"
files = "tales.txt"
"""


def test_users_files_from_check_to_corpus(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "tales.txt").write_text(" ".join(SEA + LAND * 5) * 6)
    (tmp_path / "mine.toml").write_text(MINE)
    assert main(["prepare", "--check", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["kind"], row["name"]) for row in rows] == [
        ("concept", "The sea"),
        ("concept", "Houses"),
        ("source", "tales"),
    ]
    assert "of 9 are right" in rows[0]["found"]
    assert rows[1]["found"] == "by rule (1 words), right for 1 examples"
    assert "1 files, " in rows[2]["found"]
    line = ["prepare", "--out", tmp_path / "store", "--source", tmp_path / "mine.toml", "--vocab-size", 300]
    line += ["--concepts", tmp_path / "mine.toml", "--chunk-tokens", 40, "--heldout-share", 0]
    assert main([str(word) for word in line]) == 0
    store = CorpusStore(tmp_path / "store")
    assert [concept["name"] for concept in store.concepts] == ["The sea", "Houses"]
    assert store.annotators == ["document", "rules", "examples"]
    tokenizer = SentencePieceTokenizer(store.folder / "tokenizer.model")
    given, true = [], []
    for number in range(store.chunk_count):
        chunk = store.chunk(number)
        words = tokenizer.decode(store.tokens(chunk.start, chunk.end).tolist())
        assert (1 in chunk.labels) == ("Houses" in words)
        given.append(0 in chunk.labels)
        true.append(any(word in words for word in ("boat", "sea", "Waves", "waves")))
    both = sum(a and b for a, b in zip(given, true))
    assert both / sum(given) > 0.9
    assert both / sum(true) > 0.8


def test_errors_in_users_files_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "tales.txt").write_text("x")
    for old, new, words in [
        ('"Two houses."', '"Two homes."', "'Houses' do not match its example 'Two homes.'"),
        ("tales.txt", "nowhere.txt", "nowhere.txt is not a folder or a file"),
        ('name = "Houses"', 'name = "Threads"', "'Threads' is already defined"),
        (MINE, "x = 1", "has no [[concept]], [[source]] or [[labels]]"),
        ("[[source]]", "[[sources]]", "mine.toml: sources is none of concept, source, labels"),
    ]:
        (tmp_path / "mine.toml").write_text(MINE.replace(old, new))
        assert main(["prepare", "--check", str(tmp_path / "mine.toml")]) == 2
        message = capsys.readouterr().err
        assert words in message
        assert message.count("\n") == 1


def test_a_file_without_concepts(tmp_path: Path):
    (tmp_path / "mine.toml").write_text(MINE.replace("[[concept]]", "[[concepts]]"))
    for path in (tmp_path / "mine.toml", tmp_path):
        with pytest.raises(UserError, match=f"^{path} describes no concept: add a"):
            read_concepts(["bundled", path])
