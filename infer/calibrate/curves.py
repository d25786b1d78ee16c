"""The expected cost of steering by each concept at a few strengths, and the strength that has a given cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.concepts.concept import Head
from steerling_jax.errors import UserError
from steerling_jax.evaluation.steering_cost import CostCanvases, cost_canvases, steering_costs
from steerling_jax.explain.naming.appearing import fixed_texts
from steerling_jax.infer.steer_eval.prompts import WITHOUT_TOKENS, HeldOutChunks
from steerling_jax.infer.steer_eval.text_specs import AMPLIFY
from steerling_jax.steering.config import SteeringConfig
from steerling_jax.steering.plan import prepare_steering
from steerling_jax.steering.resolve import suppression

# Strengths at which costs are measured: in logits to amplify, a length to suppress.
GRID = {AMPLIFY: tuple(0.1 * 2.0**i for i in range(8)), "suppress": tuple(0.025 * 2.0**i for i in range(8))}
MIN_TEXTS = 4  # with a concept, for the cost of suppressing it to be measured on these alone
_SMALLEST = 1e-4  # nats; costs of weak steering are about 0 and may be below


def neutral_canvases(bundle: Bundle, held: HeldOutChunks, count: int, new_tokens: int, seed: int) -> CostCanvases:
    """Canvases of `count` held-out documents, the same for all concepts. Raises `UserError` where all are too short."""
    length = WITHOUT_TOKENS + new_tokens
    documents = fixed_texts(held.store, len(held.store.documents), seed)
    long_enough = [one for one in documents if one.end - one.start >= length][:count]
    texts = [held.store.tokens(one.start, one.start + length).tolist() for one in long_enough]
    if not texts:
        raise UserError(
            f"No held-out document of {held.store.folder} has {length} tokens, which a prompt and its text take; "
            "make a larger corpus."
        )
    return cost_canvases(bundle, [(text[:WITHOUT_TOKENS], text[WITHOUT_TOKENS:]) for text in texts], seed)


def canvases_with(
    bundle: Bundle, held: HeldOutChunks, concept: int, count: int, new_tokens: int, seed: int
) -> CostCanvases | None:
    """Canvases that begin in the middle of chunks with a known concept; None where there are fewer than 4."""
    openings = (one for one in held.having(concept, new_tokens, (seed, concept)) if len(one.continuation) == new_tokens)
    texts = [(one.ids, one.continuation) for one in islice(openings, count)]
    # Repeated, so that all concepts share one compiled program.
    return (
        cost_canvases(bundle, [texts[i % len(texts)] for i in range(count)], seed) if len(texts) >= MIN_TEXTS else None
    )


def cost_curve(bundle: Bundle, canvases: CostCanvases, action: str, head: Head, concept: int) -> list[float]:
    """The expected costs at the strengths of `GRID[action]`."""
    if action == AMPLIFY:
        steering = SteeringConfig((concept,), mai_lm_target=1.0, head=head)
    else:
        steering = suppression((concept,), (concept,), 1.0, head=head)
    plan = prepare_steering(bundle.params, steering, config=bundle.config, compute=bundle.compute)
    return steering_costs(bundle, canvases, plan, GRID[action]).tolist()


def strength_at(action: str, costs: Sequence[float], level: float) -> float:
    """The smallest strength whose expected cost is `level`, interpolated between those of the grid.

    At most the largest strength of the grid. Below the smallest, the cost is taken to grow with the square.
    """
    grid = np.log(GRID[action])
    # Noise can make a stronger steering look cheaper; past the first strength that costs too much, none is allowed.
    rising = np.log(np.maximum.accumulate(np.maximum(costs, _SMALLEST)))
    target = np.log(level)
    if target <= rising[0]:
        return float(np.exp(grid[0] - (rising[0] - target) / 2))
    above = np.flatnonzero(rising >= target)
    if not len(above):
        return float(np.exp(grid[-1]))
    i = above[0]
    share = (target - rising[i - 1]) / (rising[i] - rising[i - 1])
    return float(np.exp(grid[i - 1] + share * (grid[i] - grid[i - 1])))
