"""A SentencePiece vocabulary as a tokenizer.json: the `tokenizers` library gives the same ids and texts."""

from __future__ import annotations

import argparse
import inspect
import json
import pathlib
import textwrap
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import steerling_jax
from steerling_jax.io.tokenizers.huggingface import huggingface_tokenizer
from steerling_jax.io.tokenizers.load import load_decoder_tokenizer
from steerling_jax.io.tokenizers.sentencepiece import SentencePieceTokenizer
from steerling_jax.io.tokenizers.sentencepiece_json import sentencepiece_as_json, tokenizer_settings

VOCABULARY = Path(steerling_jax.__file__).parent / "bundled/steerling-pydocs/tokenizer.model"
TEXTS = [
    *(inspect.getsource(module) for module in (textwrap, argparse)),
    pathlib.Path.__doc__ or "",
    "  two spaces,\n\n\tindentation,  12345 digits, naïve façade, 日本語, 🙂 and <|eos|> as text \n",
    "",
]


@pytest.fixture(scope="module")
def original() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(VOCABULARY)


@pytest.fixture(scope="module")
def folder(original: SentencePieceTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.model").write_bytes(original.proto)
    (folder / "tokenizer.json").write_text(json.dumps(sentencepiece_as_json(original.proto, original.special)))
    settings = tokenizer_settings(original.special, "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_ids_and_texts_are_the_same(original: SentencePieceTokenizer, folder: Path, number: int) -> None:
    converted = huggingface_tokenizer(folder, original.vocab_size)
    ids = original.encode(TEXTS[number])
    assert converted.encode(TEXTS[number]) == ids
    assert converted.decode(ids) == TEXTS[number]


def test_special_tokens_have_their_ids(original: SentencePieceTokenizer, folder: Path) -> None:
    converted = huggingface_tokenizer(folder, original.vocab_size)
    special = original.special
    assert (converted.special.bos_id, converted.special.eos_id) == (special.bos_id, special.eos_id)
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert library.get_vocab_size() == original.vocab_size
    ids = library.encode("<|bos|>a<|endofchunk|>").ids
    assert (ids[0], ids[-1]) == (special.bos_id, special.endofchunk_id)


def test_a_model_folder_is_read_with_the_original(original: SentencePieceTokenizer, folder: Path) -> None:
    """Corpora know their vocabulary by the hash of its file."""
    tokenizer = load_decoder_tokenizer(folder, original.special, original.vocab_size)
    assert tokenizer.sha256 == original.sha256
