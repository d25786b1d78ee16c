"""Concept signatures and pooled hidden rows: two vectors that describe a span of text.

The concept heads are trained on masked positions only, so both vectors are means over the span's masked positions, at a
fixed noise (`Masking`). A signature holds concept activations, the sigmoids of the top-k logits of the known and of the
discovered head. Each head's part is scaled to the same length: discovered activations are many and large, and the known
ones would hardly count otherwise. The `ENTRIES` largest of both heads are then scaled to length 1, so that the inner
product of two signatures is a cosine.

Legend: B passages, R rows (masked positions), D width, C concepts (known, then discovered), K entries, N chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.attribution.index.influence import normalise_rows
from steerling_jax.attribution.index.passage_states import span_hidden
from steerling_jax.attribution.index.passages import Masking, Passage, PassageBatch, passage_batches
from steerling_jax.errors import UserError
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig, concept_counts
from steerling_jax.models.steerling.heads import run_discovered_head, run_known_head
from steerling_jax.progress import Progress, no_progress

ENTRIES = 64  # per signature. In the index an entry takes 3 bytes (5 where ids need 32 bits), so at most 320 per chunk.


class Signatures(NamedTuple):
    """Signatures and hidden rows of N passages.

    Attributes:
        ids: (N, K) int32, concept ids, discovered concepts after the known ones; −1 for unused entries.
        values: (N, K) float32, not negative, largest first, of length 1.
        rows: (N, D) float32, mean hidden states of length 1.

    K is 0 for a bare backbone.
    """

    ids: np.ndarray
    values: np.ndarray
    rows: np.ndarray


def concept_count(config: ModelConfig) -> int:
    """Number C of concepts of both heads; a signature's ids are below it."""
    return sum(concept_counts(config))


def compute_signatures(
    params: Params,
    passages: Sequence[Passage],
    *,
    config: ModelConfig,
    compute: Compute,
    masking: Masking,
    batch_size: int = 32,
    progress: Progress = no_progress,
) -> Signatures:
    """Signature and hidden row of each passage's span. Raises `UserError` if the model gives NaN or infinity."""
    K, N, done = min(ENTRIES, concept_count(config)), len(passages), 0
    result = Signatures(
        np.full((N, K), -1, np.int32), np.zeros((N, K), np.float32), np.zeros((N, config.n_embd), np.float32)
    )
    for numbers, batch in passage_batches(passages, config, masking, batch_size):
        for whole, part in zip(result, _pooled(params, batch, config=config, compute=compute), strict=True):
            whole[numbers] = np.asarray(part)[: len(numbers)]
        done += len(numbers)
        progress("signatures", done, N)
    if not (np.isfinite(result.rows).all() and np.isfinite(result.values).all()):
        raise UserError("The model's hidden states are not finite: check its weights for NaN and infinity.")
    return result._replace(ids=np.where(result.values > 0, result.ids, -1), rows=normalise_rows(result.rows))


@partial(jax.jit, static_argnames=("config", "compute"))
def _pooled(
    params: Params, batch: PassageBatch, *, config: ModelConfig, compute: Compute
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """ids and values (B, K), and mean hidden states (B, D), which are not yet of length 1."""
    hidden = span_hidden(params, batch, config, compute)
    weight = batch.weight / jnp.maximum(jnp.sum(batch.weight, axis=1, keepdims=True), 1e-9)
    rows = jnp.einsum("br,brd->bd", weight, hidden.astype(jnp.float32))
    B = hidden.shape[0]
    K = min(ENTRIES, concept_count(config))
    if K == 0:
        return jnp.zeros((B, 0), jnp.int32), jnp.zeros((B, 0)), rows
    values, ids = jax.lax.top_k(_activations(params, hidden, weight, config, compute), K)
    values = values / jnp.maximum(jnp.linalg.norm(values, axis=1, keepdims=True), 1e-9)
    return ids, values, rows


def _activations(
    params: Params, hidden: jax.Array, weight: jax.Array, config: ModelConfig, compute: Compute
) -> jax.Array:
    """Weighted mean activations (B, C) over the rows (B, R, D); each head's part has length 1, or 0 if it is empty."""
    B, R, D = hidden.shape
    rows = hidden.reshape(B * R, D)
    heads = run_known_head(params, rows, config, compute), run_discovered_head(params, rows, config, compute)
    parts = []
    for head, count in zip(heads, concept_counts(config), strict=True):
        if head is None:
            continue
        value = head.topk_weights.reshape(B, R, -1) * weight[:, :, None]
        index = head.topk_indices.reshape(B, R, -1)
        mean = jnp.zeros((B, count)).at[jnp.arange(B)[:, None, None], index].add(value)
        parts.append(mean / jnp.maximum(jnp.linalg.norm(mean, axis=1, keepdims=True), 1e-9))
    return jnp.concatenate(parts, axis=1)


def quantise(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as 8-bit codes, uint8; a code stands for (code / 255)².

    The square root gives small values a finer step. Most of a signature's entries are small, and a linear code would
    round many of them to 0.
    """
    return np.rint(255 * np.sqrt(np.clip(values, 0, 1))).astype(np.uint8)


def dequantise(codes: np.ndarray) -> np.ndarray:
    """The values that codes stand for, float32."""
    return np.square(codes.astype(np.float32) / 255)


def concept_weights(ids: np.ndarray, values: np.ndarray, n_concepts: int) -> np.ndarray:
    """Signatures (N, K) as dense vectors (N, C + 1) float32; the last entry, which unused ids refer to, is 0."""
    dense = np.zeros((len(ids), n_concepts + 1), np.float32)
    np.put_along_axis(dense, np.where(ids >= 0, ids, n_concepts), np.where(ids >= 0, values, 0), axis=1)
    return dense


def signature_scores(query: Signatures, chunks: Signatures, n_concepts: int) -> np.ndarray:
    """Cosines (Q, N) float32 of signatures."""
    dense = [concept_weights(side.ids, side.values, n_concepts) for side in (query, chunks)]
    return dense[0] @ dense[1].T


def row_scores(query: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """Cosines (Q, N) float32 of hidden rows (Q, D) and (N, D) of length 1."""
    return query @ chunks.T
