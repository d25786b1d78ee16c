"""A SentencePiece vocabulary as a `tokenizer.json`, which Hugging Face transformers reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steerling_jax.io.tokenizers.byte_pair_json import byte_pair_json
from steerling_jax.io.tokenizers.sentencepiece import SPACE
from steerling_jax.tokenizer import SpecialIds

# The field of our `tokenizer_config.json` that names the file from which `tokenizer.json` was converted. This package
# reads that file: its hash is the vocabulary's identity in corpora.
ORIGINAL = "steerling_vocabulary"


def merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """The merges that SentencePiece makes: of all pairs whose join is a piece, the piece with the best score first.

    scores: of the normal pieces, without special ones and bytes.
    """
    merges = [
        (-score, len(piece), piece[:at], piece[at:])
        for piece, score in scores.items()
        for at in range(1, len(piece))
        if piece[:at] in scores and piece[at:] in scores
    ]
    return [(left, right) for *_, left, right in sorted(merges)]


def sentencepiece_as_json(proto: bytes, special: SpecialIds) -> dict[str, Any]:
    """The fields of a `tokenizer.json` for a vocabulary trained by this package (byte-pair encoding without a space
    before the text, unknown characters as bytes).

    The ids of a text are the same, except that the character `▁` itself is read as a space.
    """
    import sentencepiece  # takes a while, and few commands need it

    model = sentencepiece.SentencePieceProcessor(model_proto=proto)  # type: ignore[call-arg]
    count = model.get_piece_size()
    pieces = {model.id_to_piece(id): id for id in range(count)}
    normal = {
        piece: model.get_score(id)
        for piece, id in pieces.items()
        if not (model.is_byte(id) or model.is_unknown(id) or model.is_control(id) or model.is_unused(id))
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    named = sorted(special.names().items())
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    return byte_pair_json(
        pieces | {text: id for id, text in named},
        [list(pair) for pair in merges_by_score(normal)],
        [{"id": id, "content": text, **flags} for id, text in named],
        byte_fallback=True,
        normalizer=replace,
        decoder={"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]},
    )


def tokenizer_settings(special: SpecialIds, original: str) -> dict[str, Any]:
    """The fields of a `tokenizer_config.json` beside that `tokenizer.json`, which was converted from the file
    `original`."""
    texts = special.names()
    named = {"bos_token": special.bos_id, "eos_token": special.eos_id, "pad_token": special.pad_id}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: texts[id] for name, id in named.items() if id in texts},
        "clean_up_tokenization_spaces": False,
        ORIGINAL: original,
    }
