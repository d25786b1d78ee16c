"""`steerling generate -` reads the text to continue from standard input."""

from __future__ import annotations

import io
import json

import pytest

from steerling_jax.cli.main import main
from tests.worlds.topic_texts import MODEL

LINE = ["generate", "--model", str(MODEL), "--greedy", "--max-new-tokens", "3", "--json"]


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_piped_prompt_is_continued_like_a_given_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    texts = []
    pipe(monkeypatch, b"5 17 4\n")
    for prompt in ("-", "5 17 4\n"):
        assert main([*LINE, prompt]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1] != ""


@pytest.mark.parametrize(
    ("content", "words"), [(b" \n", "Standard input is empty"), (b"\xff", "Standard input is not UTF-8")]
)
def test_what_is_not_a_text_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, content: bytes, words: str
):
    pipe(monkeypatch, content)
    assert main([*LINE, "-"]) == 2
    assert words in capsys.readouterr().err
