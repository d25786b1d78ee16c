"""The texts that `steerling features` reads: lines of a file, or training documents of a corpus store."""

from __future__ import annotations

from pathlib import Path

import pytest

import steerling_jax as sj
from steerling_jax.attribution.features.texts import read_corpus, read_lines
from steerling_jax.io.corpus.store import CorpusStore


def test_training_documents_of_a_corpus(topic_store: CorpusStore, topic_bundle: sj.Bundle, golden: Path):
    folder = str(topic_store.folder)
    training = [one for one in topic_store.documents if one.split == "train"]
    every = read_corpus(folder, topic_bundle, 10**9)
    decode = topic_bundle.tokenizer.decode
    assert every.texts == [decode(topic_store.tokens(one.start, one.end).tolist()) for one in training]
    assert every.places == [f"{one.name} ({one.source})" for one in training]
    tokens = sum(one.end - one.start for one in training)
    half = read_corpus(folder, topic_bundle, tokens // 2)
    assert half.texts == every.texts[::2]  # evenly spaced
    with pytest.raises(sj.UserError, match="was made with another tokenizer"):
        read_corpus(folder, sj.load(golden / "base"), 100)


def test_lines_of_a_file(tmp_path: Path):
    path = tmp_path / "texts.txt"
    path.write_text("one\n\n  \ntwo three\n")
    assert read_lines(str(path)) == (["one", "two three"], ["line 1", "line 4"], "texts.txt")
    path.write_text("\n\n")
    with pytest.raises(sj.UserError, match="has no texts; write one in each line"):
        read_lines(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(sj.UserError, match="is not UTF-8 text"):
        read_lines(str(path))
    with pytest.raises(sj.UserError, match="Cannot read"):
        read_lines(str(tmp_path / "none.txt"))
