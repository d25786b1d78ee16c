"""Causal self-attention of the decoder families: grouped queries, full or sliding, with or without a cache.

Legend: B rows, T positions of a pass, S keys (of the cache, or the pass's own), D width, H heads, G key/value heads,
d head size, R = H / G queries that share a key.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from steerling_jax.models.attention import KeysValues
from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.decoder.layers import RMSNorm
from steerling_jax.models.decoder.rope import RopeTables, rotate
from steerling_jax.models.layers import Linear

_QUERIES = 256  # of a chunk, whose scores are in memory together


def causal_mask(queries: jax.Array, keys: jax.Array, window: int | None) -> jax.Array:
    """Which keys, at absolute positions (B or 1, S), each query at (B or 1, T) sees: (B or 1, T, S) bool.

    window: a query sees so many last positions, its own included; None for all earlier ones.
    """
    distance = queries[:, :, None] - keys[:, None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def attend_causal(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float, cap: float | None
) -> jax.Array:
    """Grouped attention with a float32 softmax: q (B, T, H, d), k and v (B, G, S, d), mask (B or 1, T, S) bool.

    scale: factor of the scores. cap: scores s become `cap · tanh(s / cap)` before the mask. Returns (B, T, H, d) in q's
    dtype. Many queries are computed in chunks, one after another, so that the scores of all of them, H · T · S numbers
    a row, are never in memory together; nor in a backward pass, which computes each chunk's scores again.
    """
    B, T, H, d = q.shape
    if T <= 2 * _QUERIES:
        return _attend(q, k, v, mask, scale, cap)
    pad = -T % _QUERIES
    count = (T + pad) // _QUERIES
    q = jnp.moveaxis(jnp.pad(q, ((0, 0), (0, pad), (0, 0), (0, 0))).reshape(B, count, _QUERIES, H, d), 1, 0)
    # Padded queries see all keys: their outputs are cut off, and with nothing to see they would be NaN.
    mask = jnp.pad(mask, ((0, 0), (0, pad), (0, 0)), constant_values=True)
    mask = jnp.moveaxis(mask.reshape(len(mask), count, _QUERIES, -1), 1, 0)

    @jax.checkpoint
    def chunk(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _attend(inputs[0], k, v, inputs[1], scale, cap)

    out = jax.lax.map(chunk, (q, mask))
    return jnp.moveaxis(out, 0, 1).reshape(B, T + pad, H, d)[:, :T]


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float, cap: float | None) -> jax.Array:
    (B, T, H, d), G, S = q.shape, k.shape[1], k.shape[2]
    # Rows (head in group, T) of one key head are one matrix product, so that the cache is read once for all of them.
    rows = jnp.moveaxis(q.reshape(B, T, G, H // G, d), 1, 3).reshape(B, G, H // G * T, d)
    scores = jnp.einsum("bgmd,bgsd->bgms", rows, k.astype(q.dtype), preferred_element_type=jnp.float32) * scale
    if cap is not None:
        scores = cap * jnp.tanh(scores / cap)
    scores = jnp.where(mask[:, None, None], scores.reshape(B, G, H // G, T, S), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype).reshape(B, G, H // G * T, S)
    out = jnp.einsum("bgms,bgsd->bgmd", weights, v.astype(q.dtype), preferred_element_type=jnp.float32)
    return jnp.moveaxis(out.reshape(B, G, H // G, T, d), 3, 1).reshape(B, T, H, d).astype(q.dtype)


def write_positions(cache: KeysValues, fresh: KeysValues, start: jax.Array | int) -> KeysValues:
    """A layer's cache, each (B, G, S, d), with keys and values (B, G, T, d) written from position `start` () or (B,)
    on.
    """

    def write(old: jax.Array, new: jax.Array) -> jax.Array:
        new = new.astype(old.dtype)
        if jnp.ndim(start) == 0:
            return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=2)
        return jax.vmap(lambda o, n, s: jax.lax.dynamic_update_slice_in_dim(o, n, s, axis=1))(old, new, start)

    return write(cache[0], fresh[0]), write(cache[1], fresh[1])


class Attention(nn.Module):
    """Causal self-attention of one layer."""

    config: DecoderConfig
    compute: Compute

    @nn.compact
    def __call__(
        self, x: jax.Array, rope: RopeTables, mask: jax.Array, start: jax.Array | int, cached: KeysValues | None
    ) -> tuple[jax.Array, KeysValues | None]:
        """x (B, T, D) to the output (B, T, D) and the layer's cache with these positions.

        rope: tables of these positions. mask (B or 1, T, S): over the cache's positions, or without a cache over the
        pass's own.
        """
        c, (B, T, D) = self.config, x.shape
        H, G, d = c.num_attention_heads, c.num_key_value_heads, c.head_dim

        def project(name: str, features: int) -> jax.Array:
            return Linear(features, self.compute, c.attention_bias, name=name)(x)

        gate = None
        if c.output_gate:
            # Of each head, the first d outputs are the query and the next d the gate.
            q, gate = jnp.split(project("q_proj", 2 * H * d).reshape(B, T, H, 2 * d), 2, axis=-1)
        else:
            q = project("q_proj", H * d).reshape(B, T, H, d)
        k, v = (project(name, G * d).reshape(B, T, G, d) for name in ("k_proj", "v_proj"))
        if c.qk_norm:
            q, k = (
                RMSNorm(c.rms_norm_eps, c.zero_centred_norms, name=name)(heads)
                for name, heads in (("q_norm", q), ("k_norm", k))
            )
        q, k = rotate(q, rope), rotate(k, rope)
        keys_values = (jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2))
        if cached is not None:
            keys_values = cached = write_positions(cached, keys_values, start)
        y = attend_causal(q, *keys_values, mask, c.query_scale, c.attention_cap)
        if gate is not None:
            y = y * jax.nn.sigmoid(gate)
        return Linear(D, self.compute, c.attention_bias, c.n_layers, name="o_proj")(y.reshape(B, T, H * d)), cached
