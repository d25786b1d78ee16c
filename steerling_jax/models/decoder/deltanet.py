"""Gated DeltaNet (Flax Linen): linear attention with a recurrent state, as in Qwen3.5.

For every value head, with keys k and queries q of length 1 (q also divided by √Dk), a decay e^g and a rate β:

    S ← S · e^g;   S ← S + k (β (v − Sᵀ k))ᵀ;   o = Sᵀ q

Source: Yang et al. 2024, Gated Delta Networks. The state and its products are float32.

Legend: B rows, T positions, H value heads, Dk and Dv sizes of keys and values, C positions of a chunk, K taps of the
convolution, N its channels.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from steerling_jax.models.compute import Compute
from steerling_jax.models.decoder.config import DecoderConfig, LinearAttention
from steerling_jax.models.decoder.layers import RMSNorm
from steerling_jax.models.layers import Linear, last_axis

_CHUNK = 64
# Products of the state in full float32 on matrix units, which would otherwise round their operands to bfloat16: the
# rounding errors of a recurrent state add up over a text.
_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


class DeltaState(NamedTuple):
    """A layer's cache: the last inputs of the convolution, (B, K − 1, N), and the state S, (B, H, Dk, Dv) float32."""

    conv: jax.Array
    state: jax.Array


def empty_state(linear: LinearAttention, compute: Compute, rows: int) -> DeltaState:
    """The cache before the first position."""
    return DeltaState(
        jnp.zeros((rows, linear.conv_taps - 1, linear.conv_channels), compute.dtype),
        jnp.zeros((rows, linear.value_heads, linear.key_dim, linear.value_dim), jnp.float32),
    )


class GatedDeltaNet(nn.Module):
    """One DeltaNet layer's mixing of positions."""

    config: DecoderConfig
    compute: Compute

    @nn.compact
    def __call__(
        self, x: jax.Array, valid: jax.Array | None, cached: DeltaState | None
    ) -> tuple[jax.Array, DeltaState | None]:
        """x (B, T, D) to the output (B, T, D), and the cache after these positions (None without one).

        valid: (B, T) bool, False at padding after a row's positions, which leaves no trace in the cache.
        """
        c, linear = self.config, self.config.linear
        assert linear is not None
        B, T, D = x.shape
        H, G, Dk, Dv = linear.value_heads, linear.key_heads, linear.key_dim, linear.value_dim

        def project(name: str, features: int) -> jax.Array:
            return Linear(features, self.compute, name=name)(x)

        before = empty_state(linear, self.compute, B) if cached is None else cached
        qkv, conv = _Convolution(linear.conv_taps, name="conv1d")(
            project("in_proj_qkv", linear.conv_channels), before.conv, valid
        )
        q, k, v = jnp.split(jax.nn.silu(qkv).astype(jnp.float32), (G * Dk, 2 * G * Dk), axis=-1)
        # Each key head serves H / G value heads that follow each other.
        q, k = (jnp.repeat(_unit(heads.reshape(B, T, G, Dk)), H // G, axis=2) for heads in (q, k))
        beta = jax.nn.sigmoid(project("in_proj_b", H).astype(jnp.float32))
        rate = jnp.exp(self.param("A_log", nn.initializers.zeros, (H,)).astype(jnp.float32))
        shift = self.param("dt_bias", nn.initializers.ones, (H,)).astype(jnp.float32)
        log_decay = -last_axis(rate, 3) * jax.nn.softplus(
            project("in_proj_a", H).astype(jnp.float32) + last_axis(shift, 3)
        )
        if valid is not None:  # rate 0 and decay 1 leave the state as it is
            beta, log_decay = (jnp.where(valid[:, :, None], value, 0.0) for value in (beta, log_decay))
        mix = delta_scan if T < _CHUNK // 4 else delta_chunked
        y, state = mix(before.state, q * Dk**-0.5, k, v.reshape(B, T, H, Dv), beta, log_decay)
        gate = project("in_proj_z", H * Dv).reshape(B, T, H, Dv).astype(jnp.float32)
        y = RMSNorm(c.rms_norm_eps, name="norm")(y.astype(x.dtype)) * jax.nn.silu(gate)
        out = Linear(D, self.compute, residual_layers=c.n_layers, name="out_proj")(
            y.astype(x.dtype).reshape(B, T, H * Dv)
        )
        return out, None if cached is None else DeltaState(conv, state)


class _Convolution(nn.Module):
    """Depthwise causal convolution of `taps` positions."""

    taps: int

    @nn.compact
    def __call__(self, x: jax.Array, before: jax.Array, valid: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """x (B, T, N) after the inputs `before` (B, K − 1, N), to the same shape and the inputs for later positions."""
        K, T = self.taps, x.shape[1]
        weight = self.param("weight", nn.initializers.normal(K**-0.5), (x.shape[2], 1, K)).astype(jnp.float32)
        inputs = jnp.concatenate([before.astype(x.dtype), x], axis=1)
        taps = (inputs[:, tap : tap + T].astype(jnp.float32) * weight[None, None, :, 0, tap] for tap in range(K))
        y = sum(taps, jnp.zeros((), jnp.float32)).astype(x.dtype)
        if valid is None:
            return y, inputs[:, T:]
        lengths = jnp.sum(valid, axis=1)
        last = jax.vmap(lambda row, at: lax.dynamic_slice_in_dim(row, at, K - 1))(inputs, lengths)
        return y, last


def _unit(x: jax.Array) -> jax.Array:
    """x with its last axis scaled to length 1; 1e-6 under the root, as published."""
    return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def delta_scan(
    state: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, beta: jax.Array, log_decay: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The recurrence position by position: q and k (B, T, H, Dk), v (B, T, H, Dv), beta and log_decay (B, T, H), all
    float32, to outputs (B, T, H, Dv) and the state (B, H, Dk, Dv) after the last position.
    """

    def step(S: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, beta, log_decay = inputs
        S = S * jnp.exp(log_decay)[:, :, None, None]
        update = beta[:, :, None] * (v - _einsum("bhkv,bhk->bhv", S, k))
        S = S + k[:, :, :, None] * update[:, :, None, :]
        return S, _einsum("bhkv,bhk->bhv", S, q)

    by_position = tuple(jnp.moveaxis(value, 1, 0) for value in (q, k, v, beta, log_decay))
    state, y = lax.scan(step, state, by_position)
    return jnp.moveaxis(y, 0, 1), state


def delta_chunked(
    state: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, beta: jax.Array, log_decay: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`delta_scan` in chunks of C positions, as matrix products.

    With G the sum of log decays from the chunk's start up to a position, u = β (v − Sᵀ k) of the decayed state solves

        u_t = β_t (v_t − e^{G_t} S₀ᵀ k_t) − Σ_{j<t} A_tj u_j,   A_tj = β_t e^{G_t − G_j} ⟨k_t, k_j⟩

    a unit lower triangular system for each chunk. Its solutions for β v and for β e^G k do not depend on the state S₀
    at the chunk's start, so all chunks are solved at once, and a scan over chunks is left with a few products.
    """
    B, T, H, _ = q.shape
    C = _CHUNK
    pad = -T % C  # with rate 0 and decay 1, as for padding

    def chunks(value: jax.Array) -> jax.Array:
        """(B, T, H, …) to (chunks, B, H, C, …)."""
        value = jnp.pad(value, ((0, 0), (0, pad)) + ((0, 0),) * (value.ndim - 2))
        value = value.reshape(B, (T + pad) // C, C, *value.shape[2:])
        return jnp.moveaxis(jnp.moveaxis(value, 3, 2), 1, 0)

    q, k, v, beta, log_decay = (chunks(value) for value in (q, k, v, beta, log_decay))
    G = jnp.cumsum(log_decay, axis=-1)
    lower = jnp.tril(jnp.ones((C, C), bool))[None, None, None]
    # e^{G_i − G_j} for i ≥ j. Masked before the exponential: above the diagonal it could overflow, and its gradient
    # would be NaN.
    decay = jnp.exp(jnp.where(lower, G[..., :, None] - G[..., None, :], -jnp.inf))
    system = beta[..., None] * decay * _einsum("nbhik,nbhjk->nbhij", k, k)
    known = jnp.concatenate([beta[..., None] * v, (beta * jnp.exp(G))[..., None] * k], axis=-1)
    # Reads the strictly lower part of `system` alone, and ones in place of its diagonal.
    solved = jax.scipy.linalg.solve_triangular(system, known, lower=True, unit_diagonal=True)
    u_values, u_keys = solved[..., : v.shape[-1]], solved[..., v.shape[-1] :]
    within = decay * _einsum("nbhik,nbhjk->nbhij", q, k)
    q_decayed = q * jnp.exp(G)[..., None]
    k_decayed = k * jnp.exp(G[..., -1:] - G)[..., None]

    def step(S: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        u_values, u_keys, within, q, k, total = inputs
        u = u_values - _einsum("bhck,bhkv->bhcv", u_keys, S)
        y = _einsum("bhck,bhkv->bhcv", q, S) + _einsum("bhij,bhjv->bhiv", within, u)
        return S * jnp.exp(total)[:, :, None, None] + _einsum("bhck,bhcv->bhkv", k, u), y

    state, y = lax.scan(step, state, (u_values, u_keys, within, q_decayed, k_decayed, G[..., -1]))
    y = jnp.moveaxis(jnp.moveaxis(y, 0, 1), 2, 3)  # (B, chunks, C, H, Dv)
    return y.reshape(B, T + pad, H, -1)[:, :T], state
