"""Uncurated samples of a model, and what of them can be counted: known words, copied runs, repetition.

Prompts are the first tokens of held-out documents spread evenly over the split, and seeds are 0, 1, 2, …, so that
nobody chose anything. The same figures of the held-out documents' own continuations stand beside them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.corpus.reader import DocumentRecord
from steerling_jax.decoding.generation import generate
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.errors import UserError
from steerling_jax.evaluation.text_metrics import distinct
from steerling_jax.io.corpus.store import CorpusStore

PROMPT_TOKENS = 16
RUN = 8  # tokens in a row that count as copied
_WORD = re.compile(r"[^\W\d_]{2,}")
_SLICE = 1 << 20  # tokens of the training split at once


@dataclass(frozen=True)
class Sample:
    """prompt and text as text; tokens: the ids that were generated; reference: what the document goes on with."""

    document: str
    seed: int
    prompt: str
    text: str
    tokens: list[int]
    reference: list[int]


def samples(
    bundle: Bundle,
    store: CorpusStore,
    count: int = 20,
    *,
    max_new_tokens: int | None = None,
    settings: GenerationConfig | None = None,
) -> Iterator[Sample]:
    """Writes `count` samples, one at a time. Documents too short for a prompt and as much again are passed over."""
    store.check_tokenizer(bundle.tokenizer.sha256)
    block = bundle.config.diff_block_size
    room = (bundle.config.block_size - PROMPT_TOKENS) // block * block
    length = max_new_tokens or max(block, min(128 // block * block, room))
    settings = settings or GenerationConfig(max_new_tokens=length)
    for seed, record in enumerate(_documents(store, count)):
        tokens = store.tokens(record.start, record.end).astype(int).tolist()
        prompt, reference = tokens[:PROMPT_TOKENS], tokens[PROMPT_TOKENS : PROMPT_TOKENS + settings.max_new_tokens]
        made = generate(bundle, prompt, dataclasses.replace(settings, seed=seed), record_hidden=False)
        written = [int(i) for i in made.tokens[len(prompt) :]]
        yield Sample(record.name, seed, bundle.tokenizer.decode(prompt), made.text, written, reference)


def _documents(store: CorpusStore, count: int) -> list[DocumentRecord]:
    found = [d for d in store.documents if d.split == "heldout" and d.end - d.start >= 2 * PROMPT_TOKENS]
    if not found:
        raise UserError(f"No held-out document of {store.folder} is long enough for a prompt: make a larger corpus.")
    places = np.unique(np.linspace(0, len(found) - 1, count).round().astype(int))
    return [found[i] for i in places]


def measures(written: Sequence[Sample], bundle: Bundle, store: CorpusStore) -> dict[str, dict[str, float | None]]:
    """Shares for `samples` and, as a yardstick, for the `reference` continuations:

    known_words: of words (two letters or more) that occur in the training split. copied: of runs of 8 tokens that occur
    there. distinct_1, _2, _4: different n-grams of tokens within a sample over all, mean of samples.
    """
    special = np.array(sorted(store.special.names()))
    made = {"samples": [s.tokens for s in written], "reference": [s.reference for s in written]}
    made = {name: [[i for i in ids if i not in special] for ids in texts] for name, texts in made.items()}
    words, runs = _training_words_and_runs(
        bundle, store, np.unique(np.concatenate([_runs(np.array(ids)) for texts in made.values() for ids in texts]))
    )
    found: dict[str, dict[str, float | None]] = {}
    for name, texts in made.items():
        spoken = [w.lower() for ids in texts for w in _WORD.findall(bundle.tokenizer.decode(ids))]
        eights = np.concatenate([_runs(np.array(ids)) for ids in texts])
        found[name] = {
            "known_words": _mean([word in words for word in spoken]),
            "copied": _mean(np.isin(eights, runs).tolist()),
            **{f"distinct_{n}": _mean([d for ids in texts if (d := distinct(ids, n)) is not None]) for n in (1, 2, 4)},
        }
    return found


def _training_words_and_runs(bundle: Bundle, store: CorpusStore, wanted: np.ndarray) -> tuple[set[str], np.ndarray]:
    """All words of the training split, and those of the `wanted` runs that occur in it."""
    start, end = store.split("train")
    words: set[str] = set()
    seen = np.zeros(0, np.uint64)
    for a in range(start, end, _SLICE):
        ids = store.tokens(a, min(a + _SLICE + RUN - 1, end))
        words.update(word.lower() for word in _WORD.findall(bundle.tokenizer.decode(ids)))
        seen = np.union1d(seen, wanted[np.isin(wanted, _runs(ids))])
    return words, seen


def _runs(tokens: np.ndarray) -> np.ndarray:
    """Hashes (N − 7,) uint64 of the runs of 8 tokens."""
    count = max(len(tokens) - RUN + 1, 0)
    hashes = np.zeros(count, np.uint64)
    for offset in range(RUN):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + tokens[offset : offset + count].astype(np.uint64)
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
