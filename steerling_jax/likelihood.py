"""A bound on the likelihood of a text that a masked model can give: the average over random maskings.

Mask m of a continuation's n tokens at random, score those m, divide by m / n: the expectation over m uniform in 1 … n
is a bound on −log p(continuation | context). Source: the published package's evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.backbone import Params, embed_tokens, run_backbone
from steerling_jax.config import Compute, ModelConfig
from steerling_jax.errors import UserError
from steerling_jax.inference import check_token_ids, logit_features
from steerling_jax.layers import block_causal_mask
from steerling_jax.model import lm_logits

if TYPE_CHECKING:
    from steerling_jax.api import Bundle


def log_likelihood(
    bundle: Bundle,
    context: str | Sequence[int],
    continuation: str | Sequence[int],
    samples: int = 128,
    seed: int = 0,
    batch_size: int = 16,
) -> float:
    """The bound on log p(continuation | context) in nats, for the whole continuation; 0.0 for an empty one.

    samples: maskings drawn; seed: of the draw, which does not depend on `batch_size`. Mask ids within the context are
    read, not scored. Raises `UserError` for bad values and for texts longer than the model's context.
    """
    for name, value in (("samples", samples), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}, but it must be at least 1.")
    before, after = _split(bundle, context, continuation)
    if not after:
        return 0.0
    tokens = check_token_ids(before + after, bundle.config, "context and continuation")[0]
    masks = draw_masks(len(after), samples, seed)
    block = bundle.config.diff_block_size
    padded = min(-(-len(tokens) // block) * block, bundle.config.block_size)  # one program serves many lengths
    canvas = np.pad(tokens, (0, padded - len(tokens)))
    total = 0.0
    for first in range(0, samples, batch_size):
        rows = masks[first : first + batch_size]
        chosen = np.zeros((batch_size, padded), bool)
        chosen[: len(rows), len(before) : len(tokens)] = rows
        losses = _masked_loss(bundle.params, canvas, len(tokens), chosen, bundle.config, bundle.compute)
        total += float((np.asarray(losses[: len(rows)], np.float64) * len(after) / rows.sum(axis=1)).sum())
    return -total / samples


def draw_masks(length: int, samples: int, seed: int) -> np.ndarray:
    """Which of `length` tokens each sample masks, (samples, length) bool.

    Counts are spread evenly over 1 … length from a random start, so that each is uniform while their average hardly
    varies; which tokens is a random order for each sample.
    """
    start_key, order_key = jax.random.split(jax.random.key(seed))
    start = int(jax.random.randint(start_key, (), 0, length))
    counts = (start + np.arange(samples) * length // samples) % length + 1
    order = np.asarray(jax.random.uniform(order_key, (samples, length))).argsort(axis=1)
    return order < counts[:, None]


def _split(bundle: Bundle, context: str | Sequence[int], continuation: str | Sequence[int]) -> tuple[list, list]:
    """Ids of both. Texts are encoded together, spaces at the seam going to the continuation (published)."""
    if not isinstance(context, str) or not isinstance(continuation, str):
        ids = [bundle.tokenizer.encode(part) if isinstance(part, str) else part for part in (context, continuation)]
        return [int(i) for i in ids[0]], [int(i) for i in ids[1]]
    stem = context.rstrip()
    continuation, context = context[len(stem) :] + continuation, stem
    before = list(bundle.tokenizer.encode(context)) if context else []
    return before, list(bundle.tokenizer.encode(context + continuation))[len(before) :]


@partial(jax.jit, static_argnums=(4, 5))
def _masked_loss(
    params: Params, canvas: jax.Array, length: jax.Array, chosen: jax.Array, config: ModelConfig, compute: Compute
) -> jax.Array:
    """Cross-entropies (B,) summed over the chosen, masked positions (B, T) of a canvas (T,) of `length` tokens."""
    at = jnp.arange(canvas.shape[0])
    tokens = jnp.where(chosen, config.mask_token_id, canvas[None, :])
    mask = block_causal_mask(at, at, config.diff_block_size) & (at < length)[None, :]  # padding is not there
    hidden, _ = run_backbone(params, embed_tokens(params, tokens, compute), config=config, compute=compute, mask=mask)

    def row(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:  # one at a time: logits are (T, V)
        rows, scored = inputs
        logits = lm_logits(params, logit_features(params, rows, config, compute), compute)
        log_p = jax.nn.log_softmax(logits, axis=-1)[at, canvas]
        return -jnp.sum(jnp.where(scored, log_p, 0.0))

    return jax.lax.map(row, (hidden, chosen))
