"""Chunks: together they are the document, they end at sentences and lines, and their sizes are near the target."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.io.tokenizers.vocabulary import train_sentencepiece
from steerling_jax.train.corpus.chunking import chunks

CODE = "".join(
    f'def function_{i}(a, *, b=1):\n    """Adds two numbers."""\n    return a + b + {i}\n\n\n' for i in range(9)
)


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_sentencepiece([Path(__file__).read_text(encoding="utf-8")] * 5, 400))


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("ab. \n\t>>>가。😀#"), max_size=400), st.booleans(), st.integers(1, 40))
def test_chunks_join_to_the_document(tokenizer: SentencePieceTokenizer, text: str, code: bool, target: int):
    found = list(chunks(text, tokenizer, target, code=code))
    assert "".join(part for part, _ in found) == text
    assert all(part and tokenizer.decode(ids) == part for part, ids in found)


def test_chunks_are_near_the_target(tokenizer: SentencePieceTokenizer):
    text = "A sentence of some words goes here. Another follows it there!\n" * 50
    sizes = [len(ids) for _, ids in chunks(text, tokenizer, 64)]
    assert max(sizes) <= 70
    assert min(sizes[:-1]) >= 32


def test_chunks_end_at_sentences_and_lines(tokenizer: SentencePieceTokenizer):
    prose = "One short sentence is here. A second\ngoes over a line. A third is the last of them all.\n"
    parts = [part for part, _ in chunks(prose, tokenizer, 40)]
    assert all(part.rstrip().endswith(".") for part in parts)
    code_parts = [part for part, _ in chunks(CODE, tokenizer, 60, code=True)]
    assert len(code_parts) > 2
    assert all(part.endswith("\n") for part in code_parts)


def test_text_without_boundaries_is_divided(tokenizer: SentencePieceTokenizer):
    assert max(len(ids) for _, ids in chunks("가나다라" * 200 + "x" * 3000, tokenizer, 32)) <= 48
