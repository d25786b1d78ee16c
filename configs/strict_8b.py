"""The 8 B shape with a strict bottleneck: a dictionary of discovered concepts of full rank, and no epsilon.

Command   steerling train --config strict_8b --distributed --start-from RUN --out RUN2 --corpus CORPUS   (on every host)
          steerling compile --config strict_8b --topology v5e:16x16                    (on any machine, no TPU)
Hardware  256 v5e chips or more; it has not been run on TPUs
Memory    as the TPU compiler reports it: docs/results/compile.md

The third stage, in which backbone and heads are trained together; it goes on from a run of the second stage, as
`strict_pydocs` from `dictionary_pydocs`. The published shape's factorised tables of discovered concepts have 27 M
parameters, the full ones here, keys and embeddings of 101,196 concepts, 829 M. They are sharded over all chips by
concept, as the others are.
"""

import dataclasses

from steerling_jax.configs import steerling_8b
from steerling_jax.models.steerling.config import DictionaryConfig
from steerling_jax.objectives.dictionary import DictionaryObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.train.run.run_config import RunConfig


def config() -> RunConfig:
    run = steerling_8b.config()
    assert run.model.concept is not None
    concept = dataclasses.replace(
        run.model.concept,
        factorize_unknown=False,
        use_epsilon_correction=False,
        dictionary=DictionaryConfig(),
    )
    objective = DictionaryObjective(
        noise=run.objective.noise,
        backbone="trained",
        initial="given",
        diffusion=(1.0, 1.0),
        likeness=(0.0, 0.0),
        reconstruction=(0.1, 0.1),
        rows=0.5625,
    )
    return dataclasses.replace(
        run,
        name="strict_8b",
        model=dataclasses.replace(run.model, concept=concept),
        objective=objective,
        optimizer=OptimizerConfig(peak_rate=1e-4, warmup_steps=2000, schedule="wsd", final_fraction=0.1),
        steps=100_000,
        start_from="runs/dictionary_8b",
    )
