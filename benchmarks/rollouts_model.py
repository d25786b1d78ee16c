"""The model of the measurement of steered rollouts: a Qwen3 of two layers of width 128 on Python's language reference.

    steerling train --config benchmarks/rollouts_model.py --out runs/small

It is small, because every step of reinforcement learning writes texts with it, and so is its vocabulary.
"""

from __future__ import annotations

import dataclasses

from steerling_jax.configs import qwen3_pydocs
from steerling_jax.models.decoder.config_json import decoder_config_to_dict
from steerling_jax.models.decoder.published_config import decoder_config
from steerling_jax.tokenizer import SpecialIds
from steerling_jax.train.run.run_config import DataConfig, RunConfig

VOCABULARY = 512


def config() -> RunConfig:
    run, special = qwen3_pydocs.config(), SpecialIds.last_of(VOCABULARY)
    fields = {name: value for name, value in decoder_config_to_dict(run.model).items() if name != "layer_types"}
    fields |= {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "bos_token_id": special.bos_id,
        "eos_token_id": special.eos_id,
        "pad_token_id": special.pad_id,
    }
    return dataclasses.replace(
        run,
        name="rollouts_model",
        model=decoder_config(fields),
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
