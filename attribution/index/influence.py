"""Influence: would a step on a chunk of the corpus lower the loss of a query? Gradients of both, at the same noise.

The gradient of each weight matrix is projected from both sides, `P G Qᵀ` with random signs, which keeps inner products
in expectation and needs matrices of the size of a layer's side only. Three ways to compare: the inner product (one step
of gradient descent), its cosine, and the inner product in the metric of the damped second moment of the corpus's
gradients, block by block (a Gauss–Newton step, as TRAK and LoGra take it).

Legend: B passages, T positions, F features, N chunks, Q queries, s side of a projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.attribution.index.passages import Masking, Passage, PassageBatch, passage_batches
from steerling_jax.errors import UserError
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import Params, embed_tokens, run_backbone
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import logit_features
from steerling_jax.models.steerling.model import param_shapes
from steerling_jax.models.steerling.published_shapes import fused
from steerling_jax.objectives.pretraining import cross_entropy
from steerling_jax.progress import Progress, no_progress

Similarity = Literal["dot", "cosine", "fisher"]
Signs = tuple[tuple[jax.Array | None, jax.Array | None], ...]
_HEADS = ("known_head", "unknown_head")
_FLOAT32 = Compute()
_MASKING = Masking()


@dataclass(frozen=True)
class Projection:
    """side: features of a matrix's gradient are (side, side), of a vector's side²; None keeps gradients whole."""

    side: int | None = 16
    seed: int = 0


_PROJECTION = Projection()


class FeatureBlock(NamedTuple):
    """Features [start, end) belong to one parameter of one layer."""

    name: str
    start: int
    end: int


def span_hidden(params: Params, batch: PassageBatch, config: ModelConfig, compute: Compute) -> jax.Array:
    """Hidden rows (B, R, D) of the masked positions that count: what `noise.denoise` gives with a clean context. The
    clean copy is run once for all draws, and of noisy copies only the span's blocks, as no other one sees them."""
    B, m, W = batch.noisy.shape
    _, clean = run_backbone(
        params, embed_tokens(params, batch.clean, compute), config=config, compute=compute, keep_cache=True
    )
    positions = jnp.tile(batch.first[:, None] + jnp.arange(W)[None, :], (1, m))
    block, draw = positions // config.diff_block_size, jnp.arange(m * W) // W
    of_clean = jnp.arange(batch.clean.shape[1]) // config.diff_block_size
    own = (block[:, :, None] == block[:, None, :]) & (draw[:, None] == draw[None, :])[None]
    hidden, _ = run_backbone(
        params,
        embed_tokens(params, batch.noisy.reshape(B, m * W), compute),
        config=config,
        compute=compute,
        positions=positions,
        mask=jnp.concatenate([block[:, :, None] > of_clean[None, None, :], own], axis=2),
        cache=clean,
    )
    return jnp.take_along_axis(hidden, batch.rows[:, :, None], axis=1)


def _losses(params: Params, batch: PassageBatch, config: ModelConfig, compute: Compute) -> jax.Array:
    """Nats (B,) of each passage, a sum over its span in which every token counts once."""
    hidden = span_hidden(params, batch, config, compute)
    B, R, D = hidden.shape
    features = logit_features(params, hidden.reshape(B * R, D), config, compute)
    place = batch.first[:, None] + batch.rows % batch.noisy.shape[2]
    target = jnp.take_along_axis(batch.clean, place, axis=1)
    nats = cross_entropy(params, features, target.reshape(-1), compute)
    return jnp.sum(nats.reshape(B, R) * batch.weight, axis=1)


_compiled_losses = partial(jax.jit, static_argnames=("config", "compute"))(_losses)


def passage_losses(
    params: Params,
    passages: Sequence[Passage],
    *,
    config: ModelConfig,
    compute: Compute = _FLOAT32,
    masking: Masking = _MASKING,
    batch_size: int = 32,
    tell: Progress = no_progress,
) -> np.ndarray:
    """Nats (N,) float32 of each passage: cross-entropy summed over its tokens [start, end), at the masking's noise."""
    found = np.zeros(len(passages), np.float32)
    done = 0
    for numbers, batch in passage_batches(passages, config, masking, batch_size):
        found[numbers] = np.asarray(_compiled_losses(params, batch, config=config, compute=compute))[: len(numbers)]
        done += len(numbers)
        tell("losses", done, len(passages))
    return found


def gradient_features(
    params: Params,
    passages: Sequence[Passage],
    *,
    config: ModelConfig,
    compute: Compute = _FLOAT32,
    masking: Masking = _MASKING,
    projection: Projection = _PROJECTION,
    batch_size: int = 8,
    tell: Progress = no_progress,
) -> np.ndarray:
    """(N, F) float32: the projected gradient of each passage's loss (`passage_losses`), for chunks and queries alike.

    `batch_size` gradients of the model's size are held at a time. Raises `UserError` for an empty span, and where a
    gradient is not finite.
    """
    blocks, signs = feature_blocks(config, projection), _signs(config, projection)
    found = np.zeros((len(passages), blocks[-1].end), np.float32)
    done = 0
    for numbers, batch in passage_batches(passages, config, masking, batch_size):
        rows = _batch_features(params, batch, signs, config=config, compute=compute)
        found[numbers] = np.asarray(rows)[: len(numbers)]
        done += len(numbers)
        tell("gradients", done, len(passages))
    if not np.isfinite(found).all():
        raise UserError("The model gives gradients that are not finite: are there NaNs or infinities in its weights?")
    return found


@partial(jax.jit, static_argnames=("config", "compute"))
def _batch_features(
    params: Params, batch: PassageBatch, signs: Signs, *, config: ModelConfig, compute: Compute
) -> jax.Array:
    """(B, F) float32."""

    def loss(params: Params, one: PassageBatch) -> jax.Array:
        return _losses(params, jax.tree.map(lambda a: a[None], one), config, compute)[0]

    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, batch)
    leaves = [
        leaf.astype(jnp.float32) if _names(path)[0] == "blocks" else leaf.astype(jnp.float32)[:, None]
        for path, leaf in jax.tree_util.tree_leaves_with_path(fused(gradients))
        if _takes_part(path, config)
    ]
    parts = [_projected(leaf, *pair) for leaf, pair in zip(leaves, signs, strict=True)]
    return jnp.concatenate(parts, axis=1)


def _published(config: ModelConfig) -> Params:
    """Shapes of the parameters as published: a feature means the same however ours are split."""
    return jax.eval_shape(fused, param_shapes(config))


def _names(path: tuple) -> list[str]:
    return [str(key.key) for key in path]


def _takes_part(path: tuple, config: ModelConfig) -> bool:
    """With the epsilon correction, composed features equal hidden ones, and the heads have no gradient."""
    concept = config.concept
    return not (concept is not None and concept.use_epsilon_correction and _names(path)[0] in _HEADS)


def _projected(gradient: jax.Array, left: jax.Array | None, right: jax.Array | None) -> jax.Array:
    """A parameter's gradients (B, L, …) to features (B, ·), layer by layer with the same signs; None leaves an axis."""
    if left is not None:
        gradient = jnp.einsum("so,blo...->bls...", left, gradient)
    if right is not None:
        gradient = gradient @ right.T
    return gradient.reshape(gradient.shape[0], -1)


@lru_cache(maxsize=4)
def _signs(config: ModelConfig, projection: Projection) -> Signs:
    """For each parameter the matrices of random signs from the left and from the right."""
    pairs = []
    for number, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(_published(config))):
        if _takes_part(path, config):
            shape, side = leaf.shape[1:] if _names(path)[0] == "blocks" else leaf.shape, projection.side
            keys = jax.random.split(jax.random.fold_in(jax.random.key(projection.seed), number))
            rows = None if side is None else side**2 if len(shape) == 1 else side
            pairs.append(
                (_sign_matrix(keys[0], rows, shape[0]), _sign_matrix(keys[1], rows, shape[1]))
                if len(shape) == 2
                else (_sign_matrix(keys[0], rows, shape[0]), None)
            )
    return tuple(pairs)


def _sign_matrix(key: jax.Array, rows: int | None, width: int) -> jax.Array | None:
    """(rows, width) of ±1/√rows, or None where there is nothing to gain."""
    if rows is None or width <= rows:
        return None
    return jax.random.rademacher(key, (rows, width), jnp.float32) * rows**-0.5


@lru_cache
def feature_blocks(config: ModelConfig, projection: Projection) -> tuple[FeatureBlock, ...]:
    """Which features belong to which parameter of which layer, in order."""
    blocks: list[FeatureBlock] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(_published(config)):
        if not _takes_part(path, config):
            continue
        names, shape = _names(path), leaf.shape
        layers = 1
        if names[0] == "blocks":
            layers, *shape = shape
        size, side = int(np.prod(shape)), projection.side
        if side is not None:
            size = min(size, side**2) if len(shape) == 1 else min(shape[0], side) * min(shape[1], side)
        for layer in range(layers):
            start = blocks[-1].end if blocks else 0
            where = f"{layer}/" if names[0] == "blocks" else ""
            blocks.append(FeatureBlock(where + "/".join(names), start, start + size))
    return tuple(blocks)


class Fisher(NamedTuple):
    """For each block of features, the inverse square root W of its damped second moment: W g is g whitened."""

    blocks: tuple[FeatureBlock, ...]
    roots: tuple[np.ndarray, ...]

    def whiten(self, features: np.ndarray) -> np.ndarray:
        """(N, F) to (N, F) float32, in which inner products are those of the metric."""
        parts = [features[:, b.start : b.end] @ root for b, root in zip(self.blocks, self.roots, strict=True)]
        return np.concatenate(parts, axis=1).astype(np.float32)


def fit_fisher(features: np.ndarray, blocks: Sequence[FeatureBlock], damping: float = 0.1) -> Fisher:
    """From gradient features (N, F) of a sample of the corpus; `damping` is in units of a block's mean eigenvalue."""
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
    """Of gradient features (Q, F) and (N, F), (Q, N) float32: positive where a step on the chunk lowers the query's
    loss.

    "dot": by how much, for a small step of plain descent. "cosine": without the size of the two gradients, which grows
    with a chunk's length and with how badly it is known. "fisher": the cosine in the metric of `fisher`.
    """
    if kind == "fisher":
        if fisher is None:
            raise ValueError("influence in the Fisher metric needs a fitted one")
        query, chunks = fisher.whiten(query), fisher.whiten(chunks)
    if kind != "dot":
        query, chunks = normalised(query), normalised(chunks)
    return query @ chunks.T


def normalised(rows: np.ndarray) -> np.ndarray:
    """Rows (N, F) of length 1; zero rows stay zero."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)
