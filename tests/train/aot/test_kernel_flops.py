"""FLOPs of attention kernels, which the compiler does not report."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.models.attention import block_causal_mask
from steerling_jax.models.steerling.flops import block_causal_pairs
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.train.aot.program import Program
from steerling_jax.train.aot.program_flops import kernel_flops, own_flops, tiled_pairs
from steerling_jax.train.run.config_files import load_config
from tests.worlds.attention_masks import two_copy_mask


@pytest.mark.parametrize(("T", "block", "tile"), [(512, 64, 512), (512, 512, 512), (192, 24, 128), (384, 128, 256)])
def test_kernels_compute_the_tiles_in_which_any_query_sees_a_key(T: int, block: int, tile: int) -> None:
    at = jnp.arange(2 * T)
    for two_copies, seen in ((True, two_copy_mask(T, block)), (False, block_causal_mask(at, at, block))):
        tiles = np.asarray(seen).reshape(2 * T // tile, tile, 2 * T // tile, tile).any((1, 3))
        assert tiled_pairs(T if two_copies else 2 * T, block, two_copies) == tile**2 * tiles.sum()


def test_kernel_flops_of_two_copies() -> None:
    """With n tiles per side, each copy sees n (n + 1) / 2 tiles of the clean copy, and the noisy one n of itself."""
    run = load_config("steerling_8b")
    assert (run.data.seq_len, run.compute.remat) == (4096, True)
    run = dataclasses.replace(run, objective=ObjectiveConfig(noise=NoiseConfig(clean_context=True)))
    program = Program("train", run)
    own, pairs = own_flops(program), 2 * block_causal_pairs(4096, run.model.diff_block_size)
    products = (2 + 2 + 4 + 3) / 2
    expected = own.attention / 3 * products * (8 * 9 + 8) * 512**2 / pairs
    np.testing.assert_allclose(kernel_flops(program, own), expected)
