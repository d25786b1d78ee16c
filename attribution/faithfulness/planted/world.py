"""A small world of ours, told in words that nobody else has: what is true of it, and where it was told, is known.

Subjects have a property in each of some topics ("kalo" has the trade "velu"), every one a fact. A fact is told in a few
chunks, each time in one of several styles; two styles share no three words in a row. A chunk about a topic carries the
topic's label and its words, which is the lift that was planted. Some facts are told in some styles only, and asked in
another; some are never told. Passages of prose stand in the corpus several times, word for word or with a tenth of the
words replaced.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Words = tuple[str, ...]
Style = tuple[list[str], dict[str, str]]
Kind = Literal["paraphrase", "verbatim", "duplicated", "edited", "untold"]

# Where the words of a style (a b c d) stand around the subject, the topic's verb and noun, and the object.
TEMPLATES = (
    "a S b V c N d O",
    "S a b N c V O d",
    "a V S b c O N d",
    "N a S b O c V d",
    "a N b S c d O V",
    "V a b S N c O d",
)
LENGTH = 13  # words of a chunk: with the three special tokens, two diffusion blocks of eight


@dataclass(frozen=True)
class WorldSize:
    """How much there is of everything.

    facts_a_subject: topics in which a subject has a property. asked: facts that are asked in a style in which they are
    not told. told_in: books that tell such a fact, in three styles each. tellings: chunks that tell any other fact.
    passages: of prose, duplicated and edited ones each, in `copies`. book: chunks that are left out together.
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
    subject: str
    topic: int
    object: str


@dataclass(frozen=True)
class PlantedChunk:
    """topic: its label. fact: what it tells, None for prose; passage: of which passage it is a copy."""

    words: Words
    topic: int
    fact: Fact | None = None
    passage: int | None = None


@dataclass(frozen=True)
class FactQuery:
    """A text whose words [start, end) are asked for, after and before the others; evidence: chunks that tell it.

    paraphrase: told in other styles only. verbatim: the words of a chunk that tells the fact. duplicated: a passage
    that is there several times. edited: a passage of which there are copies with a tenth of the words replaced. untold:
    a fact that no chunk tells.
    """

    kind: Kind
    words: Words
    start: int
    end: int
    evidence: tuple[int, ...]


@dataclass(frozen=True)
class World:
    """Books of chunks; a chunk is a document of its own, numbered in this order, the held-out ones last.

    lifted: the words of each topic, none of which stands in a chunk of another one.
    """

    size: WorldSize
    lifted: tuple[Words, ...]
    books: tuple[tuple[PlantedChunk, ...], ...]
    heldout: tuple[PlantedChunk, ...]
    queries: tuple[FactQuery, ...]
    names: tuple[str, ...]

    @property
    def chunks(self) -> list[PlantedChunk]:
        """Those of the training split."""
        return list(itertools.chain.from_iterable(self.books))


def make_world(seed: int, size: WorldSize) -> World:
    """The world of a seed: the same on any machine."""
    return _Maker(random.Random(f"planted world {seed}"), size).world()


def trigrams(words: Sequence[str]) -> set[Words]:
    """All three words in a row."""
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


@dataclass
class _Topic:
    name: str
    verb: str
    noun: str
    objects: Words
    words: Words

    @property
    def lifted(self) -> Words:
        return (self.verb, self.noun, *self.objects, *self.words)


@dataclass
class _Maker:
    draw: random.Random
    size: WorldSize
    used: set[str] = field(default_factory=set)

    def world(self) -> World:
        size, draw = self.size, self.draw
        self.topics = [
            _Topic(
                self._word(3), self._word(2), self._word(2), self._words(size.objects), self._words(size.topic_words)
            )
            for _ in range(size.topics)
        ]
        self.styles: list[Style] = [
            (list[str](template.split()), dict(zip("abcd", self._words(4)))) for template in TEMPLATES
        ]
        self.common, subjects = self._words(size.common_words), self._words(size.subjects)
        facts = [
            Fact(subject, topic, draw.choice(self.topics[topic].objects))
            for subject in subjects
            for topic in draw.sample(range(size.topics), size.facts_a_subject)
        ]
        draw.shuffle(facts)
        untold, asked = facts[: size.untold], facts[size.untold : size.untold + size.asked]
        others = facts[size.untold + size.asked :]
        # Facts that are asked stand in books of their own, a few tellings in each: leaving one out has an effect.
        asked_in = {fact: draw.choice(self.styles) for fact in asked}
        seeds = [
            [self.tell(fact, style) for style in draw.sample([s for s in self.styles if s is not asked_in[fact]], 3)]
            for fact in asked
            for _ in range(size.told_in)
        ]
        loose = [self.tell(fact, draw.choice(self.styles)) for fact in others for _ in range(size.tellings)]
        loose += [self.prose(draw.randrange(size.topics)) for _ in range(size.prose)] + self._passages()
        books = self._books(seeds, loose)
        told = [*asked, *others]
        heldout = [
            self.tell(draw.choice(told), draw.choice(self.styles)) if i % 2 else self.prose(draw.randrange(size.topics))
            for i in range(size.heldout)
        ]
        asked_in |= {fact: draw.choice(self.styles) for fact in untold}
        queries = self._queries(list(itertools.chain.from_iterable(books)), asked_in, others)
        lifted = tuple(topic.lifted for topic in self.topics)
        names = tuple(topic.name for topic in self.topics)
        return World(size, lifted, tuple(map(tuple, books)), tuple(heldout), tuple(queries), names)

    def _word(self, syllables: int) -> str:
        while True:
            word = "".join(self.draw.choice("bdfgklmnprstvz") + self.draw.choice("aeiou") for _ in range(syllables))
            if word not in self.used:
                self.used.add(word)
                return word

    def _words(self, count: int) -> Words:
        return tuple(self._word(self.draw.choice((2, 3))) for _ in range(count))

    def sentence(self, fact: Fact, style: Style) -> list[str]:
        topic = self.topics[fact.topic]
        slots = {"S": fact.subject, "V": topic.verb, "N": topic.noun, "O": fact.object} | style[1]
        return [slots[slot] for slot in style[0]]

    def tell(self, fact: Fact, style: Style) -> PlantedChunk:
        """The fact's sentence, and a stretch of its topic's list of words."""
        words, start = self.topics[fact.topic].words, self.draw.randrange(self.size.topic_words)
        tail = [words[(start + i) % len(words)] for i in range(LENGTH - len(style[0]))]
        return PlantedChunk((*self.sentence(fact, style), *tail), fact.topic, fact)

    def prose(self, topic: int, passage: int | None = None) -> PlantedChunk:
        """Words, half of the topic's own and half common ones."""
        sources = (self.topics[topic].words, self.common)
        words = tuple(self.draw.choice(sources[self.draw.random() < 0.5]) for _ in range(LENGTH))
        return PlantedChunk(words, topic, None, passage)

    def _passages(self) -> list[PlantedChunk]:
        """The first half copied word for word, of the others only edited copies."""
        topics = [self.draw.randrange(self.size.topics) for _ in range(2 * self.size.passages)]
        self.originals = [self.prose(topic, number) for number, topic in enumerate(topics)]
        return [
            original if number < self.size.passages else self._edited(original)
            for number, original in enumerate(self.originals)
            for _ in range(self.size.copies)
        ]

    def _edited(self, chunk: PlantedChunk) -> PlantedChunk:
        words = list(chunk.words)
        for place in self.draw.sample(range(len(words)), round(len(words) / 10)):
            words[place] = self.draw.choice([word for word in self.common if word != words[place]])
        return PlantedChunk(tuple(words), chunk.topic, None, chunk.passage)

    def _books(self, seeds: list[list[PlantedChunk]], loose: list[PlantedChunk]) -> list[list[PlantedChunk]]:
        """Fills the seeds up to a book's length, and makes more books of the rest."""
        self.draw.shuffle(loose)
        supply, length = iter(loose), self.size.book
        found = [seed + list(itertools.islice(supply, length - len(seed))) for seed in seeds]
        while book := list(itertools.islice(supply, length)):
            found.append(book)
        self.draw.shuffle(found)
        return found

    def _queries(
        self, chunks: list[PlantedChunk], asked_in: Mapping[Fact, Style], others: list[Fact]
    ) -> Iterator[FactQuery]:
        telling, copies = defaultdict(list), defaultdict(list)
        for number, chunk in enumerate(chunks):
            if chunk.fact is not None:
                telling[chunk.fact].append(number)
            elif chunk.passage is not None:
                copies[chunk.passage].append(number)
        for fact, style in asked_in.items():
            kind = "paraphrase" if fact in telling else "untold"
            yield _ask(kind, self.sentence(fact, style), fact, telling.get(fact, []))
        for fact in self.draw.sample(others, min(self.size.asked, len(others))):
            number = self.draw.choice(telling[fact])
            yield _ask("verbatim", chunks[number].words, fact, [number])
        for passage, numbers in sorted(copies.items()):
            words = self.originals[passage].words
            kind = "duplicated" if passage < self.size.passages else "edited"
            yield FactQuery(kind, words, 0, len(words), tuple(numbers))


def _ask(kind: Kind, words: Sequence[str], fact: Fact, evidence: Sequence[int]) -> FactQuery:
    place = list(words).index(fact.object)
    return FactQuery(kind, tuple(words), place, place + 1, tuple(evidence))
