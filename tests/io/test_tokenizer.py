"""Tokenizers: text survives a round trip, never gives special tokens, and damaged files are reported."""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerling_jax.errors import UserError
from steerling_jax.io.tokenizers.cl100k import TiktokenTokenizer
from steerling_jax.io.tokenizers.load import load_tokenizer
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.io.tokenizers.vocabulary import train_sentencepiece
from steerling_jax.tokenizer import IdsOnlyTokenizer, SpecialIds

SAMPLE = [
    "def greet(name):\n    if name:\n        print(f'hello {name}')\n\n    return 12345\n",
    "The quick brown fox jumps over the lazy dog. The dog returns a value, or raises an exception.\n",
    "안녕하세요, 세계. 값은 문자열이다.\n",
] * 20
ODD_TEXTS = [
    "", " ", "  lead", "trail  ", "a\tb\t\tc", "\n\n\n", "a\r\nb\rc", "x    =  1\n\n\n        y",
    "한국어 문장과 English.", "مرحبا",
    "😀👩‍👩‍👧", "▁ real ▁▁ lower one eighth block", "\x00\x01\x7f", "é e\u0301 ﬁ Å \u00a0 \u3000", "١٢٣ ½ 12345.678",
    "<unk> <s> </s> <0x41> <|mask|> <|endoftext|>", "\u2028\ufeff\u200b",
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_sentencepiece(SAMPLE, 512)


@pytest.fixture(scope="module")
def tokenizer(model: bytes) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(model)


@pytest.fixture(scope="module")
def tiktoken_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary in cl100k's format: the 256 bytes, a few pairs, and the last rank of the real one."""
    pieces = [bytes([byte]) for byte in range(256)] + [b"he", b"ll", b"hell", b"\n\n"]
    lines = [f"{base64.b64encode(piece).decode()} {rank}" for rank, piece in enumerate(pieces)]
    path = tmp_path_factory.mktemp("vocabulary") / "cl100k_base.tiktoken"
    path.write_text("\n".join([*lines, f"{base64.b64encode(b'hello').decode()} 100255"]) + "\n")
    return path


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts_come_back(tokenizer: SentencePieceTokenizer, text: str):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back(tokenizer: SentencePieceTokenizer, text: str):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special.names())


@settings(deadline=None)
@given(st.text(), st.text())
def test_parts_join_to_the_whole(tokenizer: SentencePieceTokenizer, first: str, second: str):
    assert tokenizer.decode(tokenizer.encode(first) + tokenizer.encode(second)) == first + second


def test_lone_surrogates_do_not_stop_it(tokenizer: SentencePieceTokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_special_ids_are_the_last_in_published_order(tokenizer: SentencePieceTokenizer):
    assert tokenizer.vocab_size == 512
    assert tokenizer.special == SpecialIds(mask_id=511, endofchunk_id=510, bos_id=509, pad_id=508, eos_id=507)
    assert tokenizer.decode([509, *tokenizer.encode("hi"), 510, 507, 511, 9999, -1]) == "hi"


def test_pieces_are_printable(tokenizer: SentencePieceTokenizer):
    assert all(tokenizer.piece(i).isprintable() and tokenizer.piece(i) for i in range(tokenizer.vocab_size))
    assert tokenizer.piece(511) == "<|mask|>"
    (newline,) = tokenizer.encode("\n")
    assert tokenizer.piece(newline) == "\\n"
    assert tokenizer.piece(tokenizer.encode("😀")[0]) == "<0xF0>"


def test_indentation_is_cheap_and_digits_stand_alone(tokenizer: SentencePieceTokenizer):
    assert len(tokenizer.encode("        ")) <= 2
    assert [tokenizer.piece(i) for i in tokenizer.encode("12345")] == list("12345")


def test_training_is_deterministic(model: bytes):
    assert train_sentencepiece(iter(SAMPLE), 512) == model


def test_long_texts_are_not_skipped():
    whole = "".join(SAMPLE) * 30
    piece = SentencePieceTokenizer(train_sentencepiece([whole * 20], 512))
    assert len(piece.encode("exception")) < 4


@pytest.mark.parametrize(("size", "words"), [(5000, "at most"), (250, "at least")])
def test_a_vocabulary_that_is_impossible_names_the_nearest_that_is_not(size: int, words: str):
    texts = ["the quick brown fox jumps over the lazy dog " * 3] * 5
    with pytest.raises(UserError, match=f"vocabulary of {size} tokens .*{words}") as raised:
        train_sentencepiece(texts, size)
    (nearest,) = map(int, re.findall(words + r" (\d+)", str(raised.value)))
    assert SentencePieceTokenizer(train_sentencepiece(texts, nearest)).vocab_size == nearest
    with pytest.raises(UserError, match=f"{words} {nearest}"):
        train_sentencepiece(texts, nearest + (1 if size > nearest else -1))


def test_too_large_a_vocabulary_is_told():
    with pytest.raises(UserError, match="vocabulary of 50000 tokens"):
        train_sentencepiece(["a few words"], 50_000)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 100])
def test_damaged_sentencepiece_file(tmp_path: Path, content: bytes):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        SentencePieceTokenizer(path)


def test_vocabulary_of_another_model(model: bytes):
    with pytest.raises(UserError, match="another model"):
        SentencePieceTokenizer(model, SpecialIds.last_of(300), 300)


def test_sha256_is_that_of_the_file(tmp_path: Path, model: bytes, tokenizer: SentencePieceTokenizer):
    (tmp_path / "tokenizer.model").write_bytes(model)
    again = load_tokenizer(tmp_path, SpecialIds.last_of(512), 512)
    assert again.sha256 == tokenizer.sha256
    assert again.encode("hello 세계") == tokenizer.encode("hello 세계")


@settings(deadline=None)
@given(st.text())
def test_tiktoken_round_trip(tiktoken_file: Path, text: str):
    tokenizer = load_tokenizer(tiktoken_file.parent, TiktokenTokenizer.PUBLISHED, 100281)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tiktoken_takes_any_amount_of_white_space(tiktoken_file: Path):
    """Encoded in one piece, it would make tiktoken panic, which is not an Exception."""
    tokenizer = TiktokenTokenizer(tiktoken_file)
    text = "a" + " " * 1_100_000 + "b"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    short = "a" + " " * 99_999 + "b"  # whole, as tiktoken reads it
    assert tokenizer.encode(short) == tokenizer._encoding.encode_ordinary(short)


def test_tiktoken_specials_and_merges(tiktoken_file: Path):
    tokenizer = TiktokenTokenizer(tiktoken_file)
    assert tokenizer.vocab_size == 100281
    assert tokenizer.encode("hell") == [258]
    assert 100257 not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.decode([100278, 258, 100279, 100257, 100280]) == "hell"
    assert [tokenizer.piece(i) for i in (258, 259, 100280, 5000, 200)] == [
        "hell", "\\n\\n", "<|mask|>", "<unused 5000>", "<0xC8>",
    ]  # fmt: skip


def test_chat_prompt(tiktoken_file: Path):
    special = SpecialIds(100280, 100279, 100278, 100277, 100257, eot_id=100283)
    tokenizer = TiktokenTokenizer(tiktoken_file, special)
    ids = tokenizer.chat_prompt([{"role": "user", "content": "hell"}])
    assert "".join(tokenizer.piece(i) for i in ids) == (
        "<|start_header_id|>user<|end_header_id|>\\n\\nhell<|endofchunk|><|eot|>"
        "<|start_header_id|>assistant<|end_header_id|>\\n\\n"
    )
    assert tokenizer.vocab_size == 100284


@pytest.mark.parametrize("content", [b"", b"not base64 at all", b"aGVsbG8= 1\n", b"aGVsbG8= one\n"])
def test_damaged_tiktoken_file(tmp_path: Path, content: bytes):
    path = tmp_path / "cl100k_base.tiktoken"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cl100k_base\.tiktoken"):
        TiktokenTokenizer(path)


def test_tiktoken_is_optional(tiktoken_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(UserError, match=r"steerling-jax\[tiktoken\]"):
        TiktokenTokenizer(tiktoken_file)


def test_ids_only(tmp_path: Path):
    tokenizer = load_tokenizer(tmp_path, SpecialIds.last_of(256), 256)
    assert isinstance(tokenizer, IdsOnlyTokenizer)
    assert tokenizer.encode(" 3 1  2 ") == [3, 1, 2]
    assert tokenizer.decode([253, 128, 64, 251, 255]) == "128 64"
    assert tokenizer.piece(255) == "<|mask|>"
    with pytest.raises(UserError, match="--prompt-ids"):
        tokenizer.encode("hello")
    with pytest.raises(UserError, match="256 is outside"):
        tokenizer.encode("1 256")
