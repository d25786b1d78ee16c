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
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.decoder.published_config import decoder_config
from steerling_jax.objectives.next_token import NextTokenObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.tokenizer import SpecialIds
from steerling_jax.train.run.run_config import DataConfig, RunConfig


def small_qwen3(vocabulary: int, width: int, mlp_width: int, layers: int, context: int) -> DecoderConfig:
    """A Qwen3 with four heads, two of them for keys and values, and the special ids at the end of the vocabulary."""
    special = SpecialIds.last_of(vocabulary)
    return decoder_config(
        {
            "model_type": "qwen3",
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": mlp_width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": width // 4,
            "max_position_embeddings": context,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": True,
            "bos_token_id": special.bos_id,
            "eos_token_id": special.eos_id,
            "pad_token_id": special.pad_id,
        }
    )


def config() -> RunConfig:
    # The context is longer than the sequences of 256 that it is trained on.
    model = small_qwen3(pydocs.VOCABULARY, pydocs.WIDTH, mlp_width=640, layers=4, context=2048)
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
