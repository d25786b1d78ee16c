"""The tokens that a concept promotes: those with the largest logits `lm_head · E_c` of the concept's embedding.

Concepts are processed in small batches, so no array of size (C, D) or (C, V) is built.

Legend: J requested concepts, C concepts of a head, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from steerling_jax.bundle import Bundle
from steerling_jax.concepts.concept import Head
from steerling_jax.concepts.heads import check_concepts, concept_embeddings
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.layers import matmul_t
from steerling_jax.models.steerling.backbone import lm_head_weight
from steerling_jax.models.steerling.config import ModelConfig

_BATCH = 64  # concepts per call: (64, V) float32 is 26 MB for the published vocabulary


def promoted_tokens(
    params: Params, ids: Sequence[int], count: int, *, head: Head, config: ModelConfig, compute: Compute
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` tokens that each of the concepts `ids` promotes most, best first.

    Returns token ids (J, count) int32 and the logits that one unit of the concept adds, (J, count) float32. Tokens that
    are never generated (mask, padding, end of sequence) are excluded.
    """
    count = min(count, config.vocab_size)
    tokens = np.zeros((len(ids), count), np.int32)
    logits = np.zeros((len(ids), count), np.float32)
    for first in range(0, len(ids), _BATCH):
        batch = np.asarray(ids[first : first + _BATCH], np.int32)
        padded = np.pad(batch, (0, _BATCH - len(batch)))
        best, best_ids = jax.device_get(_best(params, padded, head=head, count=count, config=config, compute=compute))
        rows = slice(first, first + len(batch))
        tokens[rows], logits[rows] = best_ids[: len(batch)], best[: len(batch)]
    return tokens, logits


def promoted_pieces(bundle: Bundle, ids: Sequence[int], count: int, head: Head = "known") -> list[list[str]]:
    """The promoted tokens of `promoted_tokens` as printable text. Raises `UserError` for ids the head does not have."""
    check_concepts(bundle.config, head, ids)
    tokens, _ = promoted_tokens(bundle.params, ids, count, head=head, config=bundle.config, compute=bundle.compute)
    return [[bundle.tokenizer.piece(token) for token in row] for row in tokens.tolist()]


@partial(jax.jit, static_argnames=("head", "count", "config", "compute"))
def _best(
    params: Params, ids: jax.Array, *, head: Head, count: int, config: ModelConfig, compute: Compute
) -> tuple[jax.Array, jax.Array]:
    """The largest logits (J, count) and their token ids (J, count) for concepts ids (J,)."""
    vectors = concept_embeddings(params, ids, head=head, config=config, compute=compute)
    logits = matmul_t(vectors, lm_head_weight(params), compute.operands)
    never = jnp.array([config.eos_token_id, config.mask_token_id, config.pad_token_id])
    return lax.top_k(logits.at[:, never].set(-jnp.inf), count)
