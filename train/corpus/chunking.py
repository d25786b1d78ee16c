"""Divides documents into chunks of a target number of tokens, at the ends of paragraphs, sentences or lines.

Chunks carry the concept labels in training, and a model generates text one chunk after the other. A chunk ends after a
paragraph if possible, else after a sentence (in code, a line). The chunks' texts, joined, are the document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from steerling_jax.tokenizer import Tokenizer

_PARAGRAPH = r"\n(?:[ \t]*\n)+"
_CODE = re.compile(rf"{_PARAGRAPH}|\n")
_PROSE = re.compile(rf"{_PARAGRAPH}|(?<=[.!?])[\"')\]]*(?:\n| +)|(?<=[。！？])|\n(?=[ \t]*(?:>>>|[-*] ))")
_ENDS_PARAGRAPH = re.compile(rf"{_PARAGRAPH}\Z")


def chunks(text: str, tokenizer: Tokenizer, target: int, *, code: bool = False) -> Iterator[tuple[str, list[int]]]:
    """(text, token ids) of each chunk of at most about `target` tokens.

    code: divides at line ends instead of sentence ends. A chunk ends early where the next sentence or line would not
    fit, and at the end of a paragraph if it has at least half of the tokens.
    """
    # Units are measured one by one, but a chunk's text is encoded as a whole, and tokens may span two units: the sum of
    # the units' sizes is an estimate, usually slightly too large.
    chunk, size = "", 0
    for unit, unit_size in _units(text, tokenizer, target, _CODE if code else _PROSE):
        # A chunk that ends a paragraph and is at least half full is closed, rather than filled with the beginning of
        # the next paragraph.
        ends_well = 2 * size >= target and _ENDS_PARAGRAPH.search(chunk)
        if chunk and (size + unit_size > target or ends_well):
            yield chunk, tokenizer.encode(chunk)
            chunk, size = "", 0
        chunk, size = chunk + unit, size + unit_size
    if chunk:
        yield chunk, tokenizer.encode(chunk)


def _units(text: str, tokenizer: Tokenizer, target: int, boundary: re.Pattern[str]) -> Iterator[tuple[str, int]]:
    """(text, number of tokens) of each unit: the smallest pieces between which a chunk may end."""
    start = 0
    for end in [*(match.end() for match in boundary.finditer(text)), len(text)]:
        if end > start:
            yield from _divide(text[start:end], tokenizer, target, 2 * target)
        start = end


def _divide(unit: str, tokenizer: Tokenizer, target: int, characters: int) -> Iterator[tuple[str, int]]:
    """The unit or, if it is longer than the target, its pieces of at most `characters`, between words if possible.

    Pieces that are still too long are divided again, with half as many characters.
    """
    size = len(tokenizer.encode(unit))
    if size <= target or len(unit) == 1:
        yield unit, size
        return
    characters = max(1, min(characters, len(unit) - 1))
    # Up to `characters` characters and the white space behind them, or else a cut in the middle of a word.
    for piece in re.findall(rf"(?s).{{1,{characters}}}(?:\s+|\Z)|.{{1,{characters}}}", unit):
        if piece == unit:
            # A word with so much white space behind it that the first alternative matches all: no progress, so halve
            # it by position.
            middle = len(unit) // 2
            yield from _divide(unit[:middle], tokenizer, target, characters)
            yield from _divide(unit[middle:], tokenizer, target, characters)
        else:
            yield from _divide(piece, tokenizer, target, characters // 2)
