"""A model of your own texts, with concepts of your own: docs/guide/your-texts.md has the whole way.

Command   steerling prepare --input ./texts --concepts concepts.toml --vocab-size 2048
          steerling train --config folder
Hardware  two CPU cores
Time      0.18 s of processor time a step, and 27 s to compile, evaluate and export (from runs of 5 and 40 steps)
Result    runs/folder/export, a model whose texts `steerling trace` explains by the concepts of concepts.toml

It reads the size of the vocabulary and the number of concepts from the corpus `./corpus`, where `prepare` writes by
default. For another corpus, or to change the model, write a file with a `config()` of its own and pass it to --config:

    from steerling_jax.configs.folder import config_for

    def config():
        return config_for("./my-corpus", steps=3000)
"""

from pathlib import Path

from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.train.run.run_config import DataConfig, RunConfig, special_ids

WIDTH = 128


def config() -> RunConfig:
    return config_for("corpus")


def config_for(corpus: str | Path, *, steps: int = 1000) -> RunConfig:
    """A small model for the corpus store at `corpus`. Raises `UserError` if there is none."""
    store = CorpusStore(Path(corpus))
    concepts = len(store.concepts)
    concept = ConceptConfig(
        n_concepts=concepts,
        n_unknown_concepts=256,
        concept_dim=WIDTH,
        topk_known=min(16, concepts),
        topk_known_features=min(16, concepts),
        factorize_rank=32,
        unknown_topk=16,
        block_size=512,
        inject_layer=2,
    )
    model = ModelConfig(
        n_layers=4,
        n_head=4,
        n_kv_heads=2,
        n_embd=WIDTH,
        block_size=512,
        diff_block_size=8,
        rope_base=10_000.0,
        intermediate_size=320,
        vocab_size=store.vocab_size,
        concept=concept,
        **special_ids(store.vocab_size),
    )
    # As in configs/pydocs.py, which says why.
    objective = ObjectiveConfig(
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
        name="folder",
        model=model,
        compute=Compute(matmul_dtype="bfloat16"),
        objective=objective,
        optimizer=OptimizerConfig(peak_rate=3e-3, warmup_steps=50, weight_decay=0.1, b2=0.99),
        data=DataConfig(vocab_size=store.vocab_size, seq_len=128, batch_size=8, corpus=str(corpus)),
        steps=steps,
        log_every=50,
        eval_every=500,
        checkpoint_every=100,
    )
