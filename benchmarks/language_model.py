"""A small Qwen3 of help pages in four languages, for `language_tuning.py`.

steerling prepare --out OUT/corpus --input OUT/texts/pages --vocab-size 6144 --concepts
steerling train --config benchmarks/language_model.py --corpus OUT/corpus --out OUT/model
"""

from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.published_config import decoder_config
from steerling_jax.objectives.next_token import NextTokenObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.tokenizer import SpecialIds
from steerling_jax.train.run.run_config import DataConfig, RunConfig

VOCABULARY, STEPS = 6144, 500


def config() -> RunConfig:
    special = SpecialIds.last_of(VOCABULARY)
    model = decoder_config(
        {
            "model_type": "qwen3",
            "vocab_size": VOCABULARY,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 48,
            "max_position_embeddings": 512,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": True,
            "bos_token_id": special.bos_id,
            "eos_token_id": special.eos_id,
            "pad_token_id": special.pad_id,
        }
    )
    return RunConfig(
        name="language_model",
        model=model,
        compute=Compute(matmul_dtype="bfloat16"),
        objective=NextTokenObjective(masked=0.0),
        optimizer=OptimizerConfig(kind="muon", peak_rate=8e-3, warmup_steps=50, b2=0.99),
        data=DataConfig(vocab_size=VOCABULARY, seq_len=192, batch_size=10),
        steps=STEPS,
        log_every=25,
        eval_every=STEPS,
        checkpoint_every=50,
    )
