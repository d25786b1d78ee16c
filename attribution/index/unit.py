"""One unit: documents to text, suffix array, signatures and rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steerling_jax.attribution.index.influence import gradient_features, normalised
from steerling_jax.attribution.index.passages import Masking, Passage
from steerling_jax.attribution.index.plan import IndexSettings
from steerling_jax.attribution.index.signatures import concept_count, describe, packed
from steerling_jax.attribution.index.suffixes import suffix_array
from steerling_jax.bundle import Bundle
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.index import SEPARATOR
from steerling_jax.progress import Progress, no_progress


def make_unit(
    corpus: CorpusStore, documents: Sequence[int], bundle: Bundle, settings: IndexSettings, tell: Progress
) -> dict[str, np.ndarray]:
    """All arrays of the unit of these documents (`io/index.py` lists them)."""
    passages: list[Passage] = []
    text, starts, offsets, owners, length = [], [], [], [], 0
    for ordinal, number in enumerate(documents):
        record = corpus.documents[number]
        tokens = corpus.tokens(record.start, record.end).astype(np.int32)
        for start, end in corpus.read("chunk_spans", *corpus.chunks_between(record.start, record.end)) - record.start:
            passages.append(passage_of(tokens, int(start), int(end), settings.context))
            text.append(tokens[start:end])
            starts.append(length)
            offsets.append(start)
            owners.append(ordinal)
            length += int(end - start)
        text.append(np.array([SEPARATOR], np.int32))
        length += 1
    joined = np.concatenate(text)
    described = describe(
        bundle.params, passages, config=bundle.config, compute=bundle.compute, masking=settings.masking, tell=tell
    )
    unused = concept_count(bundle.config)
    arrays = {
        "text": joined,
        "suffixes": suffix_array(joined),
        "chunk_starts": np.array(starts, np.int64),
        "chunk_offsets": np.array(offsets, np.int64),
        "chunk_documents": np.array(owners, np.int32),
        "ids": np.where(described.ids < 0, unused, described.ids).astype("uint16" if unused < 1 << 16 else "uint32"),
        "codes": packed(described.values),
        "rows": described.rows.astype(np.float16),
    }
    if settings.gradient_side:
        masking = settings.gradient_masking
        arrays["gradients"] = gradients(bundle, passages, settings, masking, tell).astype(np.float16)
    return arrays


def gradients(
    bundle: Bundle, passages: Sequence[Passage], settings: IndexSettings, masking: Masking, tell: Progress = no_progress
) -> np.ndarray:
    """Gradient features (N, F) float32 of length 1, in the index's projection."""
    found = gradient_features(
        bundle.params,
        passages,
        config=bundle.config,
        compute=bundle.compute,
        masking=masking,
        projection=settings.projection,
        tell=tell,
    )
    return normalised(found)


def passage_of(tokens: np.ndarray, start: int, end: int, context: int) -> Passage:
    """The span [start, end) after at most `context` tokens."""
    first = max(0, start - context)
    return Passage(tokens[first:end], start - first, end - first)
