"""The bundled model, third stage of four: concept heads for the backbone of `pydocs_diffusion`, which stays as it is.
Known concepts, and a dictionary of discovered ones, with no epsilon beside them.

Command   steerling train --config dictionary_pydocs --corpus CORPUS   (from runs/pydocs_diffusion, or --start-from)
Hardware  two cores of an AMD EPYC
Time      3 minutes: 1,000 steps (2.0 M tokens) at 11,000 tokens/s
Result    3.474 nats a held-out token, 0.171 more than from the hidden states themselves; 21 % of the variance
          unexplained; detection AUC 0.66, because this backbone was trained without labels; 2 % of the concepts dead
"""

from __future__ import annotations

import dataclasses

from steerling_jax.configs import pydocs
from steerling_jax.models.compute import Compute
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
        compute=Compute(matmul_dtype="bfloat16", unroll=True),
        data=dataclasses.replace(run.data, batch_size=8, sources={}),
        steps=1000,
        log_every=25,
        eval_every=500,
        start_from="runs/pydocs_diffusion",
    )
