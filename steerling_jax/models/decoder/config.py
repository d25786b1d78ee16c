"""The configuration that the decoder families share: Llama, Qwen3, Qwen3.5, Gemma 2 and Gemma 3, and their MoE forms.

A family is a reader of its published `config.json` (`llama.py`, `qwen3.py`, `gemma.py`, …), which gives a
`DecoderConfig`; the forward pass depends on this value alone. Fields with a published name have it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from steerling_jax.errors import UserError, require
from steerling_jax.models.steerling.config import ModelConfig

LAYER_TYPES = ("full_attention", "sliding_attention", "linear_attention")
ROPE_KINDS = ("default", "linear", "llama3")
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of one type of layers.

    theta: base of the frequencies. share: the leading part of each head that is rotated. kind: how frequencies are
    scaled for longer contexts: 'linear' divides them by `factor`; 'llama3' divides those whose wavelength is above
    `original_length / low_freq_factor`, and interpolates down to `original_length / high_freq_factor`.
    """

    theta: float = 10_000.0
    share: float = 1.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: `count` gated MLPs of inner width `intermediate_size`; a token uses `per_token` of them.

    normalise: divide the weights of the selected experts by their sum. shared_size: inner width of an expert that every
    token uses, weighted by a sigmoid gate; 0 for none.
    """

    count: int
    per_token: int
    intermediate_size: int
    normalise: bool = True
    shared_size: int = 0


@dataclass(frozen=True)
class LinearAttention:
    """Sizes of gated DeltaNet layers: heads of keys and of values, their sizes, and the taps of the convolution."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_taps: int = 4

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution: queries, keys and values of all heads."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


@dataclass(frozen=True)
class DecoderConfig:
    """Configuration of a pre-norm decoder of one of the supported families.

    family: its name, for messages. layer_types: of each layer. sliding_window: the positions that a token of a sliding
    layer attends to, itself included. rope, sliding_rope: of full and of sliding attention layers. zero_centred_norms:
    norms multiply by `1 + weight`. qk_norm: norms of queries and keys per head, before RoPE. output_norms: norms of the
    outputs of attention and MLP too (Gemma). output_gate: attention outputs are multiplied by a sigmoid gate (Qwen3.5).
    query_scale: factor of attention scores. attention_cap, final_cap: scores and logits x become `cap · tanh(x / cap)`.
    scale_embeddings: token embeddings are multiplied by √D. moe_layers: whether each layer has experts.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    layer_types: tuple[str, ...]
    rope: Rope
    sliding_rope: Rope | None = None
    sliding_window: int | None = None
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    zero_centred_norms: bool = False
    qk_norm: bool = False
    output_norms: bool = False
    output_gate: bool = False
    query_scale: float = 1.0
    attention_cap: float | None = None
    final_cap: float | None = None
    scale_embeddings: bool = False
    experts: Experts | None = None
    moe_layers: tuple[bool, ...] = ()
    linear: LinearAttention | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        _validate(self)

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return self.num_hidden_layers

    @property
    def width(self) -> int:
        """Width D of hidden states."""
        return self.hidden_size

    @property
    def context_length(self) -> int:
        """The longest text in tokens."""
        return self.max_position_embeddings

    def has_experts(self, layer: int) -> bool:
        """Whether the MLP of a layer is a mixture of experts."""
        return self.experts is not None and self.moe_layers[layer]

    @property
    def period(self) -> int:
        """The smallest number of layers after which their types repeat; the number of layers where they do not."""
        layers = self.num_hidden_layers
        kinds = list(zip(self.layer_types, map(self.has_experts, range(layers)), strict=True))
        fits = (p for p in range(1, layers) if all(a == b for a, b in zip(kinds[p:], kinds, strict=False)))
        return next(fits, layers)

    def rope_of(self, layer_type: str) -> Rope:
        """The rotary embedding of layers of a type."""
        return self.sliding_rope if layer_type == "sliding_attention" and self.sliding_rope else self.rope

    def __getattr__(self, name: str) -> Any:
        # Reached for names that this class lacks. Functions for concepts, diffusion blocks or masks read fields that
        # Steerling's configuration alone has: here is the one place that refuses other models for all of them.
        if name in _STEERLING_ONLY:
            raise UserError(
                f"A {self.family} model has no {name}: this function needs a Steerling model, with concepts and "
                "diffusion blocks."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


_STEERLING_ONLY = ({f.name for f in dataclasses.fields(ModelConfig)} | {"kv_heads", "mlp_width"}) - {
    f.name for f in dataclasses.fields(DecoderConfig)
}


def _validate(config: DecoderConfig) -> None:
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    for name in (*sizes, "num_key_value_heads", "head_dim", "max_position_embeddings"):
        require(getattr(config, name) >= 1, f"{name} is {getattr(config, name)}, but it must be at least 1.")
    H, G = config.num_attention_heads, config.num_key_value_heads
    require(H % G == 0, f"num_attention_heads ({H}) must be divisible by num_key_value_heads ({G}).")
    require(config.rms_norm_eps > 0, f"rms_norm_eps is {config.rms_norm_eps}, but it must be positive.")
    require(
        config.hidden_act in ACTIVATIONS,
        f"the activation is {config.hidden_act!r}, but it must be one of {', '.join(ACTIVATIONS)}.",
    )
    L = config.num_hidden_layers
    require(len(config.layer_types) == L, f"layer_types has {len(config.layer_types)} entries for {L} layers.")
    for kind in config.layer_types:
        require(kind in LAYER_TYPES, f"layer_types has {kind!r}, which is not one of {', '.join(LAYER_TYPES)}.")
    require(
        "sliding_attention" not in config.layer_types or (config.sliding_window or 0) >= 1,
        f"sliding_window is {config.sliding_window}, but sliding layers need at least 1.",
    )
    require(
        "linear_attention" not in config.layer_types or config.linear is not None,
        f"layer_types has linear_attention, which {config.family} models do not have.",
    )
    for rope in {config.rope, config.sliding_rope or config.rope}:
        rotated = round(config.head_dim * rope.share)
        require(
            rotated % 2 == 0 and 2 <= rotated <= config.head_dim,
            f"{rotated} of {config.head_dim} entries of a head would be rotated, but it must be an even number.",
        )
        require(rope.theta > 0 and rope.factor > 0, "rope_theta and the factor of RoPE must be positive.")
        require(rope.low_freq_factor < rope.high_freq_factor, "low_freq_factor must be below high_freq_factor.")
    for name in ("attention_cap", "final_cap"):
        cap = getattr(config, name)
        require(cap is None or cap > 0, f"{name} is {cap}, but it must be positive or null.")
    if config.experts is not None:
        count, used = config.experts.count, config.experts.per_token
        require(1 <= used <= count, f"num_experts_per_tok is {used}, but it must be between 1 and {count} experts.")
    if (linear := config.linear) is not None:
        require(
            min(linear.key_heads, linear.value_heads, linear.key_dim, linear.value_dim, linear.conv_taps) >= 1
            and linear.value_heads % linear.key_heads == 0,
            f"linear_num_value_heads ({linear.value_heads}) must be a multiple of linear_num_key_heads "
            f"({linear.key_heads}), and all sizes of linear attention at least 1.",
        )
