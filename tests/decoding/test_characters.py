"""Tokens as characters: whole characters only, in any vocabulary, and joined they are what the tokenizer decodes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from steerling_jax.decoding.characters import TextRun, text_runs
from steerling_jax.io.tokenizers.library_tokenizer import LibraryTokenizer
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.io.tokenizers.vocabulary import train_sentencepiece
from steerling_jax.tokenizer import IdsOnlyTokenizer, SpecialIds, Tokenizer
from tests.io.test_tokenizer import SAMPLE

KOREAN = "정규 표현식 é😀 = 1"
KINDS = ("sentencepiece", "byte_level", "space_first", "ids_only")


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    """One of each kind; most Korean characters take three tokens, each a byte."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(SAMPLE[:2], trainer)
    # As Llama 2 has it: a space before every text, which decoding removes again, and bytes for unknown characters.
    pieces = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "a": 257, "▁a": 258}
    first = Library(models.BPE(pieces, [("▁", "a")], byte_fallback=True, unk_token=None))
    first.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    first.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return {
        "sentencepiece": SentencePieceTokenizer(train_sentencepiece(SAMPLE, 420)),
        "byte_level": LibraryTokenizer(library.to_str(), "test", 330, ids={"eos_id": "<|end|>"}),
        "space_first": LibraryTokenizer(first.to_str(), "test", 260, ids={}),
        "ids_only": IdsOnlyTokenizer(SpecialIds.last_of(300), 300),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_joined_they_are_the_decoded_text_for_any_ids(tokenizers: dict[str, Tokenizer], kind: str):
    tokenizer = tokenizers[kind]

    @settings(deadline=None, max_examples=300, derandomize=True, database=None)
    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1) | st.integers(0, 258), max_size=14))
    def check(ids: list[int]):
        runs = text_runs(tokenizer, ids)
        assert "".join(run.text for run in runs) == tokenizer.decode(ids)
        assert [at for run in runs for at in range(run.start, run.end)] == list(range(len(ids)))
        for run in runs:
            assert run.complete or "\ufffd" in run.text, "only what is no character is incomplete"

    check()


@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_character_is_never_divided(tokenizers: dict[str, Tokenizer], kind: str):
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(KOREAN)
    runs = text_runs(tokenizer, ids)
    assert "".join(run.text for run in runs) == KOREAN
    assert all(run.complete for run in runs)
    assert all(run.text for run in runs[kind == "space_first" :]), "the first token may be a space that is no text"
    three = [run.text for run in runs if run.end - run.start == 3]
    assert set("정규표현식") & set(three) or kind == "byte_level", "characters of three tokens are one run"
    assert len(runs) < len(ids)


def test_a_half_written_canvas(tokenizers: dict[str, Tokenizer]):
    tokenizer = tokenizers["sentencepiece"]
    mask = tokenizer.special.mask_id
    first, second, third = (tokenizer.encode("정")[i] for i in range(3))
    assert tokenizer.decode([first, second, third]) == "정"
    canvas = [first, mask, third, *tokenizer.encode("규")]
    assert text_runs(tokenizer, canvas, {mask}) == (
        TextRun(0, 1, "\ufffd", complete=False),
        TextRun(1, 2, ""),
        TextRun(2, 3, "\ufffd", complete=False),
        TextRun(3, 6, "규"),
    )
    # Bytes on both sides of a mask are no character, although they are one where the mask is left out.
    assert text_runs(tokenizer, [first, second, mask, third], {mask})[0].text == "\ufffd"
    assert text_runs(tokenizer, [first, second, mask, third]) == (TextRun(0, 4, "정"),)
    assert text_runs(tokenizer, tokenizer.encode("\ufffd"))[0].complete, "the character itself is a character"


def test_a_token_with_parts_of_two_characters():
    """The run goes on until a token ends where a character does."""

    class Bytes(IdsOnlyTokenizer):
        table = ("é".encode()[:1], "é".encode()[1:] + "ü".encode()[:1], "ü".encode()[1:], b"a")

        def token_bytes(self, id: int) -> bytes:
            return self.table[id]

        def decode(self, ids) -> str:
            return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    tokenizer = Bytes(SpecialIds.last_of(300), 300)
    assert text_runs(tokenizer, [0, 1, 2, 3]) == (TextRun(0, 3, "éü"), TextRun(3, 4, "a"))
    assert text_runs(tokenizer, [0, 1, 3]) == (TextRun(0, 2, "é\ufffd", complete=False), TextRun(2, 3, "a"))
