"""Pre-tokenizers of byte-level vocabularies by the names that GGUF files give them.

A GGUF file has the pieces and merges of a vocabulary, but only the name of the rule that splits a text into words. Each
rule here is the one in the `tokenizer.json` of the model family that the name belongs to.
"""

from __future__ import annotations

from typing import Any

# The regular expressions are data of the vocabularies: another split gives other ids.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(*, own_split: bool) -> dict[str, Any]:
    """Bytes become characters; `own_split`: words are split as in GPT-2 first."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": own_split}


def _split(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(own_split=False)]}


# By name: the pre-tokenizer, and what else differs between the families.
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": {"pre_tokenizer": _byte_level(own_split=True)},
    "smollm": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, _byte_level(own_split=True)],
        }
    },
    # A word that is a piece as a whole is not built from merges.
    "llama-bpe": {"pre_tokenizer": _split(_LLAMA3), "ignore_merges": True, "add_bos": True},
    "qwen2": {"pre_tokenizer": _split(_QWEN2), "normalizer": {"type": "NFC"}},
    "qwen35": {"pre_tokenizer": _split(_QWEN35), "normalizer": {"type": "NFC"}},
}
