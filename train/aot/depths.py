"""Smaller depths of decoders, from which a deeper model is extrapolated: their layers are compiled one by one."""

from __future__ import annotations

import dataclasses

from steerling_jax.models.decoder.config import DecoderConfig


def decoder_depths(config: DecoderConfig) -> tuple[int, int]:
    """Two numbers of layers from which a deeper model is extrapolated: the second adds a whole period of types."""
    layers = config.n_layers
    kinds = list(zip(config.layer_types, map(config.has_experts, range(layers)), strict=True))
    fits = (p for p in range(1, layers) if all(a == b for a, b in zip(kinds[p:], kinds, strict=False)))
    period = next(fits, layers)
    first = period * -(-2 // period)
    return first, first + period


def first_layers(config: DecoderConfig, layers: int) -> DecoderConfig:
    """The configuration of the first `layers` layers."""
    return dataclasses.replace(
        config, num_hidden_layers=layers, layer_types=config.layer_types[:layers], moe_layers=config.moe_layers[:layers]
    )
