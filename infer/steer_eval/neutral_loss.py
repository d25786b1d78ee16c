"""The loss of neutral texts under layer edits: what steering costs where it is not wanted.

Legend: T tokens of a text.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.inference import forward
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.plan import SteeringPlan

_LENGTH = 64  # tokens of a text
_MASKED = 0.3  # share of the tokens that a diffusion model predicts


def neutral_loss(
    bundle: Bundle,
    texts: Sequence[str],
    edits: Sequence[LayerEdit],
    seed: int,
    plan: SteeringPlan | None = None,
) -> float:
    """The mean loss in nats of the tokens of texts, of the first 64 of each.

    An autoregressive model predicts each token from those before it. A diffusion model predicts a random 30 % of them,
    the same for equal seeds, from the others. plan: steering by concepts, of a diffusion model, as at the beginning of
    a text; it acts where generation applies it, at masked positions.
    """
    total, count = 0.0, 0
    rng = np.random.default_rng(seed)
    diffusion = isinstance(bundle.config, ModelConfig)
    for text in texts:
        ids = np.asarray([*bundle.tokenizer.prefix, *bundle.tokenizer.encode(text)][:_LENGTH], np.int32)
        masked = rng.random(len(ids)) < _MASKED if diffusion else np.arange(len(ids)) > 0
        if not masked.any():
            continue
        mask_id = bundle.config.mask_token_id if diffusion else 0
        tokens = np.where(masked, mask_id, ids) if diffusion else ids
        # One length, so that all texts share a program. A diffusion model sees masks after the text, as on a canvas; an
        # autoregressive one does not see what follows.
        padded = np.pad(tokens, (0, _LENGTH - len(ids)), constant_values=mask_id)
        changes = (*edits, *_planned(plan, padded == mask_id, bundle))
        logits = forward(bundle, padded, edits=changes).logits[0, : len(ids)].astype(jnp.float32)
        at = np.flatnonzero(masked)
        logits = logits[at if diffusion else at - 1] - (0.0 if plan is None else plan.suppression[None])
        rows = jax.nn.log_softmax(logits, axis=-1)
        total -= float(rows[np.arange(len(at)), ids[at]].sum())
        count += len(at)
    return total / max(1, count)


def _planned(plan: SteeringPlan | None, masks: np.ndarray, bundle: Bundle) -> tuple[LayerEdit, ...]:
    """The injections of a plan into a text whose masked positions are masks (T,) bool."""
    if plan is None:
        return ()
    table = jnp.asarray(plan.tables(0, bundle.backbone.n_layers)[0])
    return (LayerEdit(push=table[:, None, None, :], where=jnp.asarray(masks)[None]),)
