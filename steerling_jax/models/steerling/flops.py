"""Model FLOPs: the operations that the mathematics of a pass needs, independent of the program that computes it.

A multiply-add counts as two. Counted are products with weights, attention over the pairs that see each other, the
scores of all concepts and the sums of the selected ones, the output projection, the independence loss, and the
gradients of all these. Not counted is what an implementation adds and what runs on no matrix unit: recomputation,
padding, masked pairs, rows that fill up a batch, element-wise work, look-ups, top-k, the optimizer. So the difference
between a program's own count and this one is overhead.

Legend: D width, V vocabulary, H heads, G key/value heads, d head size, F inner width, C concepts, K selected concepts,
R rank.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.head_view import HeadSpec, discovered_spec, known_spec

Gradient = Literal["none", "inputs"]

# Peak rate of a device in FLOP/s, for dense bfloat16 products, from the manufacturer's data sheet, by `device_kind`.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,  # JAX sees a chip as two devices
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


@dataclass(frozen=True)
class Flops:
    """FLOPs by part of the model.

    layers: products with the layers' weights. attention: scores and weighted values. known, discovered: the two heads
    with their losses. output: the projection to the vocabulary.
    """

    layers: float
    attention: float
    known: float
    discovered: float
    output: float

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))

    @property
    def concepts(self) -> float:
        """The FLOPs of both concept heads."""
        return self.known + self.discovered


def peak_flops(device_kind: str) -> float | None:
    """The peak rate in FLOP/s of one device of this kind; None where it is not known, as for a CPU."""
    exact = PEAK_FLOPS.get(device_kind)
    if exact is not None or not device_kind.startswith("NVIDIA"):
        return exact
    # The kind names the memory too, as in "NVIDIA H100 80GB HBM3". PCIe cards are slower and not in the table.
    matching = [name for name in PEAK_FLOPS if device_kind.startswith(name) and "PCIe" not in device_kind]
    return PEAK_FLOPS[matching[0]] if matching else None


def block_causal_pairs(length: int, block: int) -> int:
    """The number of pairs (query, key) where the query sees the key, in its own diffusion block or an earlier one."""
    whole, rest = divmod(length, block)
    return block * block * whole * (whole + 1) // 2 + rest * length


def training_flops(
    config: ModelConfig,
    *,
    batch_size: int,
    seq_len: int,
    clean_context: bool,
    masked_share: float,
    frozen: bool = False,
    heads_only: bool = False,
) -> Flops:
    """The FLOPs of one training step, forward and backward, on `batch_size` sequences of `seq_len` tokens.

    masked_share: the share of the positions that have a loss (see `expected_masked_share`). clean_context: a clean and
    a noisy copy run through the layers together. frozen: adapters are trained and the weights get no gradient; the
    adapters' own products, a few per cent, are not counted. heads_only: the concept heads alone are trained, so the
    layers have no gradient.
    """
    positions = batch_size * seq_len * (2 if clean_context else 1)
    # A noisy block sees as many positions of the other copy and of its own as a clean one sees of the clean copy.
    pairs = batch_size * block_causal_pairs(seq_len, config.diff_block_size) * (2 if clean_context else 1)
    rows = batch_size * seq_len * masked_share
    if frozen:
        return _pass(config, positions, pairs, rows, heads=True, gradient="inputs")
    known = discovered = 0.0
    if config.concept is not None:
        parts = _head(known_spec(config.concept))
        # The presence loss depends on every concept, so every score has a gradient.
        known = 3 * (parts.query + parts.scores + parts.features)
        spec = discovered_spec(config.concept)
        if spec is not None:
            parts = _head(spec)
            # The head reads stop_gradient(hidden), so a product with it has a gradient for its weight alone. Only the
            # scores of selected concepts have a gradient. Independence is ΨᵀΦ, with a gradient for Ψ alone.
            # In a strict model it is a path of the prediction, so that the hidden states have a gradient too, and there
            # is no independence loss.
            inputs = parts.query if config.concept.is_strict and not heads_only else 0.0
            discovered = 2 * parts.query + inputs + parts.second_query + parts.scores + 2 * parts.selected_scores
            discovered += 3 * parts.features
            discovered += 4 * config.n_embd**2 if config.concept.dictionary is None else 0.0
    passes = 1 if heads_only else 3
    return Flops(
        layers=passes * positions * _layers(config),
        attention=passes * pairs * _pair(config),
        known=rows * known,
        discovered=rows * discovered,
        output=3 * rows * _output(config),
    )


def forward_flops(
    config: ModelConfig, *, batch_size: int, seq_len: int, rows: int, heads: bool = True, gradient: Gradient = "none"
) -> Flops:
    """The FLOPs of one pass over whole texts, with heads (optional) and output projection on `rows` positions in all.

    gradient "inputs" adds the backward pass to the embeddings, as attribution runs it; weights get no gradient.
    """
    pairs = batch_size * block_causal_pairs(seq_len, config.diff_block_size)
    return _pass(config, batch_size * seq_len, pairs, rows, heads, gradient)


def decoding_flops(config: ModelConfig, *, batch_size: int, cached: int, candidates: int, heads: bool = False) -> Flops:
    """The FLOPs of one denoising pass of `batch_size` rows over a window of two diffusion blocks.

    cached: positions before the window, per row; candidates: positions with logits, per row. heads: run the concept
    heads too, which clamps need; a strict model always runs them.
    """
    heads = heads or (config.concept is not None and config.concept.is_strict)
    window = 2 * config.diff_block_size
    pairs = batch_size * (window * cached + block_causal_pairs(window, config.diff_block_size))
    return _pass(config, batch_size * window, pairs, batch_size * candidates, heads, "none")


def _pass(config: ModelConfig, positions: float, pairs: float, rows: float, heads: bool, gradient: Gradient) -> Flops:
    # In the backward pass to the inputs, a product with a weight costs one more product, one of two activations two.
    weight, activation = (1, 1) if gradient == "none" else (2, 3)
    known = discovered = 0.0
    if heads and config.concept is not None:
        known = weight * _head(known_spec(config.concept)).forward
        spec = discovered_spec(config.concept)
        discovered = 0.0 if spec is None else _head(spec).forward  # it reads stop_gradient(hidden): no backward pass
    return Flops(
        layers=weight * positions * _layers(config),
        attention=activation * pairs * _pair(config),
        known=rows * known,
        discovered=rows * discovered,
        output=weight * rows * _output(config),
    )


def _layers(config: ModelConfig) -> float:
    """Products with all layers' weights, at one position."""
    D = config.n_embd
    mlp = (3 if config.mlp_type == "swiglu" else 2) * D * config.mlp_width
    return 2.0 * config.n_layers * (D * (D + 2 * config.kv_heads * config.head_dim) + D * D + mlp)


def _pair(config: ModelConfig) -> float:
    """The score and the weighted value of one pair, in all heads of all layers."""
    return 4.0 * config.n_layers * config.n_embd


def _output(config: ModelConfig) -> float:
    return 2.0 * config.n_embd * config.vocab_size


@dataclass(frozen=True)
class _Head:
    """The forward FLOPs of a head at one row.

    second_query: the part of `query` whose input depends on a weight, so that it has a gradient. selected_scores: the
    part of `scores` that belongs to selected concepts.
    """

    query: float
    second_query: float
    scores: float
    selected_scores: float
    features: float

    @property
    def forward(self) -> float:
        return self.query + self.scores + self.features


def _head(spec: HeadSpec) -> _Head:
    D, R, C = spec.width, spec.rank, spec.n_concepts
    Q = D if R is None else R
    K = C if spec.topk_features is None else min(spec.topk_features, C)
    square, basis = 2.0 * D * D, 0.0 if R is None else 2.0 * D * R
    query = (square if spec.attention else 0.0) + basis
    return _Head(
        query=query,
        second_query=basis if spec.attention else 0.0,
        scores=2.0 * C * Q,
        selected_scores=2.0 * K * Q,
        features=2.0 * K * Q + basis,
    )
