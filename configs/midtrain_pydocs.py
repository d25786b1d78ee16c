"""Mid-training of the model of `pydocs`: uniform noise levels, no teacher forcing, discovered concepts independent of
epsilon too.

Command   steerling train --config midtrain_pydocs --corpus CORPUS    (that of `pydocs`; prepared if missing)
Hardware  two cores of a Xeon with AMX
Time      not measured; a step takes about as long as in pydocs
Result    not measured

In this phase the published model has 32 active known and 128 active discovered concepts per position. These are
`topk_known`, `topk_known_features` and `unknown_topk` of the model, which may differ from those of the initial weights,
as they change no shape. This model has 136 known concepts and stays at 16 and 48, as before.
"""

import dataclasses

from steerling_jax.configs import pydocs
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.train.run.run_config import RunConfig


def config() -> RunConfig:
    before = pydocs.config()
    assert isinstance(before.objective, ObjectiveConfig)
    objective = dataclasses.replace(
        before.objective,
        known_forcing=(0.0, 0.0),
        unknown_forcing=(0.0, 0.0),
        epsilon_dropout=(0.3, 0.3),
        epsilon_independence_weight=1.0,
        concept_warmup=0.0,
    )
    return dataclasses.replace(
        before,
        name="midtrain_pydocs",
        start_from="steerling-pydocs-published",
        objective=objective,
        optimizer=OptimizerConfig(peak_rate=1e-3, warmup_steps=50, schedule="wsd", decay_fraction=0.5, b2=0.99),
        steps=1000,
        eval_every=500,
    )
