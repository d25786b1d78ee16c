"""The bundled model's strict bottleneck, trained end to end: the third stage, after `pydocs` without concepts and
`dictionary_pydocs`. Every logit is a sum over known and discovered concepts of its own position, and a constant.

Command   steerling train --config strict_pydocs --start-from RUN     (RUN: a run of dictionary_pydocs)
Result    not measured yet
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
        token_weight="inverse_t",
        rows=0.65,
    )
    return dataclasses.replace(
        run,
        name="strict_pydocs",
        objective=objective,
        optimizer=OptimizerConfig(peak_rate=5e-4, warmup_steps=50, weight_decay=0.1, b2=0.99),
        steps=2000,
        eval_every=500,
        start_from="runs/dictionary_pydocs",
    )
