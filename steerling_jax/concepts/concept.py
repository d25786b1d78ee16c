"""A concept of a model, or a feature of an autoencoder, as a catalogue describes it, and how its name is written."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Head = Literal["known", "discovered"]
HEADS: tuple[Head, ...] = get_args(Head)
# What an entry is about: a concept of a head of the model, or a feature of an autoencoder that was given with it.
Kind = Literal["known", "discovered", "feature"]
KINDS: tuple[Kind, ...] = get_args(Kind)

WORD_SEPARATOR = "·"  # between the words of a name that was found in texts


@dataclass(frozen=True)
class NameQuality:
    """How well a name found by `steerling name` says where its concept is active, see `explain.naming.selection`.

    auc: area under the ROC curve, with its standard error. others: mean area of other concepts' names for this concept.
    active: texts in which the concept is active, of all `texts` on which the name was scored.
    """

    auc: float
    error: float
    others: float | None
    active: int
    texts: int


@dataclass(frozen=True)
class Concept:
    """One concept of a catalogue, or one feature of an autoencoder, whose `head` is "feature".

    id: its number within its head. group: the name of a group of concepts, "" for none. flags: marks such as
    "sensitive", which are displayed and otherwise unused. words, quality, examples: of a name that was found in texts:
    its words, how well they predict where the concept is active, and beginnings of texts in which it is strongest.
    is_named: False where no words predict it well enough; `name` is then 'unnamed #12 “…”' with these words.
    amplify, suppress: the strengths of steering without a number, as `steerling calibrate` measures them; None where
    they were not measured for this concept. density, largest: of a feature, the share of the tokens at which it is kept
    and its largest latent, on the texts on which it was measured.
    """

    id: int
    name: str
    description: str = ""
    head: Kind = "known"
    group: str = ""
    flags: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    quality: NameQuality | None = None
    examples: tuple[str, ...] = ()
    is_named: bool = True
    amplify: float | None = None
    suppress: float | None = None
    density: float | None = None
    largest: float | None = None


def unnamed(number: int, head: Kind) -> str:
    """What an entry is called of which nothing but its number is known."""
    return f"feature {number}" if head == "feature" else f"concept {number}"


def comparable(text: str) -> str:
    """A name in the form in which names are compared: any case, any white space, with or without the dots between the
    words of a name."""
    return " ".join(word for word in text.casefold().split() if word != WORD_SEPARATOR) or text.strip()


def no_name(concept_id: int, words: Sequence[str]) -> str:
    """The display of a concept whose words say too little about it to be its name: 'unnamed #12 “import · from”'.

    The words are in quotation marks, because they are examples; `#12` is how `Catalogue.resolve` refers to it.
    """
    quoted = f" {WORD_SEPARATOR} ".join(words)
    return f"unnamed #{concept_id} “{quoted}”" if words else f"unnamed #{concept_id}"


def unique_names(names: Sequence[str], taken: Collection[str]) -> list[str]:
    """The names with " (2)", " (3)" … after those that an earlier one or one of `taken` has, in any case."""
    used = {comparable(name) for name in taken}
    unique = []
    for name in names:
        number, candidate = 1, name
        while comparable(candidate) in used:
            number += 1
            candidate = f"{name} ({number})"
        used.add(comparable(candidate))
        unique.append(candidate)
    return unique
