"""Requests for texts in which a feature fires: the prompt for a text generator, which feature comes next, and what
becomes of the text that it wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

COPIED_WORDS = 8  # in a row, of a passage in the prompt: such a text shows nothing but the passage

Outcome = Literal["kept", "silent", "copied", "duplicate", "unusable"]

_FEATURE_PROMPT = """\
Write one short text of two to four sentences{about}. Write only the text, without a title or an explanation.
Do not copy the passages.
{words}{passages}"""

PLAIN_PROMPT = """\
Write one short text of two to four sentences on any subject. Write only the text, without a title or an explanation.
"""


@dataclass(frozen=True)
class FeatureDescription:
    """What a prompt says of a feature: its name, "" for none, the tokens that it promotes, and its strongest passages,
    the strongest first."""

    name: str
    promoted: tuple[str, ...]
    passages: tuple[str, ...]

    def shown(self, attempt: int, count: int) -> tuple[str, ...]:
        """`count` passages for the attempt of this number, from 0: later attempts show the next ones, in a circle."""
        if len(self.passages) <= count:
            return self.passages
        start = attempt * count % len(self.passages)
        return (*self.passages, *self.passages)[start : start + count]

    def prompt(self, attempt: int, count: int) -> str:
        """What the generator reads in the attempt of this number, with `count` passages."""
        shown = self.shown(attempt, count)
        words = ", ".join(dict.fromkeys(word for token in self.promoted if (word := token.strip())))
        passages = "".join(f"\nPassage {number}:\n{text.strip()}\n" for number, text in enumerate(shown, start=1))
        about = f" about this subject: {self.name}" if self.name else " like the passages below" if shown else ""
        return _FEATURE_PROMPT.format(
            about=about, words=f"Words that belong to it: {words}\n" if words else "", passages=passages
        )


def next_target(missing: Mapping[int, int], kept: Mapping[int, int], calls: Mapping[int, int]) -> int | None:
    """The feature to request next: of those with fewer kept examples than they are missing, the one with the fewest
    calls so far, the first in `missing` among equals. None if no feature is missing any more."""
    open_targets = [one for one, number in missing.items() if kept.get(one, 0) < number]
    return min(open_targets, key=lambda one: calls.get(one, 0), default=None)


def judge(text: str, fires: bool, shown: Sequence[str], earlier: set[str]) -> Outcome:
    """What becomes of a text. fires: whether the requested feature fires in it. shown: the passages of its prompt.
    earlier: `normalised` texts of which it must not be a repetition."""
    if normalised(text) in earlier:
        return "duplicate"
    if is_copied(text, shown):
        return "copied"
    return "kept" if fires else "silent"


def normalised(text: str) -> str:
    """The text in lower case with single spaces, so that repetitions are recognised."""
    return " ".join(text.casefold().split())


def is_copied(text: str, passages: Sequence[str]) -> bool:
    """Whether the text has `COPIED_WORDS` words in a row from a passage, or a whole passage that is shorter."""
    words = normalised(text).split()
    for passage in passages:
        source = normalised(passage).split()
        size = min(COPIED_WORDS, len(source))
        runs = {tuple(source[i : i + size]) for i in range(len(source) - size + 1)} if size else set()
        if any(tuple(words[i : i + size]) in runs for i in range(len(words) - size + 1)):
            return True
    return False
