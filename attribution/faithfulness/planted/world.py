"""Data types of the planted world: facts, chunks that state them, and queries whose evidence is known.

Subjects have properties. A fact is one property of a subject in one topic ("kalo" has the trade "velu"). Its object is
the word that a query asks for. A fact is stated in some chunks, each time in one of several styles; two styles share no
three words in a row, so a query in another style can be answered from a chunk but not copied from it. A chunk about a
topic has the topic's label and contains words that no other topic's chunks contain, which plants the lift of those
words. Prose passages occur several times, copied word for word or with a tenth of the words replaced.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, NamedTuple

Words = tuple[str, ...]
Kind = Literal["paraphrase", "verbatim", "duplicated", "edited", "untold"]

CHUNK_WORDS = 13  # with the three special tokens a chunk is two diffusion blocks of eight


@dataclass(frozen=True)
class WorldSize:
    """How much of everything a world has. The field names are a format: `planted.json` stores them.

    Attributes:
        topics, subjects, facts_a_subject: Topics, subjects, and topics in which a subject has a property.
        objects, topic_words, common_words: Possible objects of a topic, its other words, and words of all topics.
        asked: Facts that are queried in a style in which no chunk states them.
        untold: Facts that no chunk states.
        told_in: Books that state a queried fact, in three styles each.
        tellings: Chunks that state any other fact.
        prose: Chunks of prose.
        passages: Duplicated passages, and as many edited ones.
        copies: Chunks of each passage.
        book: Chunks of a book, which is left out as a whole.
        heldout: Held-out chunks.
    """

    topics: int = 8
    subjects: int = 28
    facts_a_subject: int = 3
    objects: int = 8
    topic_words: int = 10
    common_words: int = 40
    asked: int = 32
    untold: int = 12
    told_in: int = 3
    tellings: int = 7
    prose: int = 24
    passages: int = 12
    copies: int = 3
    book: int = 8
    heldout: int = 400


SMALL = WorldSize(
    topics=4, subjects=10, facts_a_subject=2, asked=4, untold=3, told_in=2, tellings=2, prose=8, passages=3, heldout=120
)


class Fact(NamedTuple):
    """A subject's property in a topic."""

    subject: str
    topic: int
    object: str


@dataclass(frozen=True)
class PlantedChunk:
    """A chunk: its words, its topic (the label), the fact that it states, and the passage of which it is a copy."""

    words: Words
    topic: int
    fact: Fact | None = None
    passage: int | None = None


@dataclass(frozen=True)
class FactQuery:
    """A text whose words [start, end) are to be predicted from the words before them, and the chunks that are evidence.

    Kinds:
        paraphrase: A fact that is stated in other styles only.
        verbatim: The words of a chunk that states the fact.
        duplicated: A passage that occurs several times.
        edited: A passage of which the corpus has copies with a tenth of the words replaced.
        untold: A fact that no chunk states.
    """

    kind: Kind
    words: Words
    start: int
    end: int
    evidence: tuple[int, ...]


@dataclass(frozen=True)
class World:
    """Books of chunks and queries. Each chunk is a document; documents are numbered in this order, held-out ones last.

    Attributes:
        lifted: The words of each topic, which occur in no chunk of another topic.
        names: The names of the topics.
    """

    size: WorldSize
    lifted: tuple[Words, ...]
    books: tuple[tuple[PlantedChunk, ...], ...]
    heldout: tuple[PlantedChunk, ...]
    queries: tuple[FactQuery, ...]
    names: tuple[str, ...]

    @property
    def chunks(self) -> list[PlantedChunk]:
        """The chunks of the training split."""
        return list(itertools.chain.from_iterable(self.books))
