"""A model of one layer with concepts, and a batch of labelled chunks for its objectives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig

MODEL = ModelConfig(
    n_layers=1,
    n_head=2,
    n_embd=16,
    n_kv_heads=1,
    block_size=64,
    diff_block_size=8,
    intermediate_size=16,
    vocab_size=20,
    pad_token_id=16,
    bos_token_id=17,
    eos_token_id=15,
    endofchunk_token_id=18,
    mask_token_id=19,
    concept=ConceptConfig(
        n_concepts=6,
        n_unknown_concepts=9,
        concept_dim=16,
        topk_known=3,
        topk_known_features=3,
        unknown_topk=4,
        factorize_rank=16,
        pad_multiple=4,
    ),
)


def labelled_batch(rows: int = 3, length: int = 24) -> dict[str, jax.Array]:
    """Chunks of 7 tokens that the blocks of 8 cut, with tokens outside chunks; chunk labels with and without gaps."""
    random = np.random.default_rng(1)
    index = np.tile(np.arange(length) // 7, (rows, 1))
    index[:, ::7] = -1
    return {
        "tokens": jnp.asarray(random.integers(0, 15, (rows, length)), jnp.int32),
        "chunk_index": jnp.asarray(index, jnp.int32),
        "chunk_labels": jnp.asarray(random.integers(-1, 6, (rows, 4, 3)), jnp.int32),
    }
