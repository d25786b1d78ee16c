"""Sources described in TOML files: their fields, their documents in a corpus, invalid descriptions."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from steerling_jax.errors import UserError
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.io.tokenizers.vocabulary import train_sentencepiece
from steerling_jax.train.corpus.sources import TextSource, read_sources
from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig
from steerling_jax.train.prepare.prepare import prepare

WORDS = ["thread", "lock", "socket", "the", "of", "in", "file", "list", "and", "path", "test", "queue"]
TEXTS = [" ".join(random.Random(i).choices(WORDS, k=60)) + f". Number {i}.\n" for i in range(20)]
SOURCE = """
[[source]]
name = "poems"
description = "Poems of our own."
license = "CC0-1.0"
files = "poems/*.jsonl"
text_field = "verse"
kind = "code"
chunk_tokens = 16
"""


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_sentencepiece(TEXTS, 300))


def test_a_described_source(tmp_path: Path, tokenizer: SentencePieceTokenizer):
    (tmp_path / "poems").mkdir()
    (tmp_path / "poems" / "p.jsonl").write_text("\n".join(json.dumps({"verse": text}) for text in TEXTS[:20]))
    (tmp_path / "source.toml").write_text(SOURCE)
    made = prepare(
        tmp_path / "store", CorpusInputs(sources=read_sources(tmp_path / "source.toml"), tokenizer=tokenizer)
    )
    assert {document.source for document in made.documents} == {"poems"}
    spans = made.read("chunk_spans", 0, made.chunk_count)
    assert (spans[:, 1] - spans[:, 0]).max() <= 24
    (described,) = made.manifest["source"]["described"]
    assert described["license"] == "CC0-1.0"
    assert (made.license_of("poems"), made.license_of("other")) == ("CC0-1.0", "")


def test_settings_of_a_source_are_for_its_own_documents(tmp_path: Path, tokenizer: SentencePieceTokenizer):
    (tmp_path / "p.jsonl").write_text(json.dumps({"verse": TEXTS[0], "text": TEXTS[1], "source": "poems"}))
    (tmp_path / "source.toml").write_text(SOURCE.replace("poems/*", "p"))
    plain = TextSource((str(tmp_path / "p.jsonl"),))
    inputs = CorpusInputs(sources=[*read_sources(tmp_path / "source.toml"), plain], tokenizer=tokenizer)
    made = prepare(tmp_path / "store", inputs, PrepareConfig(heldout_share=0.0))
    long = [0, 0]
    for chunk in (made.chunk(number) for number in range(made.chunk_count)):
        long[chunk.document] = max(long[chunk.document], chunk.end - chunk.start)
    texts = [tokenizer.decode(made.tokens(d.start, d.end).tolist()) for d in made.documents]
    sizes = dict(zip(texts, long))
    assert sizes[TEXTS[0]] <= 24 < sizes[TEXTS[1]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[source]]", "", "describes no source"),
        ('license = "CC0-1.0"', "", "source 'poems' has no license"),
        ('kind = "code"', 'kind = "prosa"', "kind is 'prosa'; give prose or code"),
        ("chunk_tokens = 16", 'chunk_tokens = "16"', "chunk_tokens is '16'; give an integer"),
        ("chunk_tokens = 16", "chunk_tokens = -1", "chunk_tokens is -1"),
        ("text_field", "textfield", "textfield is not a field of a source"),
        ('"poems"', '"po ems"', "name is 'po ems'"),
        ('"poems/*.jsonl"', "[1]", "files is .1.; give a list of strings"),
        ('"poems/*.jsonl"', "7", "files is 7; give a list of strings"),
    ],
)
def test_bad_sources(tmp_path: Path, old: str, new: str, message: str):
    assert old in SOURCE
    (tmp_path / "source.toml").write_text(SOURCE.replace(old, new))
    with pytest.raises(UserError, match=rf"source\.toml.*{message}"):
        read_sources(tmp_path / "source.toml")
