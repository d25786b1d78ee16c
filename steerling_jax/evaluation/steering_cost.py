"""What steering costs a text, expected over the next tokens: a measure with little noise, without generating.

At a masked position, let p be the model's distribution of the token and q the distribution under steering. A token
drawn from q costs Σ_v q(v) · −log p(v) nats under the unsteered model, one drawn from p costs p's entropy. The
difference, averaged over masked positions of held-out texts, is the expected cost of steering for one token. It does
not cover what follows from a token that steering chose; `steerling calibrate` corrects for that with generated texts.

Legend: R canvases, T positions, P scored positions of a canvas, S strengths, L layers, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.window import steering_edits
from steerling_jax.errors import require
from steerling_jax.evaluation.likelihood import draw_masks
from steerling_jax.models.backbone import Params
from steerling_jax.models.batching import padded_length, padding_mask, stack
from steerling_jax.models.compute import Compute
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.steerling.backbone import embed_tokens, lm_logits, run_backbone
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import logit_features
from steerling_jax.steering.plan import SteeringPlan

SCORED = 8  # positions of each canvas


@dataclass(frozen=True)
class CostCanvases:
    """Texts with masks. tokens (R, T) int32, masked; lengths (R,): where padding begins; scored (R, P): positions, all
    of them masked."""

    tokens: np.ndarray
    lengths: np.ndarray
    scored: np.ndarray


def cost_canvases(bundle: Bundle, texts: Sequence[tuple[Sequence[int], Sequence[int]]], seed: int = 0) -> CostCanvases:
    """Canvases of (prompt, continuation) pairs, with a random part of each continuation masked, of at least 8 tokens.

    All texts must have equally long continuations. The numbers of masked tokens are spread evenly over the texts.
    """
    lengths = {len(continuation) for _, continuation in texts}
    require(
        len(lengths) == 1 and min(lengths) >= SCORED, f"Continuations must be equally long, {SCORED} tokens or more."
    )
    (length,) = lengths
    padded = padded_length(max(len(prompt) + length for prompt, _ in texts), bundle.config)
    tokens, ends = stack([np.asarray([*prompt, *after], np.int32) for prompt, after in texts], len(texts), padded)
    masks = draw_masks(length, len(texts), seed)
    draw = np.random.default_rng(seed)
    scored = np.zeros((len(texts), SCORED), np.int32)
    for row, ((prompt, _), mask) in enumerate(zip(texts, masks, strict=True)):
        hidden = np.flatnonzero(mask)
        if len(hidden) < SCORED:  # the last tokens too, which nothing reads
            hidden = np.union1d(hidden, np.arange(length - SCORED, length))
        at = len(prompt) + hidden
        tokens[row, at] = bundle.config.mask_token_id
        scored[row] = np.sort(draw.permutation(at)[:SCORED])
    return CostCanvases(tokens, ends, scored)


def steering_costs(bundle: Bundle, canvases: CostCanvases, plan: SteeringPlan, scales: Sequence[float]) -> np.ndarray:
    """The expected cost (S,) in nats a token of the plan with everything that it adds multiplied by each of `scales`.

    The plan's injections are those at the beginning of a text, at masked positions. Raises `UserError` for a plan with
    clamps, which cannot be scaled.
    """
    require(plan.clamps is None, "A clamp has no strength that could be measured; leave it out.")
    at_masks, _ = plan.tables(0, bundle.config.n_layers)
    costs = _costs(
        bundle.params,
        canvases.tokens,
        canvases.lengths,
        canvases.scored,
        at_masks,
        plan.suppression,
        np.asarray(scales, np.float32),
        config=bundle.config,
        compute=bundle.compute,
    )
    return np.asarray(costs, np.float64)


@partial(jax.jit, static_argnames=("config", "compute"))
def _costs(
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    scored: jax.Array,
    at_masks: jax.Array,
    suppression: jax.Array,
    scales: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
) -> jax.Array:
    """Costs (S,) for scales (S,); at_masks (L, D), suppression (V,)."""
    mask = padding_mask(lengths, tokens.shape[1], config.diff_block_size)
    embeds = embed_tokens(params, tokens, compute)

    def log_probabilities(scale: jax.Array) -> jax.Array:
        """(R·P, V) at the scored positions."""
        edits: Sequence[LayerEdit] = steering_edits(
            tokens,
            jnp.zeros(tokens.shape, bool),
            config.mask_token_id,
            *(jnp.broadcast_to(scale * at_masks, (len(tokens), *at_masks.shape)),) * 2,
        )
        result: Any = run_backbone(params, embeds, config=config, compute=compute, attention=mask, edits=edits)
        rows = jnp.take_along_axis(result.hidden, scored[:, :, None], axis=1).reshape(-1, result.hidden.shape[-1])
        logits = lm_logits(params, logit_features(params, rows, config, compute), compute)
        return jax.nn.log_softmax(logits - scale * suppression[None, :], axis=-1)

    plain = log_probabilities(jnp.float32(0.0))

    def cost(scale: jax.Array) -> jax.Array:
        # Without the difference inside the sum, two numbers of about three nats would be subtracted.
        drawn = jnp.exp(log_probabilities(scale)) - jnp.exp(plain)
        return (drawn * -plain).sum(axis=-1).mean()

    return jax.lax.map(cost, scales)
