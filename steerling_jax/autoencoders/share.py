"""`Share`: which latents and rows a device has in a training step, and sums over the devices that have others.

Used inside a `shard_map`; without mesh axes every function returns what it is given.

Legend: S latents of a device.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Share(NamedTuple):
    """The mesh axes over which latents and rows are sharded; None where a device has all of them."""

    latents: str | None = None
    rows: str | tuple[str, ...] | None = None

    def over_rows(self, value: jax.Array) -> jax.Array:
        """The sum of `value` over the devices that have other rows."""
        return value if self.rows is None else lax.psum(value, self.rows)

    def over_latents(self, value: jax.Array) -> jax.Array:
        """The sum of `value` over the devices that have other latents."""
        return value if self.latents is None else lax.psum(value, self.latents)

    def once(self, value: jax.Array) -> jax.Array:
        """`value` on one of the devices that have other latents, 0 on the others, so that `over_latents` counts it
        once."""
        return value if self.latents is None else jnp.where(lax.axis_index(self.latents) == 0, value, 0.0)

    def all_latents(self, values: jax.Array) -> jax.Array:
        """values (S,) of the device's latents to those of all latents."""
        return values if self.latents is None else lax.all_gather(values, self.latents, tiled=True)

    def own(self, index: jax.Array, size: int) -> tuple[jax.Array | None, jax.Array, jax.Array]:
        """Numbers of latents (…, n) among all, for a device that has `size` of them: which are its own (None: all), and
        their numbers there, to read at and to write at. Those of other devices are read anywhere and written nowhere:
        beyond the end, each at another place, because the writes promise that places are distinct."""
        if self.latents is None:
            return None, index, index
        local = index - lax.axis_index(self.latents) * size
        mine = (local >= 0) & (local < size)
        elsewhere = size + jnp.arange(index.shape[-1])
        return mine, jnp.clip(local, 0, size - 1), jnp.where(mine, local, elsewhere)
