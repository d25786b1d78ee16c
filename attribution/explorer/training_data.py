"""The training data behind texts: an opened index with its corpus store."""

from __future__ import annotations

from steerling_jax.attribution.explorer.explaining import EvidenceSearch
from steerling_jax.attribution.index.reader import open_index
from steerling_jax.attribution.index.search import find_evidence
from steerling_jax.bundle import Bundle
from steerling_jax.io.corpus.store import CorpusStore


def open_training_data(index: str, corpus: str, bundle: Bundle) -> tuple[EvidenceSearch, CorpusStore]:
    """The search in an index, and its corpus store. Raises `UserError` where one is not of this model or the other."""
    store = CorpusStore(corpus)
    opened = open_index(index, store, bundle)
    return lambda tokens, start, end, scores: find_evidence(bundle, opened, tokens[:end], start, end, scores), store
