"""Hidden states of noisy tokens, with clean or noisy earlier blocks as context."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import Injection, Params, embed_tokens, run_backbone
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.two_copy_attention import attend_two_copies


def denoise(
    params: Params,
    clean: jax.Array,
    noisy: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
    clean_context: bool,
    injection: Injection | None = None,
) -> jax.Array:
    """Hidden states (B, T, D) of the noisy tokens (B, T), which `injection` steers.

    With `clean_context` a noisy block attends to itself and to the clean earlier blocks. Both copies go through the
    layers
    together: the clean one is what inference has in its cache.
    """
    if not clean_context:
        embeds = embed_tokens(params, noisy, compute)
        return run_backbone(params, embeds, config=config, compute=compute, injection=injection)[0]
    if injection is not None:
        unsteered = jnp.zeros_like(injection.direction)
        injection = dataclasses.replace(injection, direction=jnp.concatenate([unsteered, injection.direction], axis=1))
    T = noisy.shape[1]
    both = jnp.concatenate([clean, noisy], axis=1)
    positions = jnp.tile(jnp.arange(T), 2)
    attend = attend_two_copies
    if compute.attention == "splash":
        from steerling_jax.models.splash_attention import attend_two_copies as attend  # Pallas is slow to import
    hidden, _ = run_backbone(
        params,
        embed_tokens(params, both, compute),
        config=config,
        compute=compute,
        positions=positions,
        mask=partial(attend, block=config.diff_block_size),
        injection=injection,
    )
    return hidden[:, T:]
