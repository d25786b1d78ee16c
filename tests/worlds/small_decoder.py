"""A decoder and a run of it that are small enough to be trained in a quick test, in the corpus of `training_world`."""

from __future__ import annotations

from typing import Any

from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.decoder.published_config import decoder_config
from steerling_jax.objectives.next_token import NextTokenObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.tokenizer import SpecialIds
from steerling_jax.train.run.run_config import DataConfig, RunConfig

VOCABULARY = 64
SPECIAL = SpecialIds.last_of(VOCABULARY)


def small_config(**fields: Any) -> DecoderConfig:
    """A Qwen3 of two layers. fields: of its config.json, in place of these."""
    return decoder_config(
        {
            "model_type": "qwen3",
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
            "bos_token_id": SPECIAL.bos_id,
            "eos_token_id": SPECIAL.eos_id,
            "pad_token_id": SPECIAL.pad_id,
            **fields,
        }
    )


def small_run(model: DecoderConfig | None = None, **fields: Any) -> RunConfig:
    """A run of four steps. fields: of `RunConfig`, in place of these."""
    values: dict[str, Any] = dict(
        name="small_decoder",
        model=model or small_config(),
        objective=NextTokenObjective(masked=0.0),
        optimizer=OptimizerConfig(peak_rate=1e-2, warmup_steps=1),
        data=DataConfig(vocab_size=VOCABULARY, seq_len=32, batch_size=4),
        steps=4,
        checkpoint_every=2,
        log_every=1,
        eval_every=4,
    )
    return RunConfig(**values | fields)
