"""The bundled model, second stage of four: from the next token to blocks of noise, still without concepts.

Command   GLIBC_TUNABLES=glibc.malloc.hugetlb=1 steerling train --config pydocs_diffusion --corpus CORPUS
Hardware  as for `pydocs_next_token`, from whose run, runs/pydocs_next_token, it starts (or --start-from)
Time      14 minutes: 2,000 steps (4.1 M tokens) at 4,800 tokens/s
Result    likelihood bound of 1.472 ± 0.010 bits a byte on a third of the held-out documents, where a token trigram has
          1.628 and a 5-gram 1.509
"""

import dataclasses

from steerling_jax.configs import pydocs_next_token
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.train.run.run_config import RunConfig


def config() -> RunConfig:
    before = pydocs_next_token.config()
    return dataclasses.replace(
        before,
        name="pydocs_diffusion",
        start_from="runs/pydocs_next_token",
        objective=ObjectiveConfig(noise=NoiseConfig(clean_context=True, floor=0.2), token_weight="inverse_t", rows=0.6),
        # The rate falls over nine tenths of this stage, because the first one has kept it at its peak.
        optimizer=OptimizerConfig(
            kind="muon", peak_rate=8e-3, warmup_steps=40, schedule="wsd", decay_fraction=0.9, b2=0.99
        ),
        steps=2000,
        log_every=25,
        eval_every=2000,
        checkpoint_every=500,
        seed=1,  # other noise and another order of the data than in the first stage
    )
