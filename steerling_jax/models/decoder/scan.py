"""The layers of a training pass on several devices, as a loop over periods of layer types.

A compiler that sees all layers at once gathers sharded weights many layers before their use and keeps them for the
backward pass; in a loop only the weights of one period are on a device. The program also compiles in a time that does
not grow with depth.

Legend: B rows, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from steerling_jax.models.backbone import Params

RunLayer = Callable[[Params, jax.Array, int], jax.Array]


def scan_periods(layers: Params, x: jax.Array, period: int, run_layer: RunLayer) -> tuple[jax.Array, int]:
    """x (B, T, D) after all whole periods of `period` layers, and their number of layers.

    layers: the parameters by layer number. run_layer: (a layer's parameters, x, its place in the period) to its output;
    layers a period apart have the same types.
    """
    periods = len(layers) // period
    # One list of parameters for each place in the period, stacked over the periods: this is a second copy of each
    # device's share of the parameters, which is small against what a step holds.
    stacked = [
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *(layers[str(n * period + place)] for n in range(periods)))
        for place in range(period)
    ]

    def one(x: jax.Array, own: list[Params]) -> tuple[jax.Array, Any]:
        for place, params in enumerate(own):
            x = run_layer(params, x, place)
        return x, None

    return lax.scan(one, x, stacked)[0], periods * period
