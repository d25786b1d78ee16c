"""Concept heads for the bundled model's backbone, which stays as it is: known concepts and a dictionary of discovered
ones, with no epsilon beside them. The second stage of training a strict bottleneck; `strict_pydocs` is the third.

Command   steerling train --config dictionary_pydocs --start-from RUN     (RUN: a run or model with this backbone)
Hardware  two CPU cores, shared with other work
Time      3.5 minutes of processor time for 600 steps
Result    600 steps (1.2 M tokens) on the bundled model of version 0.1: 4.174 nats a held-out token, 0.126 more than
          from the hidden states themselves (with its own heads 0.273 more); 17 % of the variance unexplained;
          detection AUC 0.954; 7 % of the concepts dead
"""

from __future__ import annotations

import dataclasses

from steerling_jax.configs import pydocs
from steerling_jax.models.steerling.config import DictionaryConfig
from steerling_jax.objectives.dictionary import DictionaryObjective
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.train.run.run_config import RunConfig

DISCOVERED = 1024


def config() -> RunConfig:
    run = pydocs.config()
    assert run.model.concept is not None
    concept = dataclasses.replace(
        run.model.concept,
        n_unknown_concepts=DISCOVERED,
        factorize_unknown=False,
        unknown_topk=48,
        use_epsilon_correction=False,
        dictionary=DictionaryConfig(),
    )
    return dataclasses.replace(
        run,
        name="dictionary_pydocs",
        model=dataclasses.replace(run.model, concept=concept),
        objective=DictionaryObjective(noise=NoiseConfig(clean_context=True, floor=0.2), rows=0.65),
        optimizer=OptimizerConfig(peak_rate=2e-3, warmup_steps=50, weight_decay=0.0, b2=0.99),
        data=dataclasses.replace(run.data, batch_size=8),
        steps=1200,
        log_every=20,
        eval_every=600,
        start_from="steerling-pydocs",
    )
