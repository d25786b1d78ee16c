"""The tokenizer of a GGUF file, built from the pieces, merges and scores in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.io.chat_template import ChatTemplate
from steerling_jax.io.gguf.header import GgufHeader
from steerling_jax.io.gguf.vocabulary import BYTE, CONTROL, NORMAL, USER_DEFINED, GgufVocabulary
from steerling_jax.io.tokenizers.byte_pair_json import byte_pair_json
from steerling_jax.io.tokenizers.library_tokenizer import LibraryTokenizer
from steerling_jax.io.tokenizers.pre_tokenizers import PRE_TOKENIZERS
from steerling_jax.io.tokenizers.sentencepiece import SPACE
from steerling_jax.io.tokenizers.sentencepiece_json import merges_by_score
from steerling_jax.tokenizer import NO_ID, IdsOnlyTokenizer, SpecialIds, Tokenizer

_SPECIAL_KEYS = {"bos_id": "bos_token_id", "eos_id": "eos_token_id", "pad_id": "padding_token_id"}


def gguf_tokenizer(header: GgufHeader, vocab_size: int) -> Tokenizer:
    """The tokenizer of a GGUF file; one that reads and writes plain ids if the file has no vocabulary.

    vocab_size: the number of rows of the model's embedding. Raises `UserError` if the vocabulary is of a kind that is
    not read, incomplete, or larger than the model's.
    """
    vocabulary = GgufVocabulary(header)
    kind = vocabulary.kind
    if kind is None:
        return IdsOnlyTokenizer(SpecialIds(NO_ID, NO_ID, NO_ID, NO_ID, NO_ID), vocab_size)
    if kind == "gpt2":
        content, adds_bos = _byte_level(vocabulary)
    elif kind == "llama":
        content, adds_bos = _sentencepiece(vocabulary), True
    else:
        raise UserError(
            f"{header.path} has a vocabulary of the kind {kind!r}, which is not read; gpt2 and llama are "
            "(byte-level and SentencePiece's byte-pair encoding)."
        )
    ids = {name: vocabulary.id(key) for name, key in _SPECIAL_KEYS.items()}
    return LibraryTokenizer(
        json.dumps(content),
        str(header.path),
        vocab_size,
        ids={name: id for name, id in ids.items() if id is not None},
        adds_bos=vocabulary.flag("add_bos_token", adds_bos),
        chat_template=_chat_template(vocabulary),
    )


def _added_tokens(vocabulary: GgufVocabulary) -> list[dict[str, Any]]:
    """Control pieces as special tokens, user-defined ones as pieces that are matched before all others."""
    types = vocabulary.types()
    return [
        {
            "id": int(id),
            "content": vocabulary.tokens[id],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": bool(types[id] == USER_DEFINED),
            "special": bool(types[id] == CONTROL),
        }
        for id in np.flatnonzero((types == CONTROL) | (types == USER_DEFINED))
    ]


def _tokenizer_json(vocabulary: GgufVocabulary, merges: Sequence[Sequence[str]], **parts: Any) -> dict[str, Any]:
    vocab = {piece: id for id, piece in reversed(list(enumerate(vocabulary.tokens)))}
    return byte_pair_json(vocab, merges, _added_tokens(vocabulary), **parts)


def _byte_level(vocabulary: GgufVocabulary) -> tuple[dict[str, Any], bool]:
    """A byte-level vocabulary, and whether its models expect the start of a document where the file does not say."""
    name = vocabulary.get("pre")
    if name not in PRE_TOKENIZERS:
        raise UserError(
            f"{vocabulary.path} has the pre-tokenizer {name!r}, which is not read; "
            f"pre-tokenizers that are: {', '.join(PRE_TOKENIZERS)}."
        )
    rule: Mapping[str, Any] = PRE_TOKENIZERS[name]
    # The first piece of a merge has at least one character, so a space at the front belongs to it.
    merges = [(merge[:at], merge[at + 1 :]) for merge in vocabulary.merges() if (at := merge.find(" ", 1)) > 0]
    content = _tokenizer_json(
        vocabulary,
        merges,
        normalizer=rule.get("normalizer"),
        pre_tokenizer=rule["pre_tokenizer"],
        decoder={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        ignore_merges=rule.get("ignore_merges", False),
    )
    return content, rule.get("add_bos", False)


def _sentencepiece(vocabulary: GgufVocabulary) -> dict[str, Any]:
    """A vocabulary of SentencePiece's byte-pair encoding: unknown characters as bytes, spaces as `▁`."""
    prefix = vocabulary.flag("add_space_prefix", True)
    scores, types = vocabulary.scores(), vocabulary.types()
    normal = {piece: float(scores[id]) for id, piece in enumerate(vocabulary.tokens) if types[id] == NORMAL}
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    if prefix:
        steps.insert(0, {"type": "Prepend", "prepend": SPACE})
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return _tokenizer_json(
        vocabulary,
        merges_by_score(normal),
        normalizer={"type": "Sequence", "normalizers": steps},
        decoder={"type": "Sequence", "decoders": decoders},
        byte_fallback=bool((vocabulary.types() == BYTE).any()),
    )


def _chat_template(vocabulary: GgufVocabulary) -> ChatTemplate | None:
    if vocabulary.chat_template is None:
        return None
    variables = {}
    for name, key in (("bos_token", "bos_token_id"), ("eos_token", "eos_token_id"), ("pad_token", "padding_token_id")):
        id = vocabulary.id(key)
        if id is not None:
            variables[name] = vocabulary.tokens[id]
    return ChatTemplate(vocabulary.chat_template, str(vocabulary.path), variables)
