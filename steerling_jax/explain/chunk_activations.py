"""Activations of concepts at the masked positions of a batch, summed by chunk on the device, and their moments.

Legend: B sequences, T positions, N = B·T, J requested concepts, C known concepts, K top-k concepts of a position.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.concepts.concept import Head
from steerling_jax.concepts.heads import view_concepts
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.objectives.noise import mask_tokens


class Moments(NamedTuple):
    """Sums over masked positions, from which means and correlations follow.

    seen (): number of positions. a, a_square (J,): sums of a_j and a_j², the requested activations. k, k_square (C,):
    sums of k_c and k_c², the known concepts' activations. product (J, C): sums of a_j · k_c. JAX arrays inside a
    compiled program, NumPy arrays on the host. Moments of parts of a corpus are added field by field.
    """

    seen: Any
    a: Any
    a_square: Any
    k: Any
    k_square: Any
    product: Any

    def correlation(self) -> np.ndarray:
        """Pearson's correlation (J, C) of the activations with the known concepts', 0 where either does not vary.

        The moments should be float64: E[a²] − E[a]² cancels most digits for concepts that are rarely active.
        """
        n = np.maximum(self.seen, 1)
        mean_a, mean_k = self.a / n, self.k / n
        spread_a = np.sqrt(np.maximum(self.a_square / n - mean_a**2, 0))
        spread_k = np.sqrt(np.maximum(self.k_square / n - mean_k**2, 0))
        covariance = self.product / n - np.outer(mean_a, mean_k)
        scale = np.outer(spread_a, spread_k)
        return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-12)


@partial(jax.jit, static_argnames=("config", "compute"))
def chunk_activations(
    params: Params,
    tokens: jax.Array,
    local: jax.Array,
    key: jax.Array,
    level: jax.Array,
    known: jax.Array,
    discovered: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
) -> tuple[jax.Array, jax.Array, Moments]:
    """Activation sums (N, J) and masked positions (N,) of the chunks of a batch, and its moments.

    tokens, local (B, T): token ids, and each token's chunk, numbered from 0 within the batch (−1 for none). J: the
    concepts with the ids `known`, then those with the ids `discovered`.
    """
    B, T = tokens.shape
    levels = jnp.full((B, -(-T // config.diff_block_size)), level)
    noisy, masked = mask_tokens(key, tokens, levels, config)
    hidden = denoise(params, tokens, noisy, config=config, compute=compute, clean_context=True).reshape(B * T, -1)
    counted = (masked & (local >= 0)).reshape(-1).astype(jnp.float32)
    heads: tuple[tuple[Head, jax.Array], ...] = (("known", known), ("discovered", discovered))
    requested = [concept_activations(params, hidden, ids, head, config, compute) for head, ids in heads if len(ids)]
    a = jnp.concatenate(requested, axis=1) * counted[:, None]
    segment = jnp.where(counted > 0, local.reshape(-1), B * T)  # out of range, which segment_sum drops
    sums = jax.ops.segment_sum(a, segment, B * T)
    return sums, jax.ops.segment_sum(counted, segment, B * T), _moments(params, hidden, a, counted, config, compute)


def concept_activations(
    params: Params, hidden: jax.Array, ids: jax.Array, head: Head, config: ModelConfig, compute: Compute
) -> jax.Array:
    """Activations (N, J) of the concepts ids (J,), 0 where a concept is not in the head's top k."""
    view, spec = view_concepts(params, hidden, head, config, compute)
    logits = bn.logits_of_ids(view, ids, compute.operands)
    if spec.topk_features is None:
        return view.weights(logits)
    threshold = bn.top_concepts(view, spec.topk_features, spec.block, compute.operands)[0][:, -1:]
    # The logits here and in top_concepts are products of different shapes, which round differently. Without a margin
    # the k-th concept itself could fall below its own threshold.
    return jnp.where(logits >= threshold - 1e-5, view.weights(logits), 0.0)


def _moments(
    params: Params, hidden: jax.Array, a: jax.Array, counted: jax.Array, config: ModelConfig, compute: Compute
) -> Moments:
    """Moments of the activations a (N, J) with those of the known concepts, at positions with counted (N,) = 1."""
    view, spec = view_concepts(params, hidden, "known", config, compute)
    logits, index = bn.top_concepts(view, spec.topk_features or bn.REPORTED_WITHOUT_TOPK, spec.block, compute.operands)
    k = jax.nn.sigmoid(logits) * counted[:, None]

    # Known activations are sparse, K of C per position. A dense (N, C) table would be gigabytes for the published
    # model, so products are added to their concepts' rows, for one of the K slots at a time.
    def add_slot(product: jax.Array, slot: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        weights, concepts = slot
        return product + jax.ops.segment_sum(a * weights[:, None], concepts, spec.n_concepts), None

    product, _ = jax.lax.scan(add_slot, jnp.zeros((spec.n_concepts, a.shape[1])), (k.T, index.T))
    flat, concepts = k.reshape(-1), index.reshape(-1)
    return Moments(
        counted.sum(),
        a.sum(axis=0),
        jnp.square(a).sum(axis=0),
        jax.ops.segment_sum(flat, concepts, spec.n_concepts),
        jax.ops.segment_sum(flat**2, concepts, spec.n_concepts),
        product.T,
    )
