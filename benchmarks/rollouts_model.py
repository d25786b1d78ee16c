"""The model of the measurement of steered rollouts: a Qwen3 of two layers of width 128 on Python's language reference.

    steerling train --config benchmarks/rollouts_model.py --out runs/small

It is small, because every step of reinforcement learning writes texts with it, and so is its vocabulary.
"""

from __future__ import annotations

import dataclasses

from steerling_jax.configs import qwen3_pydocs
from steerling_jax.train.run.run_config import DataConfig, RunConfig

VOCABULARY = 512


def config() -> RunConfig:
    run = qwen3_pydocs.config()
    return dataclasses.replace(
        run,
        name="rollouts_model",
        model=qwen3_pydocs.small_qwen3(VOCABULARY, width=128, mlp_width=256, layers=2, context=2048),
        data=DataConfig(
            vocab_size=VOCABULARY,
            seq_len=128,
            batch_size=8,
            sources={"reference": 1.0, "docstring": 0.0, "code": 0.0},
        ),
        optimizer=dataclasses.replace(run.optimizer, warmup_steps=30),
        steps=400,
        eval_every=400,
        checkpoint_every=50,
    )
