"""The model of the planted world and how it is trained."""

from __future__ import annotations

from dataclasses import asdict

from steerling_jax.attribution.faithfulness.planted.defaults import STEPS
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.objectives.training_step import Recipe

BATCH = 32
DOCUMENT_TOKENS = 16  # the model is trained on documents of this length only
OPENING_TOKENS = 8  # of a document that is continued
_WIDTH = 64


def planted_recipe(store: CorpusStore, steps: int = STEPS) -> Recipe:
    """Two layers of width 64, trained on `steps` batches of `BATCH` documents.

    A fact needs many repetitions to be learned. So epsilon is dropped at few positions at the beginning, when positions
    with epsilon train the backbone, and at most positions at the end, when positions without it train the heads. With a
    residual weight of 1 epsilon has 30 % of the logits' mass, with 10 less than a tenth. GELU, SwiGLU, norms of queries
    and keys, and clipping take up to half of a step's time at this size, and facts were not learned in fewer steps with
    them.
    """
    concept = ConceptConfig(
        n_concepts=len(store.concepts),
        n_unknown_concepts=128,
        concept_dim=_WIDTH,
        topk_known=None,
        topk_known_features=None,
        factorize_rank=_WIDTH,
        unknown_topk=32,
        apply_topk_to_unknown=False,
        block_size=128,
        inject_layer=1,
    )
    special = {f"{name.removesuffix('_id')}_token_id": value for name, value in asdict(store.special).items()}
    del special["eot_token_id"]
    model = ModelConfig(
        n_layers=2,
        n_head=2,
        n_kv_heads=2,
        n_embd=_WIDTH,
        block_size=256,
        diff_block_size=8,
        rope_base=10_000.0,
        use_qk_norm=False,
        clip_qkv=None,
        mlp_type="standard",
        activation="relu",
        intermediate_size=2 * _WIDTH,
        vocab_size=store.vocab_size,
        concept=concept,
        **special,
    )
    objective = ObjectiveConfig(
        noise=NoiseConfig(distribution="gaussian", centre=(0.4, 0.4), sigma=0.15, floor=0.1),
        concept_weight=0.1,
        residual_weight=10.0,
        independence_weight=0.1,
        epsilon_dropout=(0.1, 0.8),
        known_forcing=(0.5, 0.0),
        unknown_forcing=(0.0, 0.0),
        rows=0.75,
    )
    optimizer = OptimizerConfig(peak_rate=0.012, warmup_steps=20, b2=0.99)
    return Recipe(model, steps, Compute(), objective, optimizer)
