"""A first example, which the tests train too: a small model on a few hundred docstrings of the interpreter.

Command   steerling train --config tiny
Hardware  two CPU cores
Time      37 s of processor time, about half of it to prepare the corpus and to compile
Result    the diffusion loss falls from 6.9 to 6.0 nats per masked token: the model learns which words are frequent
"""

from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.train.run.run_config import DataConfig, RunConfig, special_ids

VOCABULARY = 1024
CONCEPTS = 136  # of train/corpus/ontology.toml
WIDTH = 64


def config() -> RunConfig:
    concept = ConceptConfig(
        n_concepts=CONCEPTS,
        n_unknown_concepts=3 * CONCEPTS,
        concept_dim=WIDTH,
        topk_known=8,
        topk_known_features=8,
        factorize_rank=16,
        unknown_topk=16,
        block_size=128,
        inject_layer=1,
    )
    model = ModelConfig(
        n_layers=2,
        n_head=4,
        n_kv_heads=2,
        n_embd=WIDTH,
        block_size=256,
        diff_block_size=16,
        vocab_size=VOCABULARY,
        concept=concept,
        **special_ids(VOCABULARY),
    )
    return RunConfig(
        name="tiny",
        model=model,
        compute=Compute(),
        optimizer=OptimizerConfig(peak_rate=3e-3, warmup_steps=20, weight_decay=0.1),
        data=DataConfig(
            vocab_size=VOCABULARY,
            seq_len=128,
            batch_size=8,
            sources={"reference": 0.1, "docstring": 0.05, "code": 0.0},
        ),
        steps=100,
        log_every=10,
        eval_every=100,
        checkpoint_every=25,
    )
