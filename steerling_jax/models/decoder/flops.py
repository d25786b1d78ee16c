"""Model FLOPs of decoders: what the mathematics of a pass needs, counted as in `models/steerling/flops.py`.

Legend: D width, V vocabulary, H heads, G key/value heads, d head size, F inner width.
"""

from __future__ import annotations

from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.steerling.flops import Flops


def pass_flops(config: DecoderConfig, *, rows: int, length: int, cached: int = 0, logits: int = 1) -> Flops:
    """FLOPs of a forward pass over `length` positions of `rows` texts after `cached` positions, with logits at
    `logits` positions of each text."""
    layers = attention = 0
    for layer, kind in enumerate(config.layer_types):
        layers += _mlp_weights(config, layer) + _mixer_weights(config, kind)
        if kind == "linear_attention":
            assert config.linear is not None
            # Sᵀk, the outer product that is added, and Sᵀq, of each value head at each position.
            attention += 6 * length * config.linear.value_heads * config.linear.key_dim * config.linear.value_dim
        else:
            window = config.sliding_window if kind == "sliding_attention" else None
            attention += 4 * config.num_attention_heads * config.head_dim * _pairs(length, cached, window)
    return Flops(
        layers=2.0 * rows * length * layers,
        attention=float(rows * attention),
        known=0.0,
        discovered=0.0,
        output=2.0 * rows * logits * config.width * config.vocab_size,
    )


def training_flops(config: DecoderConfig, *, batch_size: int, seq_len: int, frozen: bool = False) -> Flops:
    """FLOPs of a next-token training step, forward and backward, on `batch_size` sequences of `seq_len` tokens.

    All positions count as having a loss. frozen: adapters are trained and the weights get no gradient; the adapters'
    own products, a few per cent, are not counted.
    """
    forward = pass_flops(config, rows=batch_size, length=seq_len, logits=seq_len)
    # In the backward pass a product with a weight costs one more product for each operand that has a gradient.
    weight = 2 if frozen else 3
    return Flops(
        layers=weight * forward.layers,
        attention=3 * forward.attention,
        known=0.0,
        discovered=0.0,
        output=weight * forward.output,
    )


def _mixer_weights(config: DecoderConfig, kind: str) -> int:
    """Weights that a token is multiplied by in attention, or in DeltaNet (the convolution is no matrix product)."""
    D = config.width
    if kind == "linear_attention":
        linear = config.linear
        assert linear is not None
        values = linear.value_heads * linear.value_dim
        return D * (linear.conv_channels + 2 * values + 2 * linear.value_heads)
    H, G, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    return D * d * ((3 if config.output_gate else 2) * H + 2 * G)


def _mlp_weights(config: DecoderConfig, layer: int) -> int:
    """Weights that a token is multiplied by in the MLP, or in the experts that it uses and their router."""
    D, moe = config.width, config.experts
    if moe is None or not config.has_experts(layer):
        return 3 * D * config.intermediate_size
    experts = 3 * D * (moe.per_token * moe.intermediate_size + moe.shared_size)
    return experts + D * (moe.count + bool(moe.shared_size))


def _pairs(length: int, cached: int, window: int | None) -> int:
    """Pairs of a query of the pass and a key that it sees."""
    return sum(min(cached + at + 1, window or cached + at + 1) for at in range(length))
