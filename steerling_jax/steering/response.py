"""Steering towards a given response: the concepts active in it are injected at the prompt's positions.

Legend: T tokens of the response, C known concepts, K concepts that the head reports at a position.
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
_NAMED = 3  # concepts that the label names


def response_steering(
    bundle: Bundle,
    response: str | Sequence[int],
    strength: float = DEFAULT_STRENGTH,
    top: int = 8,
    layer: int | None = None,
) -> SteeringConfig:
    """Steers towards texts like `response`: its `top` most active known concepts, weighted by their activations, are
    injected as one direction at the prompt's positions, from `layer` on.

    strength: as `mai_lm_target`, normalised. layer: None for a quarter of the layers. That is earlier than the default
    of `SteeringConfig`, since only the attention of later layers reads what is added to the prompt. Raises `UserError`
    for invalid values, and where the model has no concepts.
    """
    concept = bundle.config.concept
    if concept is None:
        raise UserError("Response steering needs a model with known concepts; this one has none.")
    require(top >= 1, f"top is {top}, but it must be at least 1.", "top")
    activations = mean_activations(bundle, response)
    ids = np.argsort(-activations, kind="stable")[:top]
    # A response can have fewer than `top` active concepts; the others would only be noise in the direction.
    ids = ids[activations[ids] > 0]
    weights = tuple(activations[ids].tolist())
    names = [bundle.concepts.get(i).name for i in ids[:_NAMED].tolist()]
    label = f"like the response at {strength:g}: {', '.join(names)}{' …' if len(ids) > _NAMED else ''}"
    layer = max(bundle.config.n_layers // 4, 1) if layer is None else layer
    return SteeringConfig(
        tuple(ids.tolist()), strength, inject_layer=layer, weights=weights, where="prompt", label=label
    )


def mean_activations(bundle: Bundle, text: str | Sequence[int]) -> np.ndarray:
    """The mean activation of each known concept over a text's tokens, (C,) float32; concepts that the head does not
    report at a position count as 0 there.

    A concept head is trained at masked positions only, so its activations at unmasked positions mean little. Two passes
    therefore mask every second position each, with earlier diffusion blocks unmasked as in decoding: every token is
    read once where it is masked, and sees half of its own block's tokens.
    """
    config = bundle.config
    tokens = encode(bundle, text, "The response")
    T = len(tokens)
    padded = np.full(padded_length(T, config), config.mask_token_id, np.int32)
    padded[:T] = tokens
    assert config.concept is not None
    total = np.zeros(config.concept.n_concepts)
    for parity in range(2):
        masked = np.flatnonzero((np.arange(T) + parity) % 2 == 0)
        noisy = padded.copy()
        noisy[masked] = config.mask_token_id
        logits, ids = jax.device_get(
            _top_concepts(bundle.params, padded[None], noisy[None], config=config, compute=bundle.compute)
        )
        np.add.at(total, ids[masked], 1 / (1 + np.exp(-logits[masked].astype(np.float64))))
    return (total / T).astype(np.float32)


@partial(jax.jit, static_argnames=("config", "compute"))
def _top_concepts(
    params: Params, clean: jax.Array, noisy: jax.Array, *, config: ModelConfig, compute: Compute
) -> tuple[jax.Array, jax.Array]:
    """Logits and ids (T, K) of the reported known concepts, from clean and noisy tokens (1, T)."""
    hidden = denoise(params, clean, noisy, config=config, compute=compute, clean_context=True)
    known = run_known_head(params, hidden[0], config, compute)
    return known.topk_logits, known.topk_indices
