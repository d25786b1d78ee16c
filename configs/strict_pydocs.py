"""The bundled model, fourth stage of four: the strict bottleneck, trained end to end. Every logit is a sum over known
and discovered concepts of its own position, and a constant.

Command   steerling train --config strict_pydocs --corpus CORPUS    (from runs/dictionary_pydocs, or --start-from RUN)
Hardware  two cores of an AMD EPYC
Time      17 minutes: 2,000 steps (4.1 M tokens) at 3,900 tokens/s
Result    likelihood bound of 1.538 ± 0.011 bits a byte on a third of the held-out documents, 0.150 nats a token more
          than `pydocs_diffusion`; detection AUC 0.96
"""

from __future__ import annotations

import dataclasses

from steerling_jax.configs import dictionary_pydocs
from steerling_jax.objectives.dictionary import DictionaryObjective
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.train.run.run_config import RunConfig


def config() -> RunConfig:
    run = dictionary_pydocs.config()
    objective = DictionaryObjective(
        noise=NoiseConfig(clean_context=True, floor=0.2),
        backbone="trained",
        initial="given",
        diffusion=(1.0, 1.0),
        likeness=(0.0, 0.0),
        reconstruction=(0.1, 0.1),
        # At a tenth of the masked positions the known concepts predict the token alone, so that they learn to carry it.
        discovered_dropout=0.1,
        token_weight="inverse_t",
        rows=0.65,
    )
    return dataclasses.replace(
        run,
        name="strict_pydocs",
        objective=objective,
        optimizer=OptimizerConfig(
            kind="muon", peak_rate=2e-3, warmup_steps=50, schedule="wsd", decay_fraction=0.9, b2=0.99
        ),
        steps=2000,
        eval_every=2000,
        seed=2,
        start_from="runs/dictionary_pydocs",
    )
