"""Documents in chunks of about so many tokens, cut where a reader would pause.

Chunks carry the concept labels in training, and are what the model plans one at a time in generation. A cut falls after
a paragraph if it can, else after a sentence (in code, a line). The chunks' texts, joined, are the document.
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
    """(text, token ids) of each chunk: at most about `target` tokens, and only the last of a paragraph much fewer."""
    held, size = "", 0
    for unit, cost in _units(text, tokenizer, target, _CODE if code else _PROSE):
        past_half = 2 * size >= target and _ENDS_PARAGRAPH.search(held)
        if held and (size + cost > target or past_half):
            yield held, tokenizer.encode(held)
            held, size = "", 0
        held, size = held + unit, size + cost
    if held:
        yield held, tokenizer.encode(held)


def _units(text: str, tokenizer: Tokenizer, target: int, boundary: re.Pattern[str]) -> Iterator[tuple[str, int]]:
    """The smallest parts that a cut may part, with their number of tokens."""
    start = 0
    for end in [*(match.end() for match in boundary.finditer(text)), len(text)]:
        if end > start:
            yield from _short(text[start:end], tokenizer, target, 2 * target)
        start = end


def _short(unit: str, tokenizer: Tokenizer, target: int, characters: int) -> Iterator[tuple[str, int]]:
    """The unit, or its parts if it is over the target: between words where there are any."""
    cost = len(tokenizer.encode(unit))
    if cost <= target or len(unit) == 1:
        yield unit, cost
        return
    characters = max(1, min(characters, len(unit) - 1))
    for part in re.findall(rf"(?s).{{1,{characters}}}(?:\s+|\Z)|.{{1,{characters}}}", unit):
        if part == unit:  # one word and a tail of white space
            middle = len(unit) // 2
            yield from _short(unit[:middle], tokenizer, target, characters)
            yield from _short(unit[middle:], tokenizer, target, characters)
        else:
            yield from _short(part, tokenizer, target, characters // 2)
