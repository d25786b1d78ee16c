"""Hidden states of noisy tokens, with clean or noisy earlier blocks as context."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from steerling_jax.models.backbone import Params, PassResult
from steerling_jax.models.compute import Compute
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.steerling.backbone import embed_tokens, run_backbone
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
    edits: Sequence[LayerEdit] = (),
) -> jax.Array:
    """Hidden states (B, T, D) of the noisy tokens (B, T), with `edits` at their positions.

    With `clean_context` a noisy block attends to itself and to the clean earlier blocks, as in decoding, where earlier
    blocks are finished. Both copies go through the layers in one pass of 2T positions, the clean one first; it is never
    edited, since decoding computes the keys and values of finished blocks without injections at masks.
    """
    run = denoise_pass(params, clean, noisy, config=config, compute=compute, clean_context=clean_context, edits=edits)
    return run.hidden


def denoise_pass(
    params: Params,
    clean: jax.Array,
    noisy: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
    clean_context: bool,
    edits: Sequence[LayerEdit] = (),
    capture: tuple[int, ...] = (),
) -> PassResult:
    """The pass of `denoise`: its hidden states, and the outputs (B, T, D) of the blocks in `capture`, counted from 0,
    at the noisy tokens."""
    if not clean_context:
        embeds = embed_tokens(params, noisy, compute)
        return run_backbone(params, embeds, config=config, compute=compute, edits=edits, capture=capture)
    B, T = noisy.shape
    attend = attend_two_copies
    if compute.attention == "splash":
        from steerling_jax.models.splash_attention import attend_two_copies as attend  # Pallas is slow to import
    result = run_backbone(
        params,
        embed_tokens(params, jnp.concatenate([clean, noisy], axis=1), compute),
        config=config,
        compute=compute,
        positions=jnp.tile(jnp.arange(T), 2),
        attention=partial(attend, block=config.diff_block_size),
        edits=[_on_second_copy(edit, B, T) for edit in edits],
        capture=capture,
    )
    return PassResult(result.hidden[:, T:], None, {layer: x[:, T:] for layer, x in result.captured.items()})


def _on_second_copy(edit: LayerEdit, rows: int, length: int) -> LayerEdit:
    """An edit of T positions as one of 2T, which leaves the first T alone."""
    where = jnp.ones((rows, length), bool) if edit.where is None else edit.where
    where = jnp.concatenate([jnp.zeros_like(where), where], axis=1)
    push = edit.push
    if push is not None and push.shape[2] > 1:
        push = jnp.concatenate([jnp.zeros_like(push), push], axis=2)
    return dataclasses.replace(edit, push=push, where=where)
