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

_LENGTH = 64  # tokens of a text
_MASKED = 0.3  # share of the tokens that a diffusion model predicts


def neutral_loss(bundle: Bundle, texts: Sequence[str], edits: Sequence[LayerEdit], seed: int) -> float:
    """The mean loss in nats of the tokens of texts, of the first 64 of each.

    An autoregressive model predicts each token from those before it. A diffusion model predicts a random 30 % of them,
    the same for equal seeds, from the others.
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
        logits = forward(bundle, padded, edits=edits).logits[0, : len(ids)]
        at = np.flatnonzero(masked)
        rows = jax.nn.log_softmax(jnp.asarray(logits)[at if diffusion else at - 1].astype(jnp.float32), axis=-1)
        total -= float(rows[np.arange(len(at)), ids[at]].sum())
        count += len(at)
    return total / max(1, count)
