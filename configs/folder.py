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

import dataclasses
from pathlib import Path

from steerling_jax.configs import pydocs
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.train.run.run_config import DataConfig, RunConfig, special_ids

WIDTH = 128


def config() -> RunConfig:
    return config_for("corpus")


def config_for(corpus: str | Path, *, steps: int = 1000) -> RunConfig:
    """The bundled model's recipe in small, for the corpus store at `corpus`. Raises `UserError` if there is none."""
    store = CorpusStore(Path(corpus))
    concepts = len(store.concepts)
    run = pydocs.config()
    assert run.model.concept is not None
    concept = dataclasses.replace(
        run.model.concept,
        n_concepts=concepts,
        n_unknown_concepts=256,
        concept_dim=WIDTH,
        topk_known=min(16, concepts),
        topk_known_features=min(16, concepts),
        factorize_rank=32,
        unknown_topk=16,
        block_size=512,
    )
    model = dataclasses.replace(
        run.model,
        n_embd=WIDTH,
        n_head=4,
        n_kv_heads=2,
        block_size=512,
        intermediate_size=320,
        vocab_size=store.vocab_size,
        concept=concept,
        **special_ids(store.vocab_size),
    )
    return dataclasses.replace(
        run,
        name="folder",
        model=model,
        optimizer=dataclasses.replace(run.optimizer, warmup_steps=50),
        data=DataConfig(vocab_size=store.vocab_size, seq_len=128, batch_size=8, corpus=str(corpus)),
        steps=steps,
        eval_every=500,
        checkpoint_every=100,
    )
