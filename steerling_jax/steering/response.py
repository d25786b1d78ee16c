"""Steering towards an answer: the concepts behind a given text, injected where the prompt stands.

Legend: T tokens of the text, K concepts reported a position, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from steerling_jax.bundle import Bundle, encode
from steerling_jax.errors import UserError, require
from steerling_jax.models.backbone import Params
from steerling_jax.models.batching import padded_length
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.denoise import denoise
from steerling_jax.models.steerling.heads import run_known_head
from steerling_jax.steering.config import SteeringConfig

DEFAULT_STRENGTH = 8.0
_NAMED = 3  # concepts named in the label


def response_steering(
    bundle: Bundle,
    response: str | Sequence[int],
    strength: float = DEFAULT_STRENGTH,
    top: int = 8,
    layer: int | None = None,
) -> SteeringConfig:
    """Steers towards texts like `response`: its `top` strongest known concepts, weighted by how active they are in it,
    as one direction at the prompt's positions, from `layer` on.

    strength: as `mai_lm_target`, normalised. layer: None for a quarter of the layers, earlier than where else is
    injected: what is added to the prompt is only read by the attention of later layers. Raises `UserError` for bad
    values, and where the model has no concepts.
    """
    concept = bundle.config.concept
    if concept is None:
        raise UserError("Response steering needs a model with known concepts; this one has none.")
    require(top >= 1, f"top is {top}, but it must be at least 1.")
    activations = mean_activations(bundle, response)
    ids = np.argsort(-activations, kind="stable")[:top]
    ids = ids[activations[ids] > 0]
    weights = tuple(activations[ids].tolist())
    names = [bundle.concepts.get(i).name for i in ids[:_NAMED].tolist()]
    label = f"like the response at {strength:g}: {', '.join(names)}{' …' if len(ids) > _NAMED else ''}"
    layer = max(bundle.config.n_layers // 4, 1) if layer is None else layer
    return SteeringConfig(
        tuple(ids.tolist()), strength, inject_layer=layer, weights=weights, where="prompt", label=label
    )


def mean_activations(bundle: Bundle, text: str | Sequence[int]) -> np.ndarray:
    """How active each known concept is in a text, (C,) float32: the mean over its tokens of the kept activations.

    A concept head is trained at masked positions only and says little at clean ones. So each token is read where it is
    masked, after clean earlier blocks, as while writing: once with every second position of a block masked, once with
    the others, so that half of the block's own words are seen.
    """
    config = bundle.config
    tokens = encode(bundle, text, "The response")
    T = len(tokens)
    padded = np.full(padded_length(T, config), config.mask_token_id, np.int32)
    padded[:T] = tokens
    assert config.concept is not None
    total = np.zeros(config.concept.n_concepts)
    for turn in range(2):
        read = np.flatnonzero((np.arange(T) + turn) % 2 == 0)
        noisy = padded.copy()
        noisy[read] = config.mask_token_id
        logits, ids = jax.device_get(
            _kept(bundle.params, padded[None], noisy[None], config=config, compute=bundle.compute)
        )
        np.add.at(total, ids[read], 1 / (1 + np.exp(-logits[read].astype(np.float64))))
    return (total / T).astype(np.float32)


@partial(jax.jit, static_argnames=("config", "compute"))
def _kept(
    params: Params, clean: jax.Array, noisy: jax.Array, *, config: ModelConfig, compute: Compute
) -> tuple[jax.Array, jax.Array]:
    """clean and noisy tokens (1, T) to the reported known concepts' logits and ids, (T, K)."""
    hidden = denoise(params, clean, noisy, config=config, compute=compute, clean_context=True)
    known = run_known_head(params, hidden[0], config, compute)
    return known.topk_logits, known.topk_indices
