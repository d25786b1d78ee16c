"""Mid-training of the bundled model: levels of noise drawn evenly, no teacher forcing, discovered concepts kept apart
from epsilon too.

Command   steerling train --config midtrain_pydocs --corpus CORPUS    (the bundled model's; without it, it is made)
Hardware  two cores of a Xeon with AMX
Time      not measured; about as long a step as pydocs
Result    not measured

The published model keeps 32 known and 128 discovered concepts a position in this phase. That is `topk_known`,
`topk_known_features` and `unknown_topk` of the model, which may differ from those it starts from: the weights are the
same. The bundled model has 136 known concepts and keeps the 16 and 48 that it was trained with.
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
        start_from="steerling-pydocs",
        objective=objective,
        optimizer=OptimizerConfig(peak_rate=1e-3, warmup_steps=50, schedule="wsd", decay_fraction=0.5, b2=0.99),
        steps=1000,
        eval_every=500,
    )
