"""Stage "making the vocabulary": trains a SentencePiece vocabulary on the training split."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steerling_jax.io.tokenizers.vocabulary import train_sentencepiece
from steerling_jax.train.prepare.duplicates import corpus_documents
from steerling_jax.train.prepare.preparation import Preparation
from steerling_jax.train.prepare.splitting import split_of
from steerling_jax.train.prepare.vocabulary_file import SENTENCEPIECE_FILE

_CHARACTERS = 50_000_000  # the most text that a vocabulary is trained on
_PARTS = 256  # the most parts that this text is taken from


def vocabulary_tasks(preparation: Preparation) -> list[str]:
    """The vocabulary file, if one is to be trained and does not exist yet."""
    return preparation.missing([SENTENCEPIECE_FILE]) if preparation.plan.vocabulary is None else []


def train_vocabulary(preparation: Preparation, name: str) -> None:
    """Trains the vocabulary on all training text or, in a large corpus, on an equal amount from each of some parts."""
    parts, characters = list(range(len(preparation.parts))), _CHARACTERS
    if preparation.survey["characters"] > _CHARACTERS:
        # The same amount from each, so that no source or end of the input dominates the vocabulary.
        parts = evenly_spaced(len(parts), _PARTS)
        characters //= len(parts)

    def texts() -> Iterator[str]:
        for part in parts:
            left = characters
            for document in corpus_documents(preparation, part):
                if left <= 0:
                    break
                if split_of(preparation, document) == "train":
                    yield document.text[:left]
                    left -= len(document.text)

    preparation.work.write(name, train_sentencepiece(texts(), preparation.config.vocab_size))


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spaced."""
    return sorted({int(at) for at in np.linspace(0, count - 1, min(count, most))})
