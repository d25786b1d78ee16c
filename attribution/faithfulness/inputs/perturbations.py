"""Changes of the model's output distribution when visible tokens are masked at random or replaced."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from steerling_jax.attribution.faithfulness.figures import mean_figure
from steerling_jax.bundle import Bundle
from steerling_jax.decoding.generation import Generation
from steerling_jax.decoding.trace import Trace
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import lm_logits
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import logit_features
from steerling_jax.models.steerling.model import compiled_hidden

RANDOM = "random order"
SOFT_DRAWS = 8
# Hellinger distance between the distributions with all inputs and with none. Where it is smaller, the inputs hardly
# matter and shares of the distance would be noise.
MIN_DISTANCE = 0.05
_BATCH_SIZE = 64


def snapshot(trace: Trace, order: int) -> np.ndarray:
    """The canvas in which the `order`-th committed token was chosen."""
    return trace.snapshot(trace.commits[order].step)


def visible(trace: Trace, order: int, position: int, block: int) -> np.ndarray:
    """Positions of tokens (not masks) that the model sees at `position`: in its diffusion block and before it."""
    canvas = snapshot(trace, order)[: (position // block + 1) * block]
    return np.flatnonzero(canvas != trace.mask_id)


def soft_perturbation(
    bundle: Bundle,
    canvas: np.ndarray,
    position: int,
    seen: np.ndarray,
    scores: dict[str, np.ndarray],
    draw: np.random.Generator,
) -> dict[str, float]:
    """π-soft normalised sufficiency and comprehensiveness of each method at a position of a canvas (T,).

    Each visible token (`seen`) is present with the probability of its rank by a method's score, or, for
    comprehensiveness, with the complement. All methods use the same uniform draws, so that their differences are not
    differences of the draws. Empty if the inputs hardly change the distribution.
    """
    uniform = draw.random((SOFT_DRAWS, len(seen)))
    ranked = {name: ranks(score[seen]) for name, score in scores.items()} | {RANDOM: draw.random(len(seen))}
    # Row 0 has all inputs, row 1 none; then for each method the draws of sufficiency and of comprehensiveness.
    present = [np.ones((1, len(seen)), bool), np.zeros((1, len(seen)), bool)]
    for rank in ranked.values():
        present += [uniform < rank[None, :], uniform < 1 - rank[None, :]]
    canvases = np.tile(canvas, (sum(map(len, present)), 1))
    canvases[:, seen] = np.where(np.concatenate(present), canvas[seen], bundle.config.mask_token_id)
    p = np.exp(log_probabilities(bundle, canvases, np.full(len(canvases), position)))
    distance = np.sqrt(np.maximum(1 - np.sqrt(p * p[:1]).sum(axis=1), 0))
    if distance[1] < MIN_DISTANCE:
        return {}
    figures: dict[str, float] = {}
    for number, name in enumerate(ranked):
        start = 2 + 2 * SOFT_DRAWS * number
        sufficient, comprehensive = distance[start : start + 2 * SOFT_DRAWS].reshape(2, SOFT_DRAWS).mean(axis=1)
        figures[f"π-soft NS/{name}"] = float(max(distance[1] - sufficient, 0.0) / distance[1])
        figures[f"π-soft NC/{name}"] = float(comprehensive / distance[1])
    return figures


def ranks(score: np.ndarray) -> np.ndarray:
    """Ranks of scores (m,), evenly spaced in (0, 1), the largest score last; equal scores in order of position."""
    return (rankdata(score, method="ordinal") - 0.5) / len(score)


def log_probabilities(bundle: Bundle, canvases: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Log-probabilities (R, V) float32 of every token at positions (R,) of canvases (R, T)."""
    parts = []
    for first in range(0, len(canvases), _BATCH_SIZE):
        # The last batch repeats its last canvas, so that all batches have one shape and one compiled program.
        rows = np.minimum(np.arange(first, first + _BATCH_SIZE), len(canvases) - 1)
        parts.append(
            np.asarray(
                _log_softmax_at(
                    bundle.params, canvases[rows], positions[rows], config=bundle.config, compute=bundle.compute
                )
            )
        )
    return np.concatenate(parts)[: len(canvases)]


@partial(jax.jit, static_argnames=("config", "compute"))
def _log_softmax_at(
    params: Params, canvases: jax.Array, positions: jax.Array, *, config: ModelConfig, compute: Compute
) -> jax.Array:
    hidden = compiled_hidden(params, canvases, config=config, compute=compute)
    rows = logit_features(params, hidden[jnp.arange(len(positions)), positions], config, compute)
    return jax.nn.log_softmax(lm_logits(params, rows, compute), axis=-1)


def later_blocks(
    bundle: Bundle, generations: Sequence[Generation], draw: np.random.Generator, key: jax.Array
) -> list[dict[str, Any]]:
    """The largest change of a log-probability at the first committed token when other tokens are replaced.

    Tokens after the target's attention block must change nothing, because the model does not attend to them; tokens of
    the prompt, which it does attend to, are the comparison.
    """
    block, config = bundle.config.diff_block_size, bundle.config
    ordinary = np.setdiff1d(np.arange(config.vocab_size), list(bundle.tokenizer.special.names()))
    changes: dict[str, list[float]] = {"later attention blocks": [], "the prompt": []}
    for generation in generations:
        trace = generation.trace
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
    return [
        mean_figure("largest change of a log-probability by other tokens in", k, v, key) for k, v in changes.items()
    ]
