"""The concepts of a model by name: which there are, how to find one, and which one a name means.

A catalogue need not be complete: concepts without an entry are known by their number alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from steerling_jax.errors import UserError

Head = Literal["known", "discovered"]
HEADS: tuple[Head, ...] = get_args(Head)

_WORD = re.compile(r"\w+")
_NEAR = 4  # names offered in place of one that is not there
_DIGITS = 18  # of an id; Python does not read numbers of thousands


@dataclass(frozen=True)
class Concept:
    """One concept. id: its number within its head. flags: marks such as "sensitive", shown and otherwise unused."""

    id: int
    name: str
    description: str = ""
    head: Head = "known"
    group: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Catalogue:
    """Concepts with names, each id once a head, in a model with so many known and discovered concepts."""

    concepts: tuple[Concept, ...]
    known: int
    discovered: int = 0

    def count(self, head: Head) -> int:
        return self.known if head == "known" else self.discovered

    def get(self, concept_id: int, head: Head = "known") -> Concept:
        """The concept with this id; one without an entry is called 'concept 12'."""
        found = self._by_id.get((head, concept_id))
        return Concept(concept_id, f"concept {concept_id}", head=head) if found is None else found

    def find(self, query: str, head: Head = "known") -> list[Concept]:
        """Concepts for a query, best first; all of them, in order of id, for an empty one. `#12` and `group:NAME` mean
        what they do in `resolve`.

        Each word of the query counts where a word of the name, or else of description and group, is equal to it or
        begins with it. Concepts with fewer of the query's words than the best one has are left out.
        """
        if _is_exact(query):
            return [self.get(i, head) for i in self.resolve(query, head)]
        wanted = _words(query)
        if not wanted:
            return [self.get(i, head) for i in range(self.count(head))]
        scored = []
        for one, in_name, in_text in self._indexed:
            values = [_worth(word, in_name, in_text) for word in wanted] if one.head == head else []
            if hits := sum(value > 0 for value in values):
                exact = comparable(query) == comparable(one.name)
                scored.append(((-hits, not exact, -sum(values), len(in_name), one.id), one))
        scored.sort(key=lambda row: row[0])
        return [one for order, one in scored if order[0] == scored[0][0][0]]

    def resolve(self, text: str | int, head: Head = "known") -> tuple[int, ...]:
        """Ids that a text means: a name (in any case), a number or `#12`, or `group:NAME` for all of a group.

        A number that is some concept's name is that name; `#12` is always the id. Raises `UserError` for what is not
        there or means several.
        """
        text = str(text).strip()
        if text.casefold().startswith("group:"):
            return self._group(text.partition(":")[2], head)
        found = [one.id for one in self._by_name.get(comparable(text), ()) if one.head == head]
        if len(found) > 1:
            ids = " and ".join(f"#{i}" for i in found)
            raise UserError(f"Several {head} concepts are called {text!r}; give one of their ids, {ids}.")
        if found:
            return (found[0],)
        number = text.removeprefix("#")
        if number.isdecimal():
            if len(number) > _DIGITS or int(number) >= self.count(head):
                shown = number if len(number) <= _DIGITS else f"{number[:_DIGITS]}..."
                raise UserError(
                    f"There is no {head} concept {shown}; the ids are 0 to {self.count(head) - 1}."
                    if self.count(head)
                    else f"This model has no {head} concepts."
                )
            return (int(number),)
        raise UserError(self._unknown(text, head))

    def near(self, text: str, head: Head = "known") -> list[str]:
        """A few names that may have been meant: like the text, with a word like it, or found by it."""
        by_text: dict[str, list[str]] = {}  # a name's own text and each of its words, to names
        for one, in_name, _ in self._indexed:
            for key in (comparable(one.name), *in_name) if one.head == head else ():
                by_text.setdefault(key, []).append(one.name)
        similar = difflib.get_close_matches(comparable(text), by_text, n=_NEAR, cutoff=0.7)
        names = [name for key in similar for name in by_text[key]]
        found = [] if _is_exact(text) else [one.name for one in self.find(text, head)[:_NEAR]]
        return list(dict.fromkeys([*names, *found]))[:_NEAR]

    @property
    def groups(self) -> list[str]:
        return sorted({one.group for one in self.concepts if one.group})

    def _group(self, name: str, head: Head) -> tuple[int, ...]:
        ids = tuple(
            one.id for one in self.concepts if one.head == head and comparable(one.group) == comparable(name) != ""
        )
        if not ids:
            groups = self.groups
            offered = difflib.get_close_matches(name, groups, n=_NEAR) or groups[:_NEAR]
            hint = f"groups are {_listed(offered)}" if offered else "its concepts have no groups"
            raise UserError(f"There is no group {name.strip()!r} of {head} concepts; {hint}.")
        return ids

    def _unknown(self, text: str, head: Head) -> str:
        other = [one for one in self._by_name.get(comparable(text), ()) if one.head != head]
        if other:
            return f"{text!r} is a {other[0].head} concept, but a {head} one is needed here."
        if not any(one.head == head for one in self.concepts):
            last = self.count(head) - 1
            return (
                f"{text!r} is no id, and the {head} concepts of this model have no names; give an id from 0 to {last}."
            )
        near = self.near(text, head)
        hint = f"near are {_listed(near)}" if near else "`steerling concepts` lists them"
        return f"There is no {head} concept {text!r}; {hint}."

    @cached_property
    def _indexed(self) -> list[tuple[Concept, list[str], list[str]]]:
        """Each concept with the words of its name, and of its description and group."""
        return [(one, _words(one.name), _words(f"{one.description} {one.group}")) for one in self.concepts]

    @cached_property
    def _by_id(self) -> dict[tuple[Head, int], Concept]:
        return {(one.head, one.id): one for one in self.concepts}

    @cached_property
    def _by_name(self) -> dict[str, list[Concept]]:
        found: dict[str, list[Concept]] = {}
        for one in self.concepts:
            found.setdefault(comparable(one.name), []).append(one)
        return found


def _is_exact(text: str) -> bool:
    text = text.strip().casefold()
    return text.startswith("group:") or text.removeprefix("#").isdecimal()


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def comparable(text: str) -> str:
    """What names are compared by."""
    return " ".join(text.casefold().split())


def _worth(word: str, in_name: list[str], in_text: list[str]) -> int:
    """A name counts more than a description, a whole word more than a beginning."""
    if word in in_name:
        return 8
    if any(other.startswith(word) for other in in_name):
        return 4
    if word in in_text:
        return 2
    return int(any(other.startswith(word) for other in in_text))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
