"""How strongly each chunk speaks for each query, by every score that is compared: arrays (Q, N)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from steerling_jax.attribution.faithfulness.planted.model import TrainedModel
from steerling_jax.attribution.index.gradients import gradient_features
from steerling_jax.attribution.index.influence import influence
from steerling_jax.attribution.index.passages import Masking, Passage
from steerling_jax.attribution.index.projection import Projection
from steerling_jax.attribution.index.signatures import compute_signatures, concept_count, row_scores, signature_scores
from steerling_jax.attribution.index.suffixes import verbatim_scores
from steerling_jax.errors import UserError
from steerling_jax.objectives.training_step import Recipe
from steerling_jax.progress import Progress

LONGEST = 3  # words of an n-gram
# Of chunks, and of queries: these ask for one word, which needs its prompt.
MASKING, QUERY_MASKING = Masking(level=0.5, draws=4), Masking(level=0.25, draws=8)
DAMPING = 1.0  # in units of the mean squared norm of a chunk's gradient


class Texts(NamedTuple):
    """queries, chunks: token ids without special ones, a query's up to what is asked for. query_passages,
    chunk_passages: the same for the model."""

    queries: list[np.ndarray]
    chunks: list[np.ndarray]
    query_passages: list[Passage]
    chunk_passages: list[Passage]


def check_bm25() -> None:
    """Raises `UserError` where the library is not installed."""
    try:
        import bm25s  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(
            "The training-data part compares with BM25 of the library bm25s: install it with "
            "`pip install 'steerling-jax[faithfulness]'`."
        ) from None


def bm25(queries: Sequence[np.ndarray], chunks: Sequence[np.ndarray]) -> np.ndarray:
    """Okapi BM25 with the library's defaults, over token ids as words."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells each step

    def words(rows: Sequence[np.ndarray]) -> list[list[str]]:
        return [[str(token) for token in row] for row in rows]

    index = bm25s.BM25()
    index.index(words(chunks), show_progress=False)
    return np.stack([index.get_scores(query) for query in words(queries)])


def ngram_overlap(queries: Sequence[np.ndarray], chunks: Sequence[np.ndarray]) -> np.ndarray:
    """Share of a query's n-grams that the chunk has too, each as often, averaged over n from 1 to `LONGEST`."""
    found = np.zeros((len(queries), len(chunks)))
    for n in range(1, LONGEST + 1):
        have = [_ngrams(chunk, n) for chunk in chunks]
        for q, query in enumerate(queries):
            asked = _ngrams(query, n)
            total = max(asked.total(), 1)
            found[q] += [(asked & counts).total() / total / LONGEST for counts in have]
    return found


def _ngrams(tokens: np.ndarray, n: int) -> Counter[tuple[int, ...]]:
    row = tokens.tolist()
    return Counter(tuple(row[i : i + n]) for i in range(len(row) - n + 1))


def lexical_scores(texts: Texts, seed: int) -> dict[str, np.ndarray]:
    """The scores that need no model."""
    shape = (len(texts.queries), len(texts.chunks))
    return {
        "verbatim": verbatim_scores(texts.queries, texts.chunks).astype(np.float64),
        "n-gram overlap": ngram_overlap(texts.queries, texts.chunks),
        "BM25": bm25(texts.queries, texts.chunks).astype(np.float64),
        "random": np.random.default_rng(seed).random(shape),
    }


def model_scores(models: Sequence[TrainedModel], texts: Texts, recipe: Recipe, tell: Progress) -> dict[str, np.ndarray]:
    """The scores that read the texts with the model, averaged over models: signatures and hidden rows of each one's
    last parameters, influence of its checkpoints too."""
    config, compute = recipe.model, recipe.compute
    passages = [*texts.query_passages, *texts.chunk_passages]
    Q, found = len(texts.query_passages), dict[str, list[np.ndarray]]()
    draws = 0
    for number, model in enumerate(models):
        tell("scores", number, len(models))
        described = compute_signatures(model.params, passages, config=config, compute=compute, masking=MASKING)
        query, chunks = (type(described)(*(a[rows] for a in described)) for rows in (slice(0, Q), slice(Q, None)))
        found.setdefault("signature", []).append(signature_scores(query, chunks, concept_count(config)))
        found.setdefault("representation", []).append(row_scores(query.rows, chunks.rows))
        for params in model.checkpoints:
            asked, told = (
                gradient_features(
                    params,
                    some,
                    config=config,
                    compute=compute,
                    masking=replace(masking, seed=draws),
                    projection=Projection(None),
                    batch_size=16,
                )
                for some, masking in ((texts.query_passages, QUERY_MASKING), (texts.chunk_passages, MASKING))
            )
            draws += 1  # other masks for each checkpoint, so that their mean is of more of them
            scores = influence(asked, told, "dot")
            found.setdefault("influence, one step", []).append(scores / np.abs(scores).mean())
            found.setdefault("influence", []).append(damped(asked, told))
    tell("scores", len(models), len(models))
    return {name: np.mean(each, axis=0) for name, each in found.items()}


def damped(query: np.ndarray, chunks: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """Inner products of gradients (Q, F) and (N, F) in the metric of the damped second moment of all chunks, (Q, N),
    over their mean size.

    The metric of the whole gradient, not block by block: `Gᵀ(GGᵀ + λ)⁻¹` is as large as there are chunks, not features.
    Source: Park et al., TRAK (2023), with whole gradients for projected ones and without their weights.
    """
    kernel = (chunks @ chunks.T).astype(np.float64)
    kernel += damping * np.trace(kernel) / len(kernel) * np.eye(len(kernel))
    scores = np.linalg.solve(kernel, (chunks @ query.T).astype(np.float64)).T
    return scores / np.abs(scores).mean()
