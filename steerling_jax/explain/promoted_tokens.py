"""Which tokens a concept promotes: those along which its embedding points, by `lm_head · E_c`.

Concepts are taken a few at a time, so that nothing of size (C, D) or (C, V) is built.

Legend: J concepts asked for, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from steerling_jax.bundle import Bundle
from steerling_jax.concepts.catalogue import Head
from steerling_jax.concepts.heads import check_concepts, concept_embeddings
from steerling_jax.models.compute import Compute
from steerling_jax.models.layers import matmul_t
from steerling_jax.models.steerling.backbone import Params, lm_head_weight
from steerling_jax.models.steerling.config import ModelConfig

_BATCH = 64  # concepts at once: (64, V) float32 is 26 MB for the published vocabulary


def promoted_tokens(
    params: Params, ids: Sequence[int], count: int, *, head: Head, config: ModelConfig, compute: Compute
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` tokens that each concept promotes most, best first: token ids (J, count) int32 and the logit that one
    unit of the concept adds, (J, count) float32. Tokens that are never written (mask, pad, eos) are left out.
    """
    count = min(count, config.vocab_size)
    tokens = np.zeros((len(ids), count), np.int32)
    logits = np.zeros((len(ids), count), np.float32)
    for first in range(0, len(ids), _BATCH):
        batch = np.asarray(ids[first : first + _BATCH], np.int32)
        padded = np.pad(batch, (0, _BATCH - len(batch)))
        best, at = jax.device_get(_best(params, padded, head=head, count=count, config=config, compute=compute))
        rows = slice(first, first + len(batch))
        tokens[rows], logits[rows] = at[: len(batch)], best[: len(batch)]
    return tokens, logits


def promoted_pieces(bundle: Bundle, ids: Sequence[int], count: int, head: Head = "known") -> list[list[str]]:
    """The same as printable pieces of text. Raises `UserError` for a model without such concepts."""
    check_concepts(bundle.config, head, ids)
    tokens, _ = promoted_tokens(bundle.params, ids, count, head=head, config=bundle.config, compute=bundle.compute)
    return [[bundle.tokenizer.piece(token) for token in row] for row in tokens.tolist()]


@partial(jax.jit, static_argnames=("head", "count", "config", "compute"))
def _best(
    params: Params, ids: jax.Array, *, head: Head, count: int, config: ModelConfig, compute: Compute
) -> tuple[jax.Array, jax.Array]:
    vectors = concept_embeddings(params, ids, head=head, config=config, compute=compute)
    logits = matmul_t(vectors, lm_head_weight(params), compute.operands)
    never = jnp.array([config.eos_token_id, config.mask_token_id, config.pad_token_id])
    return lax.top_k(logits.at[:, never].set(-jnp.inf), count)
