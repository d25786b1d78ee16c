"""What happens to the model's distribution when visible tokens are masked or replaced: soft masks, other tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.attribution.faithfulness.figures import estimate
from steerling_jax.bundle import Bundle
from steerling_jax.decoding.generation import Generation
from steerling_jax.decoding.trace import Trace
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import lm_logits, logit_features
from steerling_jax.models.steerling.model import compiled_hidden

RANDOM = "random order"
SOFT_DRAWS = 8
LEAST_DISTANCE = 0.05  # Hellinger, between all inputs and none: below, there is nothing to explain
_ROWS = 64


def snapshot(trace: Trace, order: int) -> np.ndarray:
    """The canvas in which the token that came `order`-th was written."""
    return trace.snapshot(trace.commits[order].step)


def visible(trace: Trace, order: int, position: int, block: int) -> np.ndarray:
    """Positions that hold a token and that the target may see."""
    canvas = snapshot(trace, order)[: (position // block + 1) * block]
    return np.flatnonzero(canvas != trace.mask_id)


def soft(
    bundle: Bundle,
    trace: Trace,
    order: int,
    position: int,
    seen: np.ndarray,
    scores: dict[str, np.ndarray],
    draw: np.random.Generator,
) -> dict[str, float]:
    """π-soft normalised sufficiency and comprehensiveness by method; the same draws for all of them."""
    canvas = snapshot(trace, order)
    uniform = draw.random((SOFT_DRAWS, len(seen)))
    ranked = {name: ranks(score[seen]) for name, score in scores.items()} | {RANDOM: draw.random(len(seen))}
    kept = [np.ones((1, len(seen)), bool), np.zeros((1, len(seen)), bool)]
    for rank in ranked.values():
        kept += [uniform < rank[None, :], uniform < 1 - rank[None, :]]
    canvases = np.tile(canvas, (sum(map(len, kept)), 1))
    canvases[:, seen] = np.where(np.concatenate(kept), canvas[seen], trace.mask_id)
    p = np.exp(log_probabilities(bundle, canvases, np.full(len(canvases), position)))
    distance = np.sqrt(np.maximum(1 - np.sqrt(p * p[:1]).sum(axis=1), 0))
    if distance[1] < LEAST_DISTANCE:
        return {}
    found: dict[str, float] = {}
    for number, name in enumerate(ranked):
        start = 2 + 2 * SOFT_DRAWS * number
        kept_some, lost_some = distance[start : start + 2 * SOFT_DRAWS].reshape(2, SOFT_DRAWS).mean(axis=1)
        found[f"π-soft NS/{name}"] = float(max(distance[1] - kept_some, 0.0) / distance[1])
        found[f"π-soft NC/{name}"] = float(lost_some / distance[1])
    return found


def ranks(score: np.ndarray) -> np.ndarray:
    """Of scores (m,), in (0, 1), the largest last."""
    rank = np.empty(len(score))
    rank[np.argsort(score, kind="stable")] = np.arange(len(score))
    return (rank + 0.5) / len(score)


def log_probabilities(bundle: Bundle, canvases: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Of every token at a position of each canvas: canvases (R, T), positions (R,) to (R, V) float32."""
    parts = []
    for first in range(0, len(canvases), _ROWS):
        rows = np.minimum(np.arange(first, first + _ROWS), len(canvases) - 1)
        parts.append(
            np.asarray(
                _at(bundle.params, canvases[rows], positions[rows], config=bundle.config, compute=bundle.compute)
            )
        )
    return np.concatenate(parts)[: len(canvases)]


@partial(jax.jit, static_argnames=("config", "compute"))
def _at(
    params: Params, canvases: jax.Array, positions: jax.Array, *, config: ModelConfig, compute: Compute
) -> jax.Array:
    hidden = compiled_hidden(params, canvases, config=config, compute=compute)
    rows = logit_features(params, hidden[jnp.arange(len(positions)), positions], config, compute)
    return jax.nn.log_softmax(lm_logits(params, rows, compute), axis=-1)


def later_blocks(
    bundle: Bundle, made: Sequence[Generation], draw: np.random.Generator, key: jax.Array
) -> list[dict[str, Any]]:
    """The largest change of any log-probability at the first written token, on the whole canvas, when all that comes
    after its attention block becomes other tokens; beside it, what earlier ones do."""
    block, config = bundle.config.diff_block_size, bundle.config
    ordinary = np.setdiff1d(np.arange(config.vocab_size), list(bundle.tokenizer.special.names()))
    changes: dict[str, list[float]] = {"later attention blocks": [], "the prompt": []}
    for one in made:
        trace = one.trace
        position = trace.commits[0].positions[0]
        canvas = snapshot(trace, 0)
        canvases = np.stack([canvas] * 3)
        end = (position // block + 1) * block
        if end >= len(canvas):
            continue  # no later block
        canvases[1, end:] = draw.choice(ordinary, len(canvas) - end)
        canvases[2, : trace.prompt_length] = draw.choice(ordinary, trace.prompt_length)
        log_p = log_probabilities(bundle, canvases, np.full(3, position))
        for name, row in zip(changes, log_p[1:]):
            changes[name].append(float(np.abs(row - log_p[0]).max()))
    return [estimate("largest change of a log-probability by other tokens in", k, v, key) for k, v in changes.items()]
