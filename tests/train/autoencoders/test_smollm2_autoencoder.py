"""A short training of the autoencoder of SmolLM2's middle layer reaches the quality that the full one builds on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import steerling_jax as sj
from steerling_jax.configs import sae_smollm2
from steerling_jax.train.autoencoders.program import run_autoencoders
from tests.worlds.real_models import smollm2_file

TOKENS, HELD_OUT = 98_304, 4_096
VISITS = 2


@pytest.mark.slow
def test_unexplained_variance_after_100_thousand_tokens(tmp_path: Path):
    """The figures are of held-out text; docs/results/autoencoders.md has those of the whole run."""
    run = sae_smollm2.config()
    run = dataclasses.replace(
        run,
        model=str(smollm2_file()),
        recipe=dataclasses.replace(run.recipe, steps=VISITS * TOKENS // run.recipe.batch_rows),
        visits=VISITS,
        buffer_rows=TOKENS,
        max_tokens=TOKENS + HELD_OUT,
        held_out=HELD_OUT,
    )
    result, stopped = run_autoencoders(run, tmp_path, lambda: False, tables=False)
    assert not stopped
    figures = result["evaluation"]["layer15"]
    assert figures["unexplained"] <= 0.27
    assert figures["loss_recovered_against_zero"] >= 0.95
    autoencoder = sj.load_autoencoder(result["export"])
    assert (autoencoder.layer, autoencoder.k, autoencoder.n_latents) == (15, 50, 9216)
