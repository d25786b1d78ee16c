"""Steering training of the model of `pydocs`: what a steered concept does to the text, from the labels of the corpus.

Command   steerling train --config steer_pydocs --corpus CORPUS    (that of `pydocs`; prepared if missing)
Hardware  two cores of a Xeon with AMX
Time      two minutes (200 steps of 1,024 tokens)
Result    strong steering changes a concept's score by 24 instead of 15 log-odds; 2.00 instead of 1.89 held-out bits
          per byte (docs/results/steering.md)
"""

import dataclasses

from steerling_jax.configs import pydocs
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.steering import SteeringObjective
from steerling_jax.train.run.run_config import RunConfig


def config() -> RunConfig:
    return dataclasses.replace(
        pydocs.config(),
        name="steer_pydocs",
        start_from="steerling-pydocs-published",
        objective=SteeringObjective(
            noise=NoiseConfig(clean_context=True, floor=0.2),
            strength=(0.5, 8.0),
            pushed=0.5,
            rows=0.75,
        ),
        optimizer=OptimizerConfig(peak_rate=3e-4, warmup_steps=10, schedule="wsd", weight_decay=0.0, b2=0.99),
        steps=200,
        log_every=10,
        eval_every=200,
        checkpoint_every=100,
    )
