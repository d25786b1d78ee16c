"""Generates a planted world from a seed.

The order of random draws is part of the definition of a world: any change of it changes the corpora of all seeds.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from steerling_jax.attribution.faithfulness.planted.world import (
    CHUNK_WORDS,
    Fact,
    FactQuery,
    Kind,
    PlantedChunk,
    Words,
    World,
    WorldSize,
)

# The sentence of each style: S subject, V the topic's verb, N its noun, O object, and a b c d the style's own words,
# which are placed so that the sentences of two styles share no three words in a row.
_TEMPLATES = (
    "a S b V c N d O",
    "S a b N c V O d",
    "a V S b c O N d",
    "N a S b O c V d",
    "a N b S c d O V",
    "V a b S N c O d",
)
_STYLES_PER_BOOK = 3  # in which a book states a queried fact


class _Style(NamedTuple):
    """A template as letters, and the style's own words by letter."""

    template: Sequence[str]
    words: dict[str, str]


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


def generate_world(seed: int, size: WorldSize) -> World:
    """The world of a seed, the same on any machine."""
    return _WorldGenerator(random.Random(f"planted world {seed}"), size).world()


class _WorldGenerator:
    def __init__(self, draw: random.Random, size: WorldSize):
        self.draw, self.size = draw, size
        self.used: set[str] = set()
        self.topics = [
            _Topic(
                self._word(3), self._word(2), self._word(2), self._words(size.objects), self._words(size.topic_words)
            )
            for _ in range(size.topics)
        ]
        self.styles = [_Style(template.split(), dict(zip("abcd", self._words(4)))) for template in _TEMPLATES]
        self.common = self._words(size.common_words)
        self.subjects = self._words(size.subjects)

    def world(self) -> World:
        size, draw = self.size, self.draw
        facts = self._facts()
        unstated, queried = facts[: size.untold], facts[size.untold : size.untold + size.asked]
        others = facts[size.untold + size.asked :]
        query_style = {fact: draw.choice(self.styles) for fact in queried}
        # Queried facts have books of their own, with several statements in each: leaving one book out has an effect.
        seeds = [
            [
                self._statement(fact, style)
                for style in draw.sample([s for s in self.styles if s is not query_style[fact]], _STYLES_PER_BOOK)
            ]
            for fact in queried
            for _ in range(size.told_in)
        ]
        loose = [self._statement(fact, draw.choice(self.styles)) for fact in others for _ in range(size.tellings)]
        loose += [self._prose(draw.randrange(size.topics)) for _ in range(size.prose)]
        originals = self._originals()
        loose += self._copies(originals)
        books = self._books(seeds, loose)
        heldout = self._heldout([*queried, *others])
        query_style |= {fact: draw.choice(self.styles) for fact in unstated}
        chunks = list(itertools.chain.from_iterable(books))
        queries = tuple(self._queries(chunks, query_style, others, originals))
        lifted = tuple(topic.lifted for topic in self.topics)
        names = tuple(topic.name for topic in self.topics)
        return World(size, lifted, tuple(map(tuple, books)), tuple(heldout), queries, names)

    def _word(self, syllables: int) -> str:
        """A new word."""
        while True:
            word = "".join(self.draw.choice("bdfgklmnprstvz") + self.draw.choice("aeiou") for _ in range(syllables))
            if word not in self.used:
                self.used.add(word)
                return word

    def _words(self, count: int) -> Words:
        return tuple(self._word(self.draw.choice((2, 3))) for _ in range(count))

    def _facts(self) -> list[Fact]:
        """All facts in random order."""
        facts = [
            Fact(subject, topic, self.draw.choice(self.topics[topic].objects))
            for subject in self.subjects
            for topic in self.draw.sample(range(self.size.topics), self.size.facts_a_subject)
        ]
        self.draw.shuffle(facts)
        return facts

    def _sentence(self, fact: Fact, style: _Style) -> list[str]:
        topic = self.topics[fact.topic]
        slots = {"S": fact.subject, "V": topic.verb, "N": topic.noun, "O": fact.object} | style.words
        return [slots[slot] for slot in style.template]

    def _statement(self, fact: Fact, style: _Style) -> PlantedChunk:
        """A chunk with the fact's sentence and consecutive words of its topic's list."""
        words, start = self.topics[fact.topic].words, self.draw.randrange(self.size.topic_words)
        tail = [words[(start + i) % len(words)] for i in range(CHUNK_WORDS - len(style.template))]
        return PlantedChunk((*self._sentence(fact, style), *tail), fact.topic, fact)

    def _prose(self, topic: int, passage: int | None = None) -> PlantedChunk:
        """Random words, half of them the topic's own, half common words."""
        sources = (self.topics[topic].words, self.common)
        words = tuple(self.draw.choice(sources[self.draw.random() < 0.5]) for _ in range(CHUNK_WORDS))
        return PlantedChunk(words, topic, None, passage)

    def _originals(self) -> list[PlantedChunk]:
        """The passages: the first half is duplicated, the second half edited."""
        topics = [self.draw.randrange(self.size.topics) for _ in range(2 * self.size.passages)]
        return [self._prose(topic, number) for number, topic in enumerate(topics)]

    def _copies(self, originals: Sequence[PlantedChunk]) -> list[PlantedChunk]:
        """The copies in the corpus; of edited passages the original itself is not there."""
        return [
            original if number < self.size.passages else self._edited(original)
            for number, original in enumerate(originals)
            for _ in range(self.size.copies)
        ]

    def _edited(self, chunk: PlantedChunk) -> PlantedChunk:
        words = list(chunk.words)
        for place in self.draw.sample(range(len(words)), round(len(words) / 10)):
            words[place] = self.draw.choice([word for word in self.common if word != words[place]])
        return PlantedChunk(tuple(words), chunk.topic, None, chunk.passage)

    def _books(self, seeds: list[list[PlantedChunk]], loose: list[PlantedChunk]) -> list[list[PlantedChunk]]:
        """Fills the seeds up to a book's length, makes more books of the remaining chunks, and shuffles the books."""
        self.draw.shuffle(loose)
        supply, length = iter(loose), self.size.book
        books = [seed + list(itertools.islice(supply, length - len(seed))) for seed in seeds]
        while book := list(itertools.islice(supply, length)):
            books.append(book)
        self.draw.shuffle(books)
        return books

    def _heldout(self, stated: Sequence[Fact]) -> list[PlantedChunk]:
        """Prose and statements of facts that the training split states too, in turn."""
        draw = self.draw
        return [
            self._statement(draw.choice(stated), draw.choice(self.styles))
            if i % 2
            else self._prose(draw.randrange(self.size.topics))
            for i in range(self.size.heldout)
        ]

    def _queries(
        self,
        chunks: list[PlantedChunk],
        query_style: Mapping[Fact, _Style],
        others: list[Fact],
        originals: Sequence[PlantedChunk],
    ) -> Iterator[FactQuery]:
        statements, copies = defaultdict(list), defaultdict(list)
        for number, chunk in enumerate(chunks):
            if chunk.fact is not None:
                statements[chunk.fact].append(number)
            elif chunk.passage is not None:
                copies[chunk.passage].append(number)
        for fact, style in query_style.items():
            kind = "paraphrase" if fact in statements else "untold"
            yield _fact_query(kind, self._sentence(fact, style), fact, statements.get(fact, []))
        for fact in self.draw.sample(others, min(self.size.asked, len(others))):
            number = self.draw.choice(statements[fact])
            yield _fact_query("verbatim", chunks[number].words, fact, [number])
        for passage, numbers in sorted(copies.items()):
            words = originals[passage].words
            kind = "duplicated" if passage < self.size.passages else "edited"
            yield FactQuery(kind, words, 0, len(words), tuple(numbers))


def _fact_query(kind: Kind, words: Sequence[str], fact: Fact, evidence: Sequence[int]) -> FactQuery:
    """A query for a fact's object."""
    place = list(words).index(fact.object)
    return FactQuery(kind, tuple(words), place, place + 1, tuple(evidence))
