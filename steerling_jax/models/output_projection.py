"""The last step of a model, from hidden states after the final norm to logits, in one form for all families.

Legend: V vocabulary, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from steerling_jax.models.backbone import Params
from steerling_jax.models.decoder.backbone import output_table
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.steerling.backbone import lm_head_weight
from steerling_jax.models.steerling.config import ModelConfig


class OutputProjection(NamedTuple):
    """Logits are `hidden · tableᵀ`, and with a cap `cap · tanh(logits / cap)`. table: (V, D). cap: None for none."""

    table: jax.Array
    cap: float | None


def output_projection(params: Params, config: ModelConfig | DecoderConfig) -> OutputProjection:
    """The output projection of a model's parameters."""
    if isinstance(config, DecoderConfig):
        return OutputProjection(output_table(params), config.final_cap)
    return OutputProjection(lm_head_weight(params), None)


def cap_logits(logits: jax.Array, cap: float | None) -> tuple[jax.Array, jax.Array | float]:
    """Logits after the cap, and the derivative of each by the logit before it (1 without a cap)."""
    if cap is None:
        return logits, 1.0
    bent = jnp.tanh(logits / cap)
    return cap * bent, 1.0 - bent**2
