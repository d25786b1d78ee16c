"""Smaller depths of decoders, from which a deeper model is extrapolated: their layers are compiled one by one."""

from __future__ import annotations

import dataclasses

from steerling_jax.models.decoder.config import DecoderConfig


def decoder_depths(config: DecoderConfig) -> tuple[int, int]:
    """Two numbers of layers from which a deeper model is extrapolated: the second adds a whole period of types."""
    period = config.period
    first = period * -(-2 // period)
    return first, first + period


def first_layers(config: DecoderConfig, layers: int) -> DecoderConfig:
    """The configuration of the first `layers` layers."""
    return dataclasses.replace(
        config, num_hidden_layers=layers, layer_types=config.layer_types[:layers], moe_layers=config.moe_layers[:layers]
    )
