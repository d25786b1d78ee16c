"""Texts as weighted words, so that a name made of words can be scored by how strongly they occur in a text.

A unit is a word (letters and digits, without its ending), a run of symbols such as `->`, or one of four features of
layout and numbers. A unit's weight in a text is its BM25 weight, the standard one of text retrieval: it grows with the
number of occurrences, more slowly the more there are, falls with the length of the text, and is larger for units of few
texts (Robertson and Zaragoza, 2009, "The Probabilistic Relevance Framework").

Legend: m texts, W units.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from steerling_jax.tokenizer import IdsOnlyTokenizer, Tokenizer

LINE, BLANK, INDENT, NUMBER = (
    "line break",
    "blank line",
    "indentation",
    "number",
)  # units that are not spelled in a text
_UNITS = re.compile(r"(?P<word>[^\W\d_][^\W_]*)|(?P<number>\d+)|(?P<lines>\n\s*)|(?P<symbol>(?:[^\w\s]|_)+)")
_ENDINGS = {"ing": 4, "ed": 4, "es": 3, "s": 3}  # with the number of letters that must remain
_SATURATION, _LENGTH = 1.2, 0.75  # k1 and b of BM25, at their usual values


def stem(word: str) -> str:
    """A word in lower case without the ending -s, -es, -ed or -ing, so that "Returns" and "returned" are one unit."""
    word = word.casefold()
    for ending, least in _ENDINGS.items():
        if word.endswith(ending) and len(word) - len(ending) >= least and not word.endswith("ss"):
            word = word.removesuffix(ending)
            break
    # "values" has lost its -es: "value" loses its -e, so that the two are equal.
    return word.removesuffix("e") if len(word) > 3 else word


def text_units(text: str) -> list[tuple[str, str]]:
    """The units of a text in order: (the unit, how it is spelled here). Names of concepts are split by it as well."""
    units: list[tuple[str, str]] = []
    for match in _UNITS.finditer(text):
        kind, spelled = match.lastgroup, match.group()
        if kind == "word":
            units.append((stem(spelled), spelled.casefold()))
        elif kind == "number":
            units.append((f"<{NUMBER}>", NUMBER))
        elif kind == "symbol":
            units.append((spelled, spelled))
        else:
            layout = [LINE, *([BLANK] if spelled.count("\n") > 1 else []), *([INDENT] if spelled[-1] in " \t" else [])]
            units += [(f"<{name}>", name) for name in layout]
    return units


def readable(tokenizer: Tokenizer, text: str) -> str:
    """The text, or with a tokenizer that has no text the ids as words, which units would else take for numbers."""
    is_ids = isinstance(tokenizer, IdsOnlyTokenizer)
    return " ".join(f"id{word}" for word in text.split()) if is_ids else text


def name_units(name: str) -> list[str]:
    """The units of a name. In a name, "line break", "blank line", "indentation" and "number" mean these features."""
    units: list[str] = []
    for feature in (LINE, BLANK, INDENT, NUMBER):
        if re.search(rf"\b{feature}s?\b", name, re.IGNORECASE):
            name = re.sub(rf"\b{feature}s?\b", " ", name, flags=re.IGNORECASE)
            units.append(f"<{feature}>")
    return list(dict.fromkeys([*(unit for unit, _ in text_units(name) if unit not in ("·", ",")), *units]))


@dataclass(frozen=True)
class Vocabulary:
    """The W units of some texts, with what BM25 needs to know about them.

    numbers: unit to its number. spelled: the most frequent spelling of each. rarity (W,): the logarithm of the inverse
    share of texts that contain it. length: the mean number of units of a text.
    """

    numbers: dict[str, int]
    spelled: tuple[str, ...]
    rarity: np.ndarray
    length: float

    @classmethod
    def of(cls, texts: Sequence[str], at_least: int = 5) -> Vocabulary:
        """The units that occur in `at_least` of the texts."""
        texts_with, spellings, total = Counter(), {}, 0
        for text in texts:
            units = text_units(text)
            total += len(units)
            texts_with.update({unit for unit, _ in units})
            for unit, spelled in units:
                spellings.setdefault(unit, Counter())[spelled] += 1
        frequent = sorted(unit for unit, count in texts_with.items() if count >= at_least)
        n, count = len(texts), np.array([texts_with[unit] for unit in frequent], float)
        # Of equally frequent spellings the alphabetically first, so that the result does not depend on the order.
        best = tuple(min(spellings[unit].items(), key=lambda item: (-item[1], item[0]))[0] for unit in frequent)
        rarity = np.log1p((n - count + 0.5) / (count + 0.5))
        return cls({unit: i for i, unit in enumerate(frequent)}, best, rarity, max(total / max(n, 1), 1.0))

    def weights(self, texts: Sequence[str]) -> sparse.csc_array:
        """The BM25 weights (m, W) of the units in texts, which may be others than those of the vocabulary."""
        data: list[float] = []
        columns: list[int] = []
        starts = [0]
        for text in texts:
            units = text_units(text)
            counts = Counter(self.numbers[unit] for unit, _ in units if unit in self.numbers)
            scale = _SATURATION * (1 - _LENGTH + _LENGTH * len(units) / self.length)
            for number, count in counts.items():
                columns.append(number)
                data.append(self.rarity[number] * count * (_SATURATION + 1) / (count + scale))
            starts.append(len(data))
        shape = (len(texts), len(self.numbers))
        return sparse.csr_array((np.array(data), np.array(columns, int), np.array(starts, int)), shape).tocsc()

    def find(self, units: Sequence[str]) -> list[int]:
        """The numbers of those units that the vocabulary has, each once."""
        return list(dict.fromkeys(self.numbers[unit] for unit in units if unit in self.numbers))
