"""Samples of a model that were not selected: prompts are the first tokens of held-out documents at even distances in
the split, and seeds are 0, 1, 2, …
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.corpus.reader import DocumentRecord
from steerling_jax.decoding.generation import generate
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.steerling.config import ModelConfig

PROMPT_TOKENS = 16


@dataclass(frozen=True)
class Sample:
    """One generation.

    document: its name. prompt, text: as text.
    tokens: the generated ids. reference: the ids with which the document continues after the prompt.
    """

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
    """Generates `count` samples, one at a time (fewer where the split has fewer documents).

    Documents of less than twice the length of a prompt are not used. max_new_tokens: default 128, or less in a small
    context. settings: in place of the defaults with `max_new_tokens`; the seed is replaced.
    """
    store.check_tokenizer(bundle.tokenizer.sha256)
    block = bundle.config.diff_block_size if isinstance(bundle.config, ModelConfig) else 1
    room = (bundle.config.context_length - PROMPT_TOKENS) // block * block
    length = max_new_tokens or max(block, min(128 // block * block, room))
    settings = settings or GenerationConfig(max_new_tokens=length)
    for seed, record in enumerate(_choose_documents(store, count)):
        tokens = store.tokens(record.start, record.end).astype(int).tolist()
        prompt, reference = tokens[:PROMPT_TOKENS], tokens[PROMPT_TOKENS : PROMPT_TOKENS + settings.max_new_tokens]
        generation = generate(bundle, prompt, dataclasses.replace(settings, seed=seed), record_hidden=False)
        written = [int(i) for i in generation.tokens[len(prompt) :]]
        yield Sample(record.name, seed, bundle.tokenizer.decode(prompt), generation.text, written, reference)


def _choose_documents(store: CorpusStore, count: int) -> list[DocumentRecord]:
    documents = [d for d in store.documents if d.split == "heldout" and d.end - d.start >= 2 * PROMPT_TOKENS]
    if not documents:
        raise UserError(f"No held-out document of {store.folder} is long enough for a prompt: use a larger corpus.")
    indices = np.unique(np.linspace(0, len(documents) - 1, count).round().astype(int))
    return [documents[i] for i in indices]
