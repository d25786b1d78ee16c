"""A small Qwen3 that predicts the next token of the documentation that comes with every Python interpreter.

Command   steerling train --config qwen3_pydocs
Hardware  two CPU cores
Time      of the first 601 steps (1.2 M tokens), 5 processor minutes
Result    1.56 bits a byte on held-out documents after 601 steps; see docs/results/open-models.md

It has about as many parameters as the bundled model, and its vocabulary and corpus. The finished model in
runs/qwen3_pydocs/export is a Hugging Face folder; `steerling evaluate runs/qwen3_pydocs` gives its bits a byte.
"""

from steerling_jax.configs import pydocs
from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.published_config import decoder_config
from steerling_jax.objectives.next_token import NextTokenObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.tokenizer import SpecialIds
from steerling_jax.train.run.run_config import DataConfig, RunConfig


def config() -> RunConfig:
    special = SpecialIds.last_of(pydocs.VOCABULARY)
    model = decoder_config(
        {
            "model_type": "qwen3",
            "vocab_size": pydocs.VOCABULARY,
            "hidden_size": pydocs.WIDTH,
            "intermediate_size": 640,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": 2048,  # trained on sequences of 256
            "rope_theta": 10_000.0,
            "tie_word_embeddings": True,
            "bos_token_id": special.bos_id,
            "eos_token_id": special.eos_id,
            "pad_token_id": special.pad_id,
        }
    )
    return RunConfig(
        name="qwen3_pydocs",
        model=model,
        compute=Compute(matmul_dtype="bfloat16"),
        objective=NextTokenObjective(masked=0.0),
        optimizer=OptimizerConfig(kind="muon", peak_rate=8e-3, warmup_steps=100, b2=0.99),
        data=DataConfig(vocab_size=pydocs.VOCABULARY, seq_len=256, batch_size=8),
        steps=2000,
        log_every=25,
        eval_every=1000,
        checkpoint_every=500,
    )
