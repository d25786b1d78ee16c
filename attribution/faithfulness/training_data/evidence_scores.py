"""The scores that are compared: for each query and chunk how strongly the chunk is evidence, arrays (Q, N)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from steerling_jax.attribution.faithfulness.planted.training import TrainedModel
from steerling_jax.attribution.index.gradients import gradient_features
from steerling_jax.attribution.index.influence import influence
from steerling_jax.attribution.index.passages import Masking, Passage
from steerling_jax.attribution.index.projection import Projection
from steerling_jax.attribution.index.signatures import (
    Signatures,
    compute_signatures,
    concept_count,
    row_scores,
    signature_scores,
)
from steerling_jax.attribution.index.suffixes import verbatim_scores
from steerling_jax.errors import UserError
from steerling_jax.objectives.training_step import Recipe
from steerling_jax.progress import Progress

MAX_NGRAM = 3
# A query's answer is one word, which can be predicted only if most of the words before it are visible.
MASKING, QUERY_MASKING = Masking(level=0.5, draws=4), Masking(level=0.25, draws=8)
DAMPING = 1.0  # in units of the mean squared norm of a chunk's gradient


class ScoredTexts(NamedTuple):
    """Queries and chunks as token ids without special tokens, and as passages for the model.

    A query ends with the queried words.
    """

    queries: list[np.ndarray]
    chunks: list[np.ndarray]
    query_passages: list[Passage]
    chunk_passages: list[Passage]


def check_bm25() -> None:
    """Raises `UserError` if the library bm25s is not installed."""
    try:
        import bm25s  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(
            "The training-data part needs the library bm25s for BM25: install it with "
            "`pip install 'steerling-jax[faithfulness]'`."
        ) from None


def bm25(queries: Sequence[np.ndarray], chunks: Sequence[np.ndarray]) -> np.ndarray:
    """Okapi BM25 with the library's defaults; token ids are the words."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs each step

    def words(rows: Sequence[np.ndarray]) -> list[list[str]]:
        return [[str(token) for token in row] for row in rows]

    index = bm25s.BM25()
    index.index(words(chunks), show_progress=False)
    return np.stack([index.get_scores(query) for query in words(queries)])


def ngram_overlap(queries: Sequence[np.ndarray], chunks: Sequence[np.ndarray]) -> np.ndarray:
    """Share of a query's n-grams that the chunk has as often, averaged over n from 1 to `MAX_NGRAM`."""
    scores = np.zeros((len(queries), len(chunks)))
    for n in range(1, MAX_NGRAM + 1):
        chunk_ngrams = [_ngrams(chunk, n) for chunk in chunks]
        for q, query in enumerate(queries):
            ngrams = _ngrams(query, n)
            total = max(ngrams.total(), 1)
            scores[q] += [(ngrams & counts).total() / total / MAX_NGRAM for counts in chunk_ngrams]
    return scores


def _ngrams(tokens: np.ndarray, n: int) -> Counter[tuple[int, ...]]:
    row = tokens.tolist()
    return Counter(tuple(row[i : i + n]) for i in range(len(row) - n + 1))


def lexical_scores(texts: ScoredTexts, seed: int) -> dict[str, np.ndarray]:
    """The scores that need no model."""
    shape = (len(texts.queries), len(texts.chunks))
    return {
        "verbatim": verbatim_scores(texts.queries, texts.chunks).astype(np.float64),
        "n-gram overlap": ngram_overlap(texts.queries, texts.chunks),
        "BM25": bm25(texts.queries, texts.chunks).astype(np.float64),
        "random": np.random.default_rng(seed).random(shape),
    }


def model_scores(
    models: Sequence[TrainedModel], texts: ScoredTexts, recipe: Recipe, progress: Progress
) -> dict[str, np.ndarray]:
    """The scores that read the texts with the model, averaged over models.

    Signatures and hidden rows are of each model's final parameters, influence is the mean over its checkpoints.
    """
    config, compute = recipe.model, recipe.compute
    passages = [*texts.query_passages, *texts.chunk_passages]
    Q, scores = len(texts.query_passages), dict[str, list[np.ndarray]]()
    seed = 0
    for number, model in enumerate(models):
        progress("scores", number, len(models))
        signatures = compute_signatures(model.params, passages, config=config, compute=compute, masking=MASKING)
        query, chunks = (Signatures(*(a[rows] for a in signatures)) for rows in (slice(0, Q), slice(Q, None)))
        scores.setdefault("signature", []).append(signature_scores(query, chunks, concept_count(config)))
        scores.setdefault("representation", []).append(row_scores(query.rows, chunks.rows))
        for params in model.checkpoints:
            query_gradients, chunk_gradients = (
                gradient_features(
                    params,
                    some,
                    config=config,
                    compute=compute,
                    masking=replace(masking, seed=seed),
                    projection=Projection(None),
                    batch_size=16,
                )
                for some, masking in ((texts.query_passages, QUERY_MASKING), (texts.chunk_passages, MASKING))
            )
            seed += 1  # other masks for each checkpoint, so that the mean is over more masks
            one_step = influence(query_gradients, chunk_gradients, "dot")
            scores.setdefault("influence, one step", []).append(one_step / np.abs(one_step).mean())
            scores.setdefault("influence", []).append(damped_influence(query_gradients, chunk_gradients))
    progress("scores", len(models), len(models))
    return {name: np.mean(each, axis=0) for name, each in scores.items()}


def damped_influence(query: np.ndarray, chunks: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """Influence (Q, N) in the metric of the damped second moment of all chunks' gradients, divided by its mean size.

    From gradients (Q, F) and (N, F). The metric is of the whole gradient, not block by block as in `index.influence`:
    by the identity (GᵀG + λ)⁻¹Gᵀ = Gᵀ(GGᵀ + λ)⁻¹ the matrix to invert is (N, N), and a planted corpus has few chunks.
    Source: Park et al., TRAK (2023), with whole instead of projected gradients and without its weights.
    """
    kernel = (chunks @ chunks.T).astype(np.float64)
    kernel += damping * np.trace(kernel) / len(kernel) * np.eye(len(kernel))
    scores = np.linalg.solve(kernel, (chunks @ query.T).astype(np.float64)).T
    return scores / np.abs(scores).mean()
