"""Rematerialisation and unrolled layers change no loss and no gradient, with either form of attention."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.models.steerling.model import init_params

CONFIG = ModelConfig(
    interpretable=False,
    n_layers=2,
    n_head=2,
    n_kv_heads=1,
    n_embd=16,
    block_size=16,
    diff_block_size=4,
    vocab_size=32,
    pad_token_id=27,
    bos_token_id=28,
    eos_token_id=29,
    endofchunk_token_id=30,
    mask_token_id=31,
    concept=None,
)


def test_remat_changes_nothing() -> None:
    """The attention of two copies is a function of arrays, which `remat` must accept as an argument."""
    params = init_params(CONFIG, jax.random.key(0))
    tokens = jnp.arange(16, dtype=jnp.int32)[None] % 27

    def gradients(remat: bool):
        def total(params) -> jax.Array:
            hidden = denoise(
                params,
                tokens,
                tokens.at[:, ::3].set(31),
                config=CONFIG,
                compute=Compute(remat=remat),
                clean_context=True,
            )
            return jnp.sum(jnp.square(hidden) * jnp.arange(16.0)[None, None])

        return jax.jit(jax.grad(total))(params)

    chex.assert_trees_all_close(gradients(True), gradients(False), rtol=1e-5, atol=1e-5)


def test_unrolling_changes_nothing() -> None:
    params = init_params(CONFIG, jax.random.key(0))
    tokens = jnp.arange(16, dtype=jnp.int32)[None] % 27

    def programs(unroll: bool):
        def total(params) -> jax.Array:
            compute = Compute(unroll=unroll)
            return jnp.sum(denoise(params, tokens, tokens, config=CONFIG, compute=compute, clean_context=True) ** 3)

        lowered = jax.jit(jax.value_and_grad(total)).lower(params)
        return lowered.compile()(params), lowered.as_text().count("stablehlo.while")

    (rolled, loops), (unrolled, none) = programs(False), programs(True)
    assert loops > 0
    assert none == 0
    chex.assert_trees_all_close(unrolled, rolled, rtol=1e-5, atol=1e-5)
