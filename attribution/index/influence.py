"""Influence: by how much a training step on a chunk of the corpus would lower the loss of a query.

A step of size η against the gradient g_c of a chunk changes the loss of a query by −η · g_q · g_c to first order, so
influence is an inner product of gradients (`gradients.gradient_features`). There are three ways to compare them:

- "dot": the inner product itself, for one small step of gradient descent.
- "cosine": without the lengths of the two gradients. A chunk's gradient is long where the chunk is long or badly
  predicted, whatever the query, and such chunks would be first for every query.
- "fisher": the cosine in the metric of the damped second moment of the corpus's gradients, block by block. This
  is a Gauss–Newton step, as in TRAK (Park et al., 2023) and LoGra (Choe et al., 2024): directions in which all chunks
  have large gradients, such as the frequencies of tokens, count less.

Legend: F features, N chunks, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from steerling_jax.attribution.index.projection import FeatureBlock

Similarity = Literal["dot", "cosine", "fisher"]


class Fisher(NamedTuple):
    """For each block of features the inverse square root W of its damped second moment, so that W g is g whitened."""

    blocks: tuple[FeatureBlock, ...]
    roots: tuple[np.ndarray, ...]

    def whiten(self, features: np.ndarray) -> np.ndarray:
        """Whitens features (N, F); inner products of the result (N, F) float32 are those of the metric."""
        parts = [features[:, b.start : b.end] @ root for b, root in zip(self.blocks, self.roots, strict=True)]
        return np.concatenate(parts, axis=1).astype(np.float32)


def fit_fisher(features: np.ndarray, blocks: Sequence[FeatureBlock], damping: float = 0.1) -> Fisher:
    """Fits the metric to gradient features (N, F) of a sample of the corpus.

    The second moment is taken for each block (a parameter of a layer) by itself: the whole (F, F) matrix would be too
    large to invert. It has at most N non-zero eigenvalues, so it is damped by `damping` times the block's mean
    eigenvalue; without damping, directions that the sample does not contain would be divided by zero.
    """
    roots = []
    for block in blocks:
        part = features[:, block.start : block.end].astype(np.float64)
        values, vectors = np.linalg.eigh(part.T @ part / len(part))
        values = np.maximum(values, 0)
        damped = values + max(damping * values.mean(), 1e-30)
        roots.append(((vectors / np.sqrt(damped)) @ vectors.T).astype(np.float32))
    return Fisher(tuple(blocks), tuple(roots))


def influence(
    query: np.ndarray, chunks: np.ndarray, kind: Similarity = "cosine", fisher: Fisher | None = None
) -> np.ndarray:
    """Influence (Q, N) float32 of chunks on queries from their gradient features (N, F) and (Q, F).

    Positive where a step on the chunk lowers the query's loss. The module describes the kinds; "fisher" needs `fisher`,
    and raises `ValueError` without it.
    """
    if kind == "fisher":
        if fisher is None:
            raise ValueError("influence in the Fisher metric needs `fisher`, made by fit_fisher")
        query, chunks = fisher.whiten(query), fisher.whiten(chunks)
    if kind != "dot":
        query, chunks = normalise_rows(query), normalise_rows(chunks)
    return query @ chunks.T


def normalise_rows(rows: np.ndarray) -> np.ndarray:
    """Rows (N, F) scaled to length 1; zero rows stay zero."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)
