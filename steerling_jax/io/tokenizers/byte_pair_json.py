"""The fields of a `tokenizer.json` with a vocabulary of byte-pair encoding, as the `tokenizers` library reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def byte_pair_json(
    vocab: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    added_tokens: Sequence[Mapping[str, Any]],
    *,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
    **parts: Any,
) -> dict[str, Any]:
    """vocab: ids of the pieces. merges: pairs of pieces, the first to be merged first. added_tokens: tokens that are
    found in a text before it is cut. parts: the normalizer, pre_tokenizer and decoder, where there are any."""
    empty = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }
    before = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens}
    return {**before, **empty, **parts, "model": model}
