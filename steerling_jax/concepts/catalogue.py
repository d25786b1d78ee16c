"""The catalogue of a model's concepts and features: search by words, and resolution of names, ids and groups to ids.

A catalogue need not be complete: a concept without an entry is identified by its id alone.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from steerling_jax.concepts.concept import KINDS, Concept, Kind, comparable, unnamed
from steerling_jax.errors import UserError

_WORD = re.compile(r"\w+")
_SUGGESTIONS = 4  # names suggested for one that does not exist
_DIGITS = 18  # of an id: Python refuses to parse integers of thousands of digits
_PLACE = re.compile(rf"(\d{{1,{_DIGITS}}}):(\d{{1,{_DIGITS}}})", re.ASCII)  # of a feature: its block and its number


class FeatureRange(NamedTuple):
    """The features of one autoencoder: the block that it reads, counted from 0 (None: the rows after the final norm),
    and how many there are."""

    layer: int | None
    size: int


@dataclass(frozen=True)
class Catalogue:
    """The named concepts of a model with `known` and `discovered` concepts in all, and the `features` of autoencoders;
    each id occurs once in a head.

    ranges: the autoencoders in the order in which their features are numbered; together they have `features`. Empty for
    one whose block does not matter.
    """

    concepts: tuple[Concept, ...]
    known: int
    discovered: int = 0
    features: int = 0
    ranges: tuple[FeatureRange, ...] = ()

    def count(self, head: Kind) -> int:
        """The number of concepts of a head, or of features, with and without an entry."""
        return {"known": self.known, "discovered": self.discovered, "feature": self.features}[head]

    def get(self, concept_id: int, head: Kind = "known") -> Concept:
        """The concept with this id; one without an entry has the name 'concept 12', 'feature 12' or, beside other
        autoencoders, 'feature 12 of block 3'."""
        entry = self._by_id.get((head, concept_id))
        if entry is not None:
            return entry
        return Concept(concept_id, self.numbered(concept_id, head), head=head)

    def numbered(self, concept_id: int, head: Kind) -> str:
        """What an entry is called by its number alone."""
        if head != "feature" or len(self.ranges) < 2:
            return unnamed(concept_id, head)
        layer, number = self.place(concept_id)
        return f"{unnamed(number, head)} of block {layer}"

    @property
    def numbered_ranges(self) -> list[tuple[int, FeatureRange]]:
        """Each autoencoder's features, with the id of the first of them."""
        firsts = itertools.accumulate((one.size for one in self.ranges), initial=0)
        return list(zip(firsts, self.ranges, strict=False))

    def place(self, feature: int) -> tuple[int | None, int]:
        """The block of a feature and its number within its autoencoder."""
        for first, one in self.numbered_ranges:
            if feature < first + one.size:
                return one.layer, feature - first
        return None, feature

    def find(self, query: str, head: Kind = "known") -> list[Concept]:
        """The concepts that match a query, best first; for an empty query all concepts, by id.

        `#12`, `group:NAME` and a feature's `3:17` mean the same as in `resolve`. Otherwise a word of the query matches
        a concept if a word of the concept's name, or else of its description or group, equals it or begins with it.
        Only the concepts that match as many words of the query as the best one are returned.
        """
        if _is_exact(query) or (head == "feature" and _PLACE.fullmatch(query.strip())):
            return [self.get(i, head) for i in self.resolve(query, head)]
        query_words = _words(query)
        if not query_words:
            return [self.get(i, head) for i in range(self.count(head))]
        scored = []
        for one, in_name, in_text in self._indexed:
            values = [_score(word, in_name, in_text) for word in query_words] if one.head == head else []
            if hits := sum(value > 0 for value in values):
                exact = comparable(query) == comparable(one.name)
                scored.append(((-hits, not exact, -sum(values), len(in_name), one.id), one))
        scored.sort(key=lambda row: row[0])
        return [one for order, one in scored if order[0] == scored[0][0][0]]

    def resolve(self, text: str | int, head: Kind = "known") -> tuple[int, ...]:
        """The ids that a text refers to: a name (in any case), a number or `#12`, or `group:NAME` for a whole group.

        A number that is the name of a concept refers to that concept; `#12` is always the id. Among features, `3:17` is
        feature 17 of the autoencoder of block 3. Raises `UserError` for what does not exist and for a name of several
        concepts.
        """
        text = str(text).strip()
        if head == "feature" and (match := _PLACE.fullmatch(text)) is not None:
            return (self._feature(*match.groups()),)
        if text.casefold().startswith("group:"):
            return self._group(text.partition(":")[2], head)
        matching = [one.id for one in self._by_name.get(comparable(text), ()) if one.head == head]
        if len(matching) > 1:
            ids = " and ".join(f"#{i}" for i in matching)
            raise UserError(f"Several {_plural(head)} are called {text!r}; give one of their ids, {ids}.")
        if matching:
            return (matching[0],)
        number = text.removeprefix("#")
        if number.isdecimal():
            if len(number) > _DIGITS or int(number) >= self.count(head):
                shown = number if len(number) <= _DIGITS else f"{number[:_DIGITS]}..."
                raise UserError(
                    f"There is no {_singular(head)} {shown}; the ids are 0 to {self.count(head) - 1}."
                    if self.count(head)
                    else f"This model has no {_plural(head)}{_WITHOUT_FEATURES if head == 'feature' else ''}."
                )
            return (int(number),)
        raise UserError(self._not_found(text, head))

    def locate(self, text: str | int) -> tuple[Kind, str]:
        """The head that a text refers to, and the text as `resolve` takes it.

        "discovered:12", "feature:12", "feature:3:12" and "known:NAME" say it. Else it is the first of the known
        concepts, discovered concepts and features that has this name, and the known head, or in a model without
        concepts the features, for everything else.
        """
        prefix, colon, rest = str(text).partition(":")
        for head in KINDS:
            if colon and prefix.strip().casefold() == head:
                return head, rest.strip()
        name = str(text)
        for head in KINDS:
            if self.has_name(name, head):
                return head, name
        return ("known" if self.known or not self.features else "feature"), name

    def has_name(self, text: str, head: Kind = "known") -> bool:
        """Whether a concept of the head is called `text`, in any case."""
        return any(one.head == head for one in self._by_name.get(comparable(text), ()))

    def near(self, text: str, head: Kind = "known") -> list[str]:
        """A few names that the text may be a misspelling of: names like it, with a word like it or in their
        description, or that match it."""
        in_names: dict[str, list[str]] = {}  # whole names and each of their words, to names
        in_texts: dict[str, list[str]] = {}  # words of descriptions and groups, to names
        for one, in_name, in_text in self._indexed:
            if one.head == head:
                for key in (comparable(one.name), *in_name):
                    in_names.setdefault(key, []).append(one.name)
                for key in in_text:
                    in_texts.setdefault(key, []).append(one.name)
        names = [
            name
            for by_text in (in_names, in_texts)
            for key in difflib.get_close_matches(comparable(text), by_text, n=_SUGGESTIONS, cutoff=0.7)
            for name in by_text[key]
        ]
        matching = [] if _is_exact(text) else [one.name for one in self.find(text, head)[:_SUGGESTIONS]]
        return list(dict.fromkeys([*names, *matching]))[:_SUGGESTIONS]

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits: a hash of all entries and of the numbers of concepts, in whatever order they are.

        Features do not count: they belong to an autoencoder, and a model has the same concepts with and without it.
        """

        def name(one: Concept) -> str:
            # Not `no_name`, which may change: traces on disk have this hash.
            return one.name if one.is_named else f"no name {one.id}: {', '.join(one.words)}"

        concepts = [one for one in self.concepts if one.head != "feature"]
        entries = sorted((one.head, one.id, name(one), one.description, one.group, one.flags) for one in concepts)
        content = json.dumps([self.known, self.discovered, entries])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def groups(self) -> list[str]:
        """The names of all groups, sorted."""
        return sorted({one.group for one in self.concepts if one.group})

    def _feature(self, layer: str, number: str) -> int:
        """The id of a feature, given by its block and its number, at most `_DIGITS` digits each."""
        for first, one in self.numbered_ranges:
            if one.layer == int(layer):
                if int(number) < one.size:
                    return first + int(number)
                raise UserError(f"There is no feature {number} of block {layer}; there are 0 to {one.size - 1}.")
        blocks = ", ".join(str(one.layer) for one in self.ranges if one.layer is not None)
        hint = f"; these are: {blocks}" if blocks else ""
        raise UserError(f"There are no features of block {layer}{hint}.")

    def _group(self, name: str, head: Kind) -> tuple[int, ...]:
        ids = tuple(
            one.id for one in self.concepts if one.head == head and comparable(one.group) == comparable(name) != ""
        )
        if not ids:
            groups = self.groups
            suggestions = difflib.get_close_matches(name, groups, n=_SUGGESTIONS) or groups[:_SUGGESTIONS]
            hint = f"groups are {_listed(suggestions)}" if suggestions else "its concepts have no groups"
            raise UserError(f"There is no group {name.strip()!r} of {_plural(head)}; {hint}.")
        return ids

    def _not_found(self, text: str, head: Kind) -> str:
        """The message for a text that is neither a name nor an id."""
        other = [one for one in self._by_name.get(comparable(text), ()) if one.head != head]
        if other:
            needed = "feature" if head == "feature" else f"{head} one"
            return f"{text!r} is a {_singular(other[0].head)}, but a {needed} is needed here."
        if not self.count(head):
            return f"This model has no {_plural(head)}{_WITHOUT_FEATURES if head == 'feature' else ''}."
        if not any(one.head == head and one.is_named for one in self.concepts):
            last = self.count(head) - 1
            return (
                f"{text!r} is not an id, and the {_plural(head)} of this model have no names; give an id from 0 to "
                f"{last}."
            )
        near = self.near(text, head)
        hint = f"did you mean {_listed(near, ' or ')}?" if near else "`steerling concepts` lists them."
        return f"There is no {_singular(head)} {text!r}; {hint}"

    @cached_property
    def _indexed(self) -> list[tuple[Concept, list[str], list[str]]]:
        """Each concept with the words of its name, and those of its description and group."""
        return [(one, _words(one.name), _words(f"{one.description} {one.group}")) for one in self.concepts]

    @cached_property
    def _by_id(self) -> dict[tuple[Kind, int], Concept]:
        return {(one.head, one.id): one for one in self.concepts}

    @cached_property
    def _by_name(self) -> dict[str, list[Concept]]:
        by_name: dict[str, list[Concept]] = {}
        for one in self.concepts:
            by_name.setdefault(comparable(one.name), []).append(one)
        return by_name


_WITHOUT_FEATURES = "; give an autoencoder of it, with --autoencoder or sj.with_features"


def _singular(head: Kind) -> str:
    return "feature" if head == "feature" else f"{head} concept"


def _plural(head: Kind) -> str:
    return f"{_singular(head)}s"


def _is_exact(text: str) -> bool:
    """Whether a text is an id or a group, which are resolved and not searched for."""
    text = text.strip().casefold()
    return text.startswith("group:") or text.removeprefix("#").isdecimal()


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _score(word: str, in_name: list[str], in_text: list[str]) -> int:
    """The score of a query's word for a concept: name before description, a whole word before a beginning."""
    if word in in_name:
        return 8
    if any(other.startswith(word) for other in in_name):
        return 4
    if word in in_text:
        return 2
    return int(any(other.startswith(word) for other in in_text))


def _listed(names: Iterable[str], separator: str = ", ") -> str:
    return separator.join(repr(name) for name in names)
