"""Methods that integrated gradients are compared with: leave-one-out, and two controls that run no layer.

Gradient × input, the gradient at the snapshot times the difference to the mask embedding, is integrated gradients with
one right-Riemann node and is computed there.

Legend: n explained targets, T canvas positions, B rows, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.explain.inputs.snapshots import SnapshotPasses
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import embed_tokens
from steerling_jax.models.steerling.config import ModelConfig


def leave_one_out(passes: SnapshotPasses, number: int, value: float) -> np.ndarray:
    """(T,): the target's `value` minus its value with each visible token replaced by the mask, one token at a time.

    The model is trained on canvases with masks at any position, so the changed canvas is an ordinary input to it. The
    injection of steered text stays at the positions where the snapshot had it.
    """
    attributions = np.zeros(len(passes.trace.tokens), np.float32)
    positions = visible_positions(passes, number)
    if len(positions):
        keep = np.ones((1, len(positions), len(attributions)), np.float32)
        keep[0, np.arange(len(positions)), positions] = 0.0
        attributions[positions] = value - passes.values(np.asarray([number]), keep)[0]
    return attributions


def recency(passes: SnapshotPasses, number: int) -> np.ndarray:
    """(T,): 1 / (1 + distance to the target's position) at each visible token: a control without the model."""
    attributions = np.zeros(len(passes.trace.tokens), np.float32)
    positions = visible_positions(passes, number)
    attributions[positions] = 1.0 / (1.0 + np.abs(positions - passes.cases[number].position))
    return attributions


def embedding_similarity(passes: SnapshotPasses, number: int) -> np.ndarray:
    """(T,): (embedding − mask embedding) · direction at each visible token, where the target reads along `direction`.

    The direction is the target's gradient at a hidden row of zeros; for the token's logit it is the token's row of
    lm_head. No layer runs, so this control measures which tokens are present without what attention does with them.
    """
    case, bundle = passes.cases[number], passes.bundle
    canvas = passes.snapshots[case.step]
    target = jax.tree.map(lambda leaf: np.asarray([leaf], np.int32), case.target)
    similarity = _similarity(
        bundle.params,
        canvas,
        np.int32(passes.trace.mask_id),
        np.asarray([case.token], np.int32),
        target,
        kind=type(case.target),
        config=bundle.config,
        compute=bundle.compute,
    )
    attributions = np.zeros(len(canvas), np.float32)
    positions = visible_positions(passes, number)
    attributions[positions] = np.asarray(similarity)[positions]
    return attributions


def visible_positions(passes: SnapshotPasses, number: int) -> np.ndarray:
    """Positions of the unmasked tokens that a target can attend to: in its attention block or an earlier one."""
    case, trace, config = passes.cases[number], passes.trace, passes.bundle.config
    if not isinstance(config, ModelConfig):
        return np.arange(case.position)
    block = config.diff_block_size
    unmasked = passes.snapshots[case.step][: (case.position // block + 1) * block] != trace.mask_id
    return np.flatnonzero(unmasked)


@partial(jax.jit, static_argnames=("kind", "config", "compute"))
def _similarity(
    params: Params,
    canvas: jax.Array,
    mask_id: jax.Array,
    token: jax.Array,
    target: Any,
    *,
    kind: type,
    config: ModelConfig,
    compute: Compute,
) -> jax.Array:
    """(T,) float32 for one target; the leaves of `target` and `token` have the shape (1,).

    kind: the target's class, see `snapshot_programs.summed_gradients`.
    """
    rows = jnp.zeros((1, config.n_embd))
    direction = jax.grad(lambda rows: target.value(params, rows, token, config, compute).sum())(rows)[0]
    base = embed_tokens(params, mask_id[None], compute).astype(jnp.float32)
    return (embed_tokens(params, canvas, compute).astype(jnp.float32) - base) @ direction
