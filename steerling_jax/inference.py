"""`forward` for people: array-likes in, one sentence for each mistake, compiled once per shape and options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from steerling_jax import bottleneck as bn
from steerling_jax import model
from steerling_jax.backbone import Injection, LayerEdit, Params, embed_tokens, run_backbone
from steerling_jax.config import Compute, ModelConfig
from steerling_jax.errors import UserError
from steerling_jax.head_view import known_spec, unknown_spec
from steerling_jax.heads import Clamps, EpsilonRule, run_head
from steerling_jax.model import ForwardResult

if TYPE_CHECKING:
    from steerling_jax.api import Bundle

# The model's forward, compiled; JAX keeps one program for each config, set of options and shape.
compiled_forward = partial(jax.jit, static_argnames=("config", "compute", "dense", "epsilon", "large"))(model.forward)


@partial(jax.jit, static_argnames=("config", "compute"))
def compiled_hidden(
    params: Params, tokens: jax.Array, *, config: ModelConfig, compute: Compute, injection: LayerEdit | None = None
) -> jax.Array:
    """tokens (B, T) to hidden states (B, T, D), heads and output projection left out."""
    x = embed_tokens(params, tokens, compute)
    return run_backbone(params, x, config=config, compute=compute, injection=injection)[0]


@struct.dataclass
class RowClamps:
    """Concepts set by hand while text is written: known and unknown as (ids (J,), values (J,)), None for no clamp; at
    offsets after the prompt from `start` up to `end`, () int32; epsilon: see `forward`."""

    known: tuple[jax.Array, jax.Array] | None
    unknown: tuple[jax.Array, jax.Array] | None
    start: jax.Array
    end: jax.Array
    epsilon: EpsilonRule = struct.field(pytree_node=False, default="published")

    def at(self, which: tuple[jax.Array, jax.Array] | None, offsets: jax.Array) -> Clamps | None:
        """One head's clamps on rows at `offsets` (N,)."""
        return None if which is None else Clamps(*which, (offsets >= self.start) & (offsets < self.end))


def logit_features(
    params: Params, hidden: jax.Array, config: ModelConfig, compute: Compute, clamps: RowClamps | None = None,
    offsets: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """Hidden rows (N, D) to the rows (N, D) that the output projection reads, with `clamps` on rows at `offsets` (N,).

    Unclamped, with the epsilon correction on, they are the hidden rows themselves, up to rounding, and the heads are
    skipped (not under faithful rounding).
    """
    concept = config.concept
    if concept is None or (clamps is None and concept.use_epsilon_correction and not compute.faithful_rounding):
        return hidden
    known_clamps = unknown_clamps = None
    rule: EpsilonRule = "published"
    if clamps is not None:
        assert offsets is not None
        known_clamps, unknown_clamps = clamps.at(clamps.known, offsets), clamps.at(clamps.unknown, offsets)
        rule = clamps.epsilon
    known = run_head(params["known_head"], hidden, known_spec(concept), compute, known_clamps, rule)
    spec = unknown_spec(concept)
    unknown = None
    if spec is not None:
        unknown = run_head(params["unknown_head"], hidden, spec, compute, unknown_clamps, rule)
    use_epsilon, clamped = concept.use_epsilon_correction, known_clamps is not None
    return model.compose(hidden, known, unknown, use_epsilon=use_epsilon, rule=rule, known_clamped=clamped)[0]


def forward(
    bundle: Bundle,
    token_ids: Any,
    *,
    dense: bool = False,
    intervene_known: Mapping[int, float] | None = None,
    intervene_unknown: Mapping[int, float] | None = None,
    positions: Any = None,
    epsilon: EpsilonRule = "published",
    injection: Any = None,
    inject_layer: int | None = None,
    inject_alpha: float = 1.0,
    large_head_threshold: int = bn.LARGE_CONCEPT_THRESHOLD,
) -> ForwardResult:
    """Logits (B, T, V) and the decomposition behind them, for token ids (T,) or (B, T), mask ids included.

    dense: also every concept's logit and weight, (B, T, C).
    intervene_known, intervene_unknown: concept id to activation, at `positions`, bool (T,) or (B, T), default all.
    epsilon: "published" (a known-concept clamp turns the correction off) or "frozen" (an edit moves `composed` by
    exactly its delta).
    injection: (T, D) or (B, T, D), added `inject_alpha` times after every layer whose 1-based number is at least
    `inject_layer`, default half the layers.
    large_head_threshold: concepts above which clamps follow the sparse rule.
    Raises `UserError` for bad values.
    """
    config = bundle.config
    tokens = check_token_ids(token_ids, config)
    if epsilon not in ("published", "frozen"):
        raise UserError(f"epsilon is {epsilon!r}, but it must be 'published' or 'frozen'.")
    where = _check_positions(positions, tokens.shape)
    known_count, unknown_count = _concept_counts(config)
    return compiled_forward(
        bundle.params,
        jnp.asarray(tokens),
        config=config,
        compute=bundle.compute,
        dense=bool(dense),
        known_clamps=_clamps("intervene_known", "known", intervene_known, known_count, where),
        unknown_clamps=_clamps("intervene_unknown", "discovered", intervene_unknown, unknown_count, where),
        epsilon=epsilon,
        injection=_injection(injection, inject_layer, inject_alpha, tokens.shape, config),
        large=int(large_head_threshold),
    )


def check_token_ids(token_ids: Any, config: ModelConfig, what: str = "token_ids") -> np.ndarray:
    """Token ids as int32 (B, T). `UserError` when empty, ragged, too long, no integers, or not in the vocabulary."""
    try:
        tokens = np.asarray(token_ids)
    except ValueError:
        raise UserError(f"{what} has rows of different lengths; give rows of one length.") from None
    if tokens.size == 0:
        raise UserError(f"{what} is empty; give at least one token.")
    if tokens.ndim not in (1, 2):
        raise UserError(f"{what} has the shape {tokens.shape}; give (T,) or (B, T).")
    if not np.issubdtype(tokens.dtype, np.integer):
        raise UserError(f"{what} holds {tokens.dtype} values; give integer token ids.")
    outside = tokens[(tokens < 0) | (tokens >= config.vocab_size)]
    if outside.size:
        raise UserError(f"{what} holds the id {outside[0]}, outside the vocabulary of {config.vocab_size}.")
    if tokens.shape[-1] > config.block_size:
        raise UserError(f"{what} has {tokens.shape[-1]} tokens, more than the model's context of {config.block_size}.")
    return np.atleast_2d(tokens).astype(np.int32)


def encode(bundle: Bundle, text_or_ids: str | Sequence[int], what: str) -> np.ndarray:
    """Text through the model's tokenizer, or ids as they are, to checked ids (T,) int32."""
    if isinstance(text_or_ids, str):
        if not text_or_ids:
            raise UserError(f"{what} is empty; give some text.")
        text_or_ids = bundle.tokenizer.encode(text_or_ids)
    tokens = check_token_ids(text_or_ids, bundle.config, what)
    if tokens.shape[0] != 1:
        raise UserError(f"{what} has {tokens.shape[0]} rows; give one at a time.")
    return tokens[0]


def check_weights(params: Params, name: str) -> None:
    """Raises `UserError` where a weight is no number."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not bool(jnp.isfinite(leaf).all()):
            where = "/".join(str(getattr(key, "key", key)) for key in path)
            raise UserError(f"{name or 'The model'} has a weight in {where} that is no number (NaN): load a sound one.")


def _check_positions(positions: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Positions of a clamp, (B·T,) bool."""
    if positions is None:
        return np.ones(shape, bool).reshape(-1)
    where = np.asarray(positions)
    if where.dtype != np.bool_:
        raise UserError(f"positions holds {where.dtype} values; give booleans, one a token.")
    if where.shape not in (shape, shape[1:]):
        raise UserError(f"positions has the shape {where.shape}; give {shape}, as token_ids.")
    return np.broadcast_to(where, shape).reshape(-1)


def _concept_counts(config: ModelConfig) -> tuple[int, int]:
    concept = config.concept
    if concept is None:
        return 0, 0
    return concept.n_concepts, (concept.n_unknown_concepts or 0) if concept.use_unknown else 0


def _clamps(
    option: str, kind: str, values: Mapping[int, float] | None, count: int, positions: np.ndarray
) -> Clamps | None:
    """An empty mapping clamps nothing (published)."""
    if not values:
        return None
    if count == 0:
        raise UserError(f"{option} needs a model with {kind} concepts; this one has none.")
    ids = list(values)
    for number in ids:
        if not isinstance(number, int | np.integer) or not 0 <= number < count:
            raise UserError(f"{option} names the concept {number!r}, but {kind} concepts are 0 to {count - 1}.")
    try:
        numbers = np.asarray([float(value) for value in values.values()], np.float32)
    except (TypeError, ValueError):
        raise UserError(f"{option} must map concept ids to numbers, not {list(values.values())!r}.") from None
    return Clamps(jnp.asarray(ids, jnp.int32), jnp.asarray(numbers), jnp.asarray(positions))


def _injection(
    injection: Any, layer: int | None, alpha: float, shape: tuple[int, ...], config: ModelConfig
) -> Injection | None:
    if injection is None:
        return None
    direction = np.asarray(injection, np.float32)
    wanted = (*shape, config.n_embd)
    if direction.shape not in (wanted, wanted[1:]):
        raise UserError(f"injection has the shape {direction.shape}; give {wanted}: batch, positions, width.")
    if layer is None:
        layer = config.n_layers // 2  # as steering does; the config's own default, 16, is past the end of small models
    return Injection(
        jnp.asarray(np.broadcast_to(direction, wanted)),
        jnp.full((shape[0],), alpha, jnp.float32),
        jnp.asarray(layer, jnp.int32),
    )
