"""What integrated gradients are compared with: leaving one token out, and controls that never look through attention.

(Gradient × input, the difference to the mask embedding times the gradient at the snapshot, is integrated gradients with
one right-Riemann node, and is found there.)

Legend: n explained targets, T canvas positions, B rows, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.explain.inputs.snapshots import SnapshotPasses
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import Params, embed_tokens
from steerling_jax.models.steerling.config import ModelConfig


def leave_one_out(passes: SnapshotPasses, number: int, whole: float) -> np.ndarray:
    """(T,): the target's value `whole` minus its value with each visible token replaced by the mask, one at a time.

    The model has learnt from canvases with masks anywhere, so this takes it nowhere strange. The injection of steered
    text stays where the snapshot had it.
    """
    found = np.zeros(len(passes.trace.tokens), np.float32)
    where = visible(passes, number)
    if len(where):
        keep = np.ones((1, len(where), len(found)), np.float32)
        keep[0, np.arange(len(where)), where] = 0.0
        found[where] = whole - passes.values(np.asarray([number]), keep)[0]
    return found


def recency(passes: SnapshotPasses, number: int) -> np.ndarray:
    """(T,): 1 / (1 + distance from the target's position) of each visible token: what a rule without a model gives."""
    found = np.zeros(len(passes.trace.tokens), np.float32)
    where = visible(passes, number)
    found[where] = 1.0 / (1.0 + np.abs(where - passes.cases[number].position))
    return found


def embedding_similarity(passes: SnapshotPasses, number: int) -> np.ndarray:
    """(T,): (embedding − mask embedding) · the direction that the target reads from a hidden row, of each visible
    token.

    The direction is the target's gradient at a row of zeros: lm_head's row of the written token for its logit. No layer
    runs, so the control knows which words are there and not what they do together.
    """
    case, bundle = passes.cases[number], passes.bundle
    canvas = passes.snapshots[case.step]
    target = jax.tree.map(lambda leaf: np.asarray([leaf], np.int32), case.target)
    along = _along(
        bundle.params,
        canvas,
        np.int32(passes.trace.mask_id),
        np.asarray([case.token], np.int32),
        target,
        config=bundle.config,
        compute=bundle.compute,
    )
    found = np.zeros(len(canvas), np.float32)
    where = visible(passes, number)
    found[where] = np.asarray(along)[where]
    return found


def visible(passes: SnapshotPasses, number: int) -> np.ndarray:
    """Positions of the tokens that a case's target sees: unmasked, in its attention block or an earlier one."""
    case, trace, block = passes.cases[number], passes.trace, passes.bundle.config.diff_block_size
    seen = passes.snapshots[case.step][: (case.position // block + 1) * block] != trace.mask_id
    return np.flatnonzero(seen)


@partial(jax.jit, static_argnames=("config", "compute"))
def _along(
    params: Params,
    canvas: jax.Array,
    mask_id: jax.Array,
    token: jax.Array,
    target: Any,
    *,
    config: ModelConfig,
    compute: Compute,
) -> jax.Array:
    """(T,) float32, for one target: leaves and token (1,)."""
    rows = jnp.zeros((1, config.n_embd))
    direction = jax.grad(lambda rows: target.value(params, rows, token, config, compute).sum())(rows)[0]
    base = embed_tokens(params, mask_id[None], compute).astype(jnp.float32)
    return (embed_tokens(params, canvas, compute).astype(jnp.float32) - base) @ direction
