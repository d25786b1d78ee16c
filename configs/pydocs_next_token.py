"""The bundled model, first stage of four: its backbone, without concepts, learns to predict the next token.

Command   steerling prepare --out CORPUS --tokenizer steerling-pydocs
          GLIBC_TUNABLES=glibc.malloc.hugetlb=1 steerling train --config pydocs_next_token --corpus CORPUS
Hardware  two cores of an AMD EPYC
Time      8,000 tokens/s on idle cores; 6,336 steps (13.0 M tokens, 4.8 epochs), the last 4,395 of them in 19 minutes
Result    next token 3.49, 3.13 and 3.07 nats on held-out documents after 3.6, 8.2 and 12.3 M tokens, where a token
          trigram has 3.65 and a 5-gram 3.39

The corpus has all of the standard library's source, that of `pydocs` has half of it. The rate is constant, so the
run may be stopped at any step (Ctrl-C) and continued with the same command; the next stage, `pydocs_diffusion`, starts
from its newest checkpoint.
"""

import dataclasses

from steerling_jax.configs import pydocs
from steerling_jax.models.compute import Compute
from steerling_jax.objectives.next_token import NextTokenObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.train.run.run_config import RunConfig


def config() -> RunConfig:
    bundled = pydocs.config()
    return dataclasses.replace(
        bundled,
        name="pydocs_next_token",
        model=dataclasses.replace(bundled.model, interpretable=False, concept=None),
        compute=Compute(matmul_dtype="bfloat16", unroll=True),
        objective=NextTokenObjective(),
        optimizer=OptimizerConfig(
            kind="muon", peak_rate=8e-3, warmup_steps=100, schedule="wsd", decay_fraction=0.0, b2=0.99
        ),
        data=dataclasses.replace(bundled.data, batch_size=8, sources={}),
        steps=100_000,
        log_every=25,
        eval_every=100_000,  # the bound of blocks of noise, which this stage does not train
        checkpoint_every=2000,
        checkpoint_minutes=4,
    )
