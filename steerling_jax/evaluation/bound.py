"""Evaluation of a batch: the bound on the likelihood, with and without each part of the decomposition, and evidence
for concepts.

These are compiled functions of (params, arrays, key) that return sums; `heldout_figures` chooses the texts, adds up and
divides. They denoise each block after *clean* earlier blocks, as inference does, and are deterministic in the key.

Legend: B sequences, T positions, D width, L tokens of a diffusion block, n blocks in all (B·T/L), M rows (masked
positions), S chunks of a sequence, C known concepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from steerling_jax.concepts.heads import view_concepts
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.backbone import lm_head_weight, lm_logits
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import cross_entropy, decompose
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.objectives.concept_losses import chunk_evidence
from steerling_jax.objectives.noise import mask_tokens

Sums = dict[str, jax.Array]

# Figures of the bound, by the part that is left out of what the output projection reads.
VARIANTS = ("full", "without_epsilon", "without_known", "without_discovered")
SHARES = ("known", "discovered", "epsilon")


class Subsets(NamedTuple):
    """Which positions are masked, (B, T) bool, and the weight of a masked position, (B, T) float32."""

    masked: jax.Array
    weight: jax.Array


def block_subsets(key: jax.Array, valid: jax.Array, block: int) -> Subsets:
    """Draws a subset of each block's valid positions (B, T) bool, for an unbiased estimate of the likelihood bound.

    The bound weights the cross-entropy by 1/t, for a level t uniform in (0, 1] and tokens masked with probability t.
    Integrated over t, a given subset of k out of m positions has the weight 1/k · 1/(m over k). So k is drawn uniformly
    from 1 … m, the subset uniformly from those of size k, and a masked position has the weight m/k. This has the same
    mean, without the variance of the number of masked positions at a level, and needs no smallest level. k is
    stratified over the blocks of the batch.
    """
    rows = valid.reshape(-1, block)
    n = rows.shape[0]
    order_key, offset_key, subset_key = jax.random.split(key, 3)
    strata = (jax.random.permutation(order_key, n) + jax.random.uniform(offset_key, (n,))) / n
    size = jnp.sum(rows, axis=1)
    k = jnp.minimum(jnp.floor(strata * size).astype(jnp.int32) + 1, size)
    # A random order of the valid positions; those that are not valid come last. The argsort of an argsort is the rank.
    order = jnp.where(rows, jax.random.uniform(subset_key, rows.shape), 2.0)
    rank = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
    weight = jnp.broadcast_to((size / jnp.maximum(k, 1))[:, None], rows.shape)
    return Subsets((rank < k[:, None]).reshape(valid.shape), weight.astype(jnp.float32).reshape(valid.shape))


def most_masked(n: int, block: int) -> int:
    """The largest number of positions that `block_subsets` masks in n blocks.

    k is stratified, so the i-th smallest of the n sizes is at most L (i + 1) / n + 1, which adds up to this bound.
    """
    return min(n * block, block * (n + 1) // 2 + n + 1)


class MaskedTokens(NamedTuple):
    """The masked positions of a batch, M of them at most; the others are fillers of weight 0.

    rows (M, D): hidden rows. target, place (M,) int32: the true token and the position in the flattened batch. weight
    (M,): of the nats. valid (M,) float32: 0 for a filler. masked (): how many positions are masked.
    """

    rows: jax.Array
    target: jax.Array
    place: jax.Array
    weight: jax.Array
    valid: jax.Array
    masked: jax.Array


def masked_tokens(
    params: Params, tokens: jax.Array, valid: jax.Array, key: jax.Array, config: ModelConfig, compute: Compute
) -> MaskedTokens:
    """One random subset of each block of tokens (B, T), of the valid ones (B, T) bool, T a multiple of L."""
    B, T = tokens.shape
    L = config.diff_block_size
    subsets = block_subsets(key, valid, L)
    noisy = jnp.where(subsets.masked, config.mask_token_id, tokens)
    hidden = denoise(params, tokens, noisy, config=config, compute=compute, clean_context=True)
    # The number of masked positions is not known when the program is compiled, so there are rows for the most possible;
    # the rows left over repeat position 0 and get the weight 0.
    capacity = most_masked(B * T // L, L)
    index = jnp.nonzero(subsets.masked.reshape(-1), size=capacity, fill_value=0)[0]
    count = jnp.sum(subsets.masked)
    row_valid = (jnp.arange(capacity) < count).astype(jnp.float32)
    weight = subsets.weight.reshape(-1)[index] * row_valid
    return MaskedTokens(hidden.reshape(B * T, -1)[index], tokens.reshape(-1)[index], index, weight, row_valid, count)


@partial(jax.jit, static_argnames=("config", "compute"))
def likelihood_sums(
    params: Params, tokens: jax.Array, valid: jax.Array, key: jax.Array, *, config: ModelConfig, compute: Compute
) -> Sums:
    """Sums over one random subset of each block, for tokens (B, T) int32 and valid (B, T) bool, T a multiple of L.

    `full`, `without_epsilon`, `without_known`, `without_discovered`: the bound in nats for all valid tokens, special
    tokens included, with that part left out of what the output projection reads (without rescaling). All use the same
    masks, so that differences measure a part's contribution. `full_square`: the sum of the squares of the blocks' nats,
    for a standard error. `tokens`, `blocks`, `masked`: counts. `share_*`: the parts' shares in Σ |part · w| at masked
    positions, w the output row of the true token; `best_share_*`: of the most likely token. A bare backbone has only
    `full`, `full_square` and the counts.
    """
    L = config.diff_block_size
    rows, target, index, weight, row_valid, masked = masked_tokens(params, tokens, valid, key, config, compute)
    if config.concept is None:
        nats = cross_entropy(params, rows, target, compute)
        sums = {"full": jnp.sum(nats * weight)}
    else:
        nats, sums = _part_sums(params, rows, target, weight, row_valid, config, compute)
    block_nats = jax.ops.segment_sum(nats * weight, index // L, tokens.size // L)
    counts = {"tokens": jnp.sum(valid), "blocks": jnp.sum(valid.reshape(-1, L).any(axis=1)), "masked": masked}
    return sums | counts | {"full_square": jnp.sum(jnp.square(block_nats))}


def _part_sums(
    params: Params,
    rows: jax.Array,
    target: jax.Array,
    weight: jax.Array,
    row_valid: jax.Array,
    config: ModelConfig,
    compute: Compute,
) -> tuple[jax.Array, Sums]:
    """The nats (M,) of hidden rows (M, D) of a model with concepts, and the sums that tell its parts apart.

    target (M,): the true tokens; weight (M,) of the nats; row_valid (M,): 0 for a filler, which has no weight either.
    """
    parts = decompose(params, rows, config=config, compute=compute)
    # Where epsilon is part of the sum, the sum is the hidden rows: adding it up again would only round it.
    composed = parts.composed if parts.epsilon is None else rows
    features = {
        "epsilon": jnp.zeros_like(rows) if parts.epsilon is None else parts.epsilon,
        "known": parts.known.features,
        "discovered": parts.discovered_features,
    }
    logits = lm_logits(params, composed, compute)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    sums = {"full": jnp.sum(nats * weight)}
    for name, part in features.items():
        without = cross_entropy(params, composed - part, target, compute)
        sums[f"without_{name}"] = jnp.sum(without * weight)
    for prefix, token in (("share_", target), ("best_share_", jnp.argmax(logits, axis=1))):
        shares = _logit_shares(params, [features[name] for name in SHARES], token)
        shares = jnp.sum(shares * row_valid[:, None], axis=0)
        sums |= {prefix + name: shares[i] for i, name in enumerate(SHARES)}
    return nats, sums


def _logit_shares(params: Params, features: Sequence[jax.Array], token: jax.Array) -> jax.Array:
    """The share of each part in Σ |part · w|, (M, n), for n parts (M, D) and w the output row of `token` (M,)."""
    w = lm_head_weight(params)[token].astype(jnp.float32)
    stacked = jnp.stack([jnp.abs(jnp.sum(f.astype(jnp.float32) * w, axis=1)) for f in features], axis=1)
    return stacked / jnp.maximum(jnp.sum(stacked, axis=1, keepdims=True), 1e-30)


@partial(jax.jit, static_argnames=("chunks", "config", "compute"))
def presence_evidence(
    params: Params,
    tokens: jax.Array,
    chunk_index: jax.Array,
    level: jax.Array,
    key: jax.Array,
    *,
    chunks: int,
    config: ModelConfig,
    compute: Compute,
) -> tuple[jax.Array, jax.Array]:
    """The evidence for each known concept in each chunk, (B, S, C) float32, and what was masked, (B, T) bool.

    tokens (B, T) int32 are masked with the probability `level` (). chunk_index (B, T) int32: −1 for positions of no
    chunk; chunks: S. The evidence is −log(1 − P) for the objective's `P = 1 − Π (1 − k)` over masked tokens. It orders
    chunks as P does, does not saturate, and adds up over the pieces of a chunk that the end of a sequence has cut.
    """
    assert config.concept is not None
    B, T = tokens.shape
    levels = jnp.full((B, -(-T // config.diff_block_size)), level)
    noisy, masked = mask_tokens(key, tokens, levels, config)
    hidden = denoise(params, tokens, noisy, config=config, compute=compute, clean_context=True)
    view, spec = view_concepts(params, hidden.reshape(B * T, -1), "known", config, compute)
    counted = jnp.where(masked, chunk_index, -1)

    def step(evidence: jax.Array, new: bn.ConceptBlock) -> jax.Array:
        of_block = chunk_evidence(new.logits, counted, chunks)
        return lax.dynamic_update_slice_in_dim(evidence, of_block, new.start, axis=2)

    zeros = jnp.zeros((B, chunks, spec.n_concepts))
    return bn.scan_concept_blocks(step, zeros, view, spec.block, compute.operands), masked
