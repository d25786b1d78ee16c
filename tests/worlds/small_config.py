"""The configuration of a small Steerling model whose parts all differ in size, so that a mixed-up axis shows."""

from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig

CONCEPT = ConceptConfig(
    n_concepts=24,
    n_unknown_concepts=40,
    concept_dim=32,
    factorize_rank=16,
    topk_known=4,
    topk_known_features=4,
    unknown_topk=8,
    block_size=16,
)
SMALL = ModelConfig(
    n_layers=2,
    n_head=4,
    n_embd=32,
    n_kv_heads=2,
    block_size=96,
    diff_block_size=8,
    intermediate_size=48,
    vocab_size=64,
    pad_token_id=60,
    bos_token_id=61,
    eos_token_id=59,
    endofchunk_token_id=62,
    mask_token_id=63,
    concept=CONCEPT,
)
