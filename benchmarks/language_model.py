"""A small Qwen3 of help pages in four languages, for `language_tuning.py`.

steerling prepare --out OUT/corpus --input OUT/texts/pages --vocab-size 6144 --concepts
steerling train --config benchmarks/language_model.py --corpus OUT/corpus --out OUT/model
"""

from steerling_jax.configs.qwen3_pydocs import small_qwen3
from steerling_jax.models.compute import Compute
from steerling_jax.objectives.next_token import NextTokenObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.train.run.run_config import DataConfig, RunConfig

VOCABULARY, STEPS = 6144, 500


def config() -> RunConfig:
    return RunConfig(
        name="language_model",
        model=small_qwen3(VOCABULARY, width=192, mlp_width=512, layers=4, context=512),
        compute=Compute(matmul_dtype="bfloat16"),
        objective=NextTokenObjective(masked=0.0),
        optimizer=OptimizerConfig(kind="muon", peak_rate=8e-3, warmup_steps=50, b2=0.99),
        data=DataConfig(vocab_size=VOCABULARY, seq_len=192, batch_size=10),
        steps=STEPS,
        log_every=25,
        eval_every=STEPS,
        checkpoint_every=50,
    )
