"""Model configuration under the published field names.

Source of names, defaults and limits: the `steerling` 0.2.0 package and the Hub's Steerling-8B configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from steerling_jax.errors import require


@dataclass(frozen=True)
class DictionaryConfig:
    """Discovered concepts as a dictionary with magnitudes, in place of the published head of sigmoid weights.

    A concept's weight is `relu(key_c · hidden + bias_c)`, of which the `unknown_topk` largest are kept, and its
    embedding has length 1. The published package has no such head: `concept.dictionary` in `config.json` is an
    extension that it rejects as an unknown field.

    offset: the composed features also have a constant vector (D,), which is the same at every position.
    format: version of the extension.
    """

    offset: bool = True
    format: int = 1


@dataclass(frozen=True)
class ConceptConfig:
    """Configuration of the concept bottleneck, under the published field names (`unknown` means discovered).

    n_concepts, n_unknown_concepts: known and discovered concepts. concept_dim: width of an embedding, the model's.
    topk_known, unknown_topk: concepts selected at each position, None for all. topk_known_features: known concepts
    whose embeddings are summed. factorize_unknown: the discovered head's tables have rank `factorize_rank`.
    use_epsilon_correction: add to the features what they leave of the hidden state. block_size: concepts scored at
    once. pad_multiple: tables have a multiple of so many rows. topk_on_logits: concepts outside the top k get the logit
    0, not the weight 0. dictionary: discovered concepts with magnitudes (an extension); None for the published head.
    Source: the `steerling` 0.2.0 package.
    """

    n_concepts: int = 33_732
    n_unknown_concepts: int | None = 101_196
    max_concepts: int = 16
    concept_dim: int = 4096
    use_attention_known: bool = False
    use_attention_unknown: bool = False
    topk_known: int | None = 32
    topk_known_features: int | None = 32
    use_unknown: bool = True
    factorize_unknown: bool = True
    factorize_rank: int = 256
    unknown_topk: int | None = 128
    use_epsilon_correction: bool = True
    block_size: int = 4096
    pad_multiple: int = 16
    topk_on_logits: bool = False
    store_unknown_weights: bool = False
    apply_topk_to_unknown: bool = True
    inject_layer: int = 16
    inject_alpha: float = 1.0
    dictionary: DictionaryConfig | None = None

    @property
    def is_strict(self) -> bool:
        """Whether the output projection reads the sum of a dictionary's and the known concepts' features alone."""
        return self.dictionary is not None and not self.use_epsilon_correction

    def padded(self, n_concepts: int) -> int:
        """Rows of a concept table: `n_concepts` rounded up to a multiple of `pad_multiple`."""
        return -(-n_concepts // self.pad_multiple) * self.pad_multiple


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of a model: the backbone, the special token ids, and the bottleneck, under the published names.

    block_size: the longest text in tokens. diff_block_size: positions of a diffusion block. n_kv_heads: None for as
    many as `n_head`. intermediate_size: inner width of the MLP, None for `mlp_ratio` · `n_embd`. clip_qkv: the largest
    absolute value of queries, keys and values, None for no limit. weight_sharing: the output projection is the token
    embedding. instruct, eot_id: a model with turns, and the token that ends one. concept: None for a bare backbone.
    """

    interpretable: bool = True
    n_layers: int = 32
    n_head: int = 32
    n_embd: int = 4096
    block_size: int = 4096
    n_kv_heads: int | None = 4
    diff_block_size: int = 64
    use_rms_norm: bool = True
    norm_eps: float = 1e-5
    norm_order: Literal["pre", "post"] = "post"
    use_qk_norm: bool = True
    use_rope: bool = True
    rope_base: float = 500_000.0
    rope_full_precision: bool = True
    mlp_type: Literal["swiglu", "standard"] = "swiglu"
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    mlp_ratio: int = 4
    intermediate_size: int | None = None
    use_bias: bool = False
    clip_qkv: float | None = 10.0
    weight_sharing: bool = True
    vocab_size: int = 100_281
    instruct: bool = False
    pad_token_id: int = 100_277
    bos_token_id: int = 100_278
    eos_token_id: int = 100_257
    endofchunk_token_id: int = 100_279
    mask_token_id: int = 100_280
    eot_id: int | None = None
    concept: ConceptConfig | None = field(default_factory=ConceptConfig)

    def __post_init__(self) -> None:
        _validate(self)

    @property
    def width(self) -> int:
        return self.n_embd

    @property
    def context_length(self) -> int:
        return self.block_size

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        return self.n_head if self.n_kv_heads is None else self.n_kv_heads

    @property
    def mlp_width(self) -> int:
        return self.mlp_ratio * self.n_embd if self.intermediate_size is None else self.intermediate_size


def concept_counts(config: ModelConfig) -> tuple[int, int]:
    """The numbers of known and of discovered concepts; 0 for a head that the model does not have."""
    concept = config.concept
    if concept is None:
        return 0, 0
    return concept.n_concepts, (concept.n_unknown_concepts or 0) if concept.use_unknown else 0


def _validate(config: ModelConfig) -> None:
    for name in ("n_layers", "n_head", "n_embd", "block_size", "diff_block_size", "mlp_ratio", "vocab_size"):
        require(getattr(config, name) >= 1, f"{name} is {getattr(config, name)}, but it must be at least 1.")
    for name in ("n_kv_heads", "intermediate_size"):
        value = getattr(config, name)
        require(value is None or value >= 1, f"{name} is {value}, but it must be at least 1.")
    D, H = config.n_embd, config.n_head
    require(D % H == 0, f"n_embd ({D}) must be divisible by n_head ({H}).")
    require(H % config.kv_heads == 0, f"n_head ({H}) must be divisible by n_kv_heads ({config.kv_heads}).")
    require(
        not config.use_rope or config.head_dim % 2 == 0,
        f"the head size n_embd / n_head ({config.head_dim}) must be even for rotary embeddings.",
    )
    for name, allowed in (
        ("norm_order", ("pre", "post")),
        ("mlp_type", ("swiglu", "standard")),
        ("activation", ("gelu", "relu", "silu")),
    ):
        value = getattr(config, name)
        require(value in allowed, f"{name} is {value!r}, but it must be one of {', '.join(allowed)}.")
    require(config.norm_eps > 0, f"norm_eps is {config.norm_eps}, but it must be positive.")
    require(config.clip_qkv is None or config.clip_qkv > 0, f"clip_qkv is {config.clip_qkv}; use null for none.")
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "endofchunk_token_id", "mask_token_id", "eot_id"):
        value = getattr(config, name)
        require(
            value is None or 0 <= value < config.vocab_size,
            f"{name} is {value}, outside the vocabulary of {config.vocab_size}.",
        )
    require(
        config.interpretable == (config.concept is not None),
        "interpretable must be true exactly when concept is given.",
    )
    if config.concept is not None:
        _validate_concept(config.concept, D)


def _validate_concept(concept: ConceptConfig, width: int) -> None:
    for name in ("n_concepts", "max_concepts", "block_size", "pad_multiple", "factorize_rank"):
        require(getattr(concept, name) >= 1, f"{name} is {getattr(concept, name)}, but it must be at least 1.")
    for name in ("topk_known", "topk_known_features", "unknown_topk", "n_unknown_concepts"):
        value = getattr(concept, name)
        require(value is None or value >= 1, f"{name} is {value}, but it must be at least 1 (or null).")
    require(
        concept.concept_dim == width, f"concept_dim ({concept.concept_dim}) must equal the model's n_embd ({width})."
    )
    if concept.use_unknown:
        require(concept.n_unknown_concepts is not None, "n_unknown_concepts must be set when use_unknown is true.")
        require(
            not concept.factorize_unknown or concept.dictionary is not None or 16 <= concept.factorize_rank <= 1024,
            f"factorize_rank is {concept.factorize_rank}, but it must be between 16 and 1024.",
        )
    if concept.dictionary is not None:
        _validate_dictionary(concept, concept.dictionary)


def _validate_dictionary(concept: ConceptConfig, dictionary: DictionaryConfig) -> None:
    require(
        dictionary.format == 1,
        f"dictionary.format is {dictionary.format}, but this version reads format 1; use a newer version.",
    )
    rules = (
        ("use_unknown", concept.use_unknown, "true: a dictionary is a head of discovered concepts"),
        ("unknown_topk", concept.unknown_topk is not None, "a number: a dictionary keeps the largest weights"),
        ("apply_topk_to_unknown", concept.apply_topk_to_unknown, "true: a dictionary keeps the largest weights"),
        ("use_attention_unknown", not concept.use_attention_unknown, "false with a dictionary"),
        ("topk_on_logits", not concept.topk_on_logits, "false with a dictionary"),
    )
    for name, holds, demand in rules:
        require(holds, f"{name} is {getattr(concept, name)!r}, but it must be {demand}.")
