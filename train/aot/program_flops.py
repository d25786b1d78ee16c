"""FLOPs of a program that the compiler does not report: what the mathematics needs, and what attention kernels do."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from steerling_jax.models.decoder.flops import pass_flops
from steerling_jax.models.steerling import flops as model_flops
from steerling_jax.models.steerling.flops import Flops
from steerling_jax.train.aot.decoder_program import DecoderProgram
from steerling_jax.train.aot.program import Program
from steerling_jax.train.run.clock import step_flops

_TILE = 512  # positions, of models/splash_attention.py


def own_flops(program: Program | DecoderProgram) -> Flops:
    """FLOPs that the mathematics of one run of the program needs, on all devices together; without an autoencoder,
    unless that is trained."""
    if isinstance(program, DecoderProgram) and program.mode == "autoencoder":
        forward = pass_flops(program.config, rows=program.sequences, length=program.seq_len, logits=0)
        return dataclasses.replace(forward, discovered=_autoencoder_flops(program))
    if isinstance(program, DecoderProgram):
        length, cached = (program.seq_len, 0) if program.mode == "forward" else (1, program.seq_len - 1)
        return pass_flops(program.config, rows=program.sequences, length=length, cached=cached)
    model = program.run.model
    if program.mode == "train":
        return step_flops(program.run)
    if program.mode == "decode":
        return model_flops.decoding_flops(
            model, batch_size=program.rows, cached=model.block_size, candidates=model.diff_block_size
        )
    # The target is the logit of one token: a dot product with a row of the output projection, which is left out.
    return model_flops.forward_flops(
        model, batch_size=program.rows, seq_len=program.seq_len, rows=0, heads=False, gradient="inputs"
    )


def _autoencoder_flops(program: DecoderProgram) -> float:
    """FLOPs of an update without dead latents: all pre-activations, then decoding and three gradients by k latents."""
    recipe, width = program.recipe, program.config.width
    return 2.0 * recipe.batch_rows * width * (recipe.n_latents + 4 * recipe.k)


def kernel_flops(program: Program | DecoderProgram, own: Flops) -> float:
    """FLOPs of the splash attention kernels, whose content the compiler does not see; `own` are those of the program.

    For each pair of positions a kernel computes two products in the forward pass (again in the backward pass where
    layers are recomputed), four for the gradient of keys and values, and three for the gradient of queries. It computes
    whole tiles of pairs, and skips tiles in which no query sees a key.
    """
    if isinstance(program, DecoderProgram):
        return 0.0
    run = program.run
    if run.compute.attention != "splash" or program.mode == "decode":
        return 0.0
    T, block = run.data.seq_len, run.model.diff_block_size
    recomputed = run.compute.remat or program.mode == "attribute"
    two_copies = program.mode == "train" and run.objective.noise.clean_context
    pairs = (1 + two_copies) * model_flops.block_causal_pairs(T, block)
    forward = own.attention / 3  # the backward pass is counted as twice the forward pass
    products = 2 + 2 * recomputed + 4 + 3
    return forward * tiled_pairs(T, block, two_copies) / pairs * products / 2


def tiled_pairs(T: int, block: int, two_copies: bool) -> int:
    """Pairs of positions in the tiles in which any query sees any key, under the block-causal mask.

    two_copies: the mask of a clean and a noisy copy, one after the other: a clean block sees the clean copy up to its
    own end, a noisy block sees the clean copy up to its start, and itself.
    """
    length = 2 * T if two_copies else T
    tile = math.gcd(length, _TILE)
    computed = np.zeros((length // tile, length // tile), np.bool_)
    for start in range(0, T, block):
        end = min(start + block, T)
        clean = _tiles(start, end, tile)
        computed[clean, : clean.stop] = True
        if two_copies:
            noisy = _tiles(T + start, T + end, tile)
            computed[noisy, _tiles(0, start, tile)] = computed[noisy, noisy] = True
    return tile**2 * int(computed.sum())


def _tiles(start: int, end: int, tile: int) -> slice:
    """The tiles that hold any of the positions [start, end)."""
    return slice(start // tile, -(-end // tile))
