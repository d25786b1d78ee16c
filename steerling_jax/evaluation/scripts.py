"""Scripts of texts, and how often texts switch to another one: the visible part of an unwanted change of language.

The script of a letter is taken from its Unicode name (LATIN SMALL LETTER A), since Python's standard library has no
table of scripts. Languages that share a script cannot be told apart in this way.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

LEAST = 20  # letters of other scripts in a row: more than a product's name
MAIN_SHARE = 0.1  # of a language's letters, for a script to be one of the language's
_WIDTHS = ("FULLWIDTH ", "HALFWIDTH ")


class Switching(NamedTuple):
    """How texts keep to the scripts of their languages.

    switched: for each text, whether it has a long run of letters of other scripts. other: for each text, the share of
    its letters that are of other scripts; 0 without letters.
    """

    switched: tuple[bool, ...]
    other: tuple[float, ...]


@lru_cache(maxsize=1 << 16)
def script_of(character: str) -> str | None:
    """The script of a letter, such as "Latin", "Cyrillic", "Hangul", "Han", "Hiragana"; None for any other character,
    and for letters that several scripts share."""
    if not unicodedata.category(character).startswith("L"):
        return None
    name = unicodedata.name(character, "")
    for width in _WIDTHS:
        name = name.removeprefix(width)
    first = name.partition(" ")[0]
    if first in ("CJK", "IDEOGRAPHIC"):
        return "Han"
    # MODIFIER LETTER …, KATAKANA-HIRAGANA PROLONGED SOUND MARK: of no single script.
    return None if first in ("", "MODIFIER", "MATHEMATICAL") or "-" in first else first.capitalize()


def letter_scripts(text: str) -> Counter[str]:
    """The number of letters of each script."""
    return Counter(script for script in map(script_of, text) if script is not None)


def main_scripts(texts: Iterable[str], share: float = MAIN_SHARE) -> frozenset[str]:
    """The scripts of at least a share of the letters of texts in one language."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts += letter_scripts(text)
    return frozenset(script for script, count in counts.items() if count >= share * counts.total())


def longest_other_run(text: str, scripts: frozenset[str]) -> int:
    """The most letters of other scripts than `scripts` with no letter of `scripts` between them."""
    longest = run = 0
    for script in map(script_of, text):
        if script is not None:
            run = 0 if script in scripts else run + 1
            longest = max(longest, run)
    return longest


def switching(texts: Sequence[str], scripts: Sequence[frozenset[str]], least: int = LEAST) -> Switching:
    """Whether each text leaves the scripts of its language.

    scripts: of each text's language. A text switches if it has a run of at least `least` letters of other scripts, so
    that a name in Latin letters does not count.
    """
    switched, other = [], []
    for text, own in zip(texts, scripts, strict=True):
        counts = letter_scripts(text)
        switched.append(longest_other_run(text, own) >= least)
        outside = sum(count for script, count in counts.items() if script not in own)
        other.append(outside / max(1, counts.total()))
    return Switching(tuple(switched), tuple(other))
