"""The former bundled model, by the published recipe, on the documentation that comes with every Python
interpreter. The present one is trained by `pydocs_next_token` and the three configs that follow it.

Command   GLIBC_TUNABLES=glibc.malloc.hugetlb=1 steerling train --config pydocs
Hardware  two cores of a Xeon with AMX, which other processes used too for most of the run
Time      about two hours of steps (10.2 M tokens, 5.9 epochs)
Result    likelihood bound of 1.89 bits per byte on held-out documents, no better than a token trigram (figures in the
          model card); detection AUC 0.969; loss without epsilon +0.27 nats; concepts' net share
          of the true token's logit 0.71, of the likeliest token's 0.63

That model, `steerling-pydocs-published`, was trained with steps=6000 and unknown_dropout=0 up to step 6,000, with
steps=13000 from there to step 8,182, and then with this config. On an accelerator, increase the number of steps first.
"""

from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.train.run.run_config import DataConfig, RunConfig, special_ids

VOCABULARY = 4096
CONCEPTS = 136  # of train/corpus/ontology.toml
WIDTH = 256


def config() -> RunConfig:
    concept = ConceptConfig(
        n_concepts=CONCEPTS,
        n_unknown_concepts=768,
        concept_dim=WIDTH,
        topk_known=16,
        topk_known_features=16,
        factorize_rank=64,
        unknown_topk=48,
        block_size=1024,
        inject_layer=2,
    )
    model = ModelConfig(
        n_layers=4,
        n_head=4,
        n_kv_heads=2,
        n_embd=WIDTH,
        block_size=2048,  # trained on sequences of 256; longer texts are possible, with a higher loss
        diff_block_size=8,
        rope_base=10_000.0,
        intermediate_size=640,
        vocab_size=VOCABULARY,
        concept=concept,
        **special_ids(VOCABULARY),
    )
    objective = ObjectiveConfig(
        # Trains on a clean and a noisy copy: a step costs twice as much, but every block has a clean context before it,
        # as in generation.
        noise=NoiseConfig(clean_context=True, floor=0.2),
        token_weight="inverse_t",
        concept_weight=0.1,
        independence_weight=1.0,
        epsilon_dropout=(0.2, 0.5),
        unknown_dropout=0.2,
        known_forcing=(0.5, 0.0),
        unknown_forcing=(0.0, 0.0),
        rows=0.6,
    )
    return RunConfig(
        name="pydocs",
        model=model,
        compute=Compute(matmul_dtype="bfloat16"),
        objective=objective,
        optimizer=OptimizerConfig(peak_rate=3e-3, warmup_steps=100, weight_decay=0.1, b2=0.99),
        data=DataConfig(
            vocab_size=VOCABULARY,
            seq_len=256,
            batch_size=4,
            sources={"reference": 1.0, "docstring": 1.0, "code": 0.5},
        ),
        steps=10000,
        log_every=50,
        eval_every=2500,
        checkpoint_every=250,
    )
