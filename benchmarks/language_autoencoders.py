"""Autoencoders of the last two layers of the model of `language_model.py`, on the same pages.

    steerling train --config benchmarks/language_autoencoders.py --start-from OUT/model/export --text OUT/texts/pages \
      --out OUT/sae
"""

from steerling_jax.autoencoders.training_step import AutoencoderRecipe
from steerling_jax.train.autoencoders.run_config import AutoencoderRun


def config() -> AutoencoderRun:
    return AutoencoderRun(
        name="language_autoencoders",
        model="model/export",
        layers=(2, 3),
        recipe=AutoencoderRecipe(
            n_latents=1536, k=24, steps=120, batch_rows=1024, learning_rate=1e-3, dead_after=100_000
        ),
        visits=2,
        windows=8,
        seq_len=128,
        max_tokens=75_000,
        held_out=4096,
        buffer_rows=16_384,
        checkpoint_every=60,
    )
