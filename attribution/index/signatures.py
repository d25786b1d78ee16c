"""Concept signatures and pooled hidden rows: what the model makes of a span where it has to guess it.

The concept heads were trained on masked positions only, so both are pooled over those, at a fixed noise (`Masking`).
A signature holds the activations, sigmoid of the kept logits, of known and of discovered concepts. Each head's part is
given the length √½: discovered activations are many and large, and would drown the known ones. What remains of the
whole after the largest `ENTRIES` have been kept is given length 1, so that the inner product is a cosine.

Legend: B passages, R rows (masked positions), D width, C concepts (known, then discovered), K entries, N chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.attribution.index.influence import normalised, span_hidden
from steerling_jax.attribution.index.passages import Masking, Passage, PassageBatch, passage_batches
from steerling_jax.errors import UserError
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import Params
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.head_view import known_spec, unknown_spec
from steerling_jax.models.steerling.heads import run_head
from steerling_jax.progress import Progress, no_progress

ENTRIES = 64  # of a signature: 3 bytes each in the index, or 5 where ids need more than 16 bits; at most 320 a chunk


class Signatures(NamedTuple):
    """ids (N, K) int32 of concepts, discovered ones after the known, −1 where unused; values (N, K) float32 ≥ 0,
    largest first; rows (N, D) float32, mean hidden rows of length 1. K is 0 for a bare backbone."""

    ids: np.ndarray
    values: np.ndarray
    rows: np.ndarray


def concept_count(config: ModelConfig) -> int:
    """Ids that a signature may hold, C."""
    if config.concept is None:
        return 0
    unknown = unknown_spec(config.concept)
    return config.concept.n_concepts + (unknown.n_concepts if unknown else 0)


def describe(
    params: Params,
    passages: Sequence[Passage],
    *,
    config: ModelConfig,
    compute: Compute,
    masking: Masking,
    batch_size: int = 32,
    tell: Progress = no_progress,
) -> Signatures:
    """Signature and hidden row of each passage's span. Raises `UserError` where the model gives NaN or infinity."""
    K, N, done = min(ENTRIES, concept_count(config)), len(passages), 0
    found = Signatures(
        np.full((N, K), -1, np.int32), np.zeros((N, K), np.float32), np.zeros((N, config.n_embd), np.float32)
    )
    for numbers, batch in passage_batches(passages, config, masking, batch_size):
        for whole, part in zip(found, _describe(params, batch, config=config, compute=compute), strict=True):
            whole[numbers] = np.asarray(part)[: len(numbers)]
        done += len(numbers)
        tell("signatures", done, N)
    if not (np.isfinite(found.rows).all() and np.isfinite(found.values).all()):
        raise UserError("The model gives hidden states that are not finite: are there NaNs in its weights?")
    return found._replace(ids=np.where(found.values > 0, found.ids, -1), rows=normalised(found.rows))


@partial(jax.jit, static_argnames=("config", "compute"))
def _describe(
    params: Params, batch: PassageBatch, *, config: ModelConfig, compute: Compute
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """ids and values (B, K), rows (B, D), not yet of length 1."""
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
    """Mean activations (B, C) over the rows (B, R, D), weighted; each head's part of length 1, or 0."""
    concept = config.concept
    assert concept is not None
    B, R, D = hidden.shape
    parts = []
    for name, spec in (("known_head", known_spec(concept)), ("unknown_head", unknown_spec(concept))):
        if spec is None:
            continue
        head = run_head(params[name], hidden.reshape(B * R, D), spec, compute)
        value = jax.nn.sigmoid(head.topk_logits).reshape(B, R, -1) * weight[:, :, None]
        index = head.topk_indices.reshape(B, R, -1)
        mean = jnp.zeros((B, spec.n_concepts)).at[jnp.arange(B)[:, None, None], index].add(value)
        parts.append(mean / jnp.maximum(jnp.linalg.norm(mean, axis=1, keepdims=True), 1e-9))
    return jnp.concatenate(parts, axis=1)


def packed(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] in 8 bits, uint8, finer where they are small: (code / 255)² is the value kept."""
    return np.rint(255 * np.sqrt(np.clip(values, 0, 1))).astype(np.uint8)


def unpacked(codes: np.ndarray) -> np.ndarray:
    """The values that `packed` kept, float32."""
    return np.square(codes.astype(np.float32) / 255)


def concept_weights(ids: np.ndarray, values: np.ndarray, n_concepts: int) -> np.ndarray:
    """Signatures (N, K) as dense vectors (N, C + 1) float32; the last entry, of unused ids, is 0."""
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
