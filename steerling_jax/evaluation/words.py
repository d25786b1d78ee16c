"""Texts as sets and counts of their words, the features that need no model.

Legend: N texts, V different words or n-grams.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.sparse import csr_array

_WORD = re.compile(r"\w+|[^\w\s]")


def words_of(text: str) -> list[str]:
    """Words in lower case, and each punctuation mark by itself."""
    return _WORD.findall(text.lower())


def ngrams_of(text: str, n: int) -> list[str]:
    """The n-grams of a text's words, joined by spaces; the whole text where it has fewer words."""
    words = words_of(text)
    return [" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))]


def vocabulary(parts: Iterable[Sequence[str]], least: int = 1) -> dict[str, int]:
    """A column for each word that occurs in at least `least` texts, in the order of first occurrence."""
    texts = Counter(word for words in parts for word in dict.fromkeys(words))
    return {word: i for i, word in enumerate(word for word, count in texts.items() if count >= least)}


def count_table(parts: Iterable[Sequence[str]], columns: Mapping[str, int]) -> csr_array:
    """How often each word occurs in each text, (N, V) float32; words without a column do not count."""
    data: list[int] = []
    indices: list[int] = []
    ends = [0]
    for words in parts:
        counts = Counter(columns[word] for word in words if word in columns)
        indices += counts.keys()
        data += counts.values()
        ends.append(len(indices))
    shape = (len(ends) - 1, len(columns))
    return csr_array((np.array(data, np.float32), np.array(indices, np.int64), np.array(ends, np.int64)), shape=shape)
