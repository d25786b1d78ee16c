"""The arrays of one unit of an index: text, suffix array, signatures, hidden rows and gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steerling_jax.attribution.index.gradients import gradient_features
from steerling_jax.attribution.index.influence import normalise_rows
from steerling_jax.attribution.index.passages import Masking, Passage
from steerling_jax.attribution.index.settings import IndexSettings
from steerling_jax.attribution.index.signatures import compute_signatures, concept_count, quantise
from steerling_jax.attribution.index.suffixes import suffix_array
from steerling_jax.bundle import Bundle
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.index import SEPARATOR
from steerling_jax.progress import Progress, no_progress


def build_unit(
    corpus: CorpusStore,
    documents: Sequence[int],
    bundle: Bundle,
    settings: IndexSettings,
    progress: Progress = no_progress,
) -> dict[str, np.ndarray]:
    """The arrays of the unit with these documents, given by number; `io/index.py` lists names and shapes."""
    passages: list[Passage] = []
    text, starts, offsets, owners, length = [], [], [], [], 0
    for ordinal, number in enumerate(documents):
        record = corpus.documents[number]
        tokens = corpus.tokens(record.start, record.end).astype(np.int32)
        for start, end in corpus.read("chunk_spans", *corpus.chunks_between(record.start, record.end)) - record.start:
            passages.append(passage_of(tokens, int(start), int(end), settings.context))
            # Chunks are joined without the boundaries between them, so that verbatim matches can cross a boundary.
            text.append(tokens[start:end])
            starts.append(length)
            offsets.append(start)
            owners.append(ordinal)
            length += int(end - start)
        text.append(np.array([SEPARATOR], np.int32))
        length += 1
    joined = np.concatenate(text)
    arrays = {
        "text": joined,
        "suffixes": suffix_array(joined),
        "chunk_starts": np.array(starts, np.int64),
        "chunk_offsets": np.array(offsets, np.int64),
        "chunk_documents": np.array(owners, np.int32),
    }
    if settings.verbatim:
        return arrays
    signatures = compute_signatures(
        bundle.params,
        passages,
        config=bundle.config,
        compute=bundle.compute,
        masking=settings.masking,
        progress=progress,
    )
    unused = concept_count(bundle.config)  # the id of unused entries: look-ups with it are in bounds and give 0
    id_type = "uint16" if unused < 1 << 16 else "uint32"
    arrays |= {
        "ids": np.where(signatures.ids < 0, unused, signatures.ids).astype(id_type),
        "codes": quantise(signatures.values),
        "rows": signatures.rows.astype(np.float16),
    }
    if settings.gradient_side:
        masking = settings.gradient_masking
        arrays["gradients"] = unit_gradients(bundle, passages, settings, masking, progress).astype(np.float16)
    return arrays


def unit_gradients(
    bundle: Bundle,
    passages: Sequence[Passage],
    settings: IndexSettings,
    masking: Masking,
    progress: Progress = no_progress,
) -> np.ndarray:
    """Gradient features (N, F) float32 of length 1, in the index's projection."""
    features = gradient_features(
        bundle.params,
        passages,
        config=bundle.config,
        compute=bundle.compute,
        masking=masking,
        projection=settings.projection,
        progress=progress,
    )
    return normalise_rows(features)


def passage_of(tokens: np.ndarray, start: int, end: int, context: int) -> Passage:
    """The span [start, end) of a text with at most `context` tokens before it."""
    first = max(0, start - context)
    return Passage(tokens[first:end], start - first, end - first)
