"""`forward` for people: array-likes in, one sentence for each mistake, compiled once per shape and options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle, check_token_ids
from steerling_jax.errors import UserError
from steerling_jax.models.edits import LayerEdit, from_layer, inject
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.config import ModelConfig, concept_counts
from steerling_jax.models.steerling.heads import Clamps, EpsilonRule
from steerling_jax.models.steerling.model import ForwardResult, compiled_forward


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
    edits: Sequence[LayerEdit] = (),
    large_head_threshold: int = bn.LARGE_CONCEPT_THRESHOLD,
) -> ForwardResult:
    """Logits (B, T, V) and the decomposition behind them, for token ids (T,) or (B, T), mask ids included.

    dense: also every concept's logit and weight, (B, T, C).
    intervene_known, intervene_unknown: concept id to activation, at `positions`, bool (T,) or (B, T), default all.
    epsilon: "published" (a known-concept clamp turns the correction off) or "frozen" (an edit moves `composed` by
    exactly its delta).
    injection: (T, D) or (B, T, D), added `inject_alpha` times after every layer whose 1-based number is at least
    `inject_layer`, default half the layers.
    edits: further changes to the outputs of layers (`models.edits.LayerEdit`), after the injection.
    large_head_threshold: concepts above which clamps follow the sparse rule.
    Raises `UserError` for bad values.
    """
    config = bundle.config
    tokens = check_token_ids(token_ids, config)
    if epsilon not in ("published", "frozen"):
        raise UserError(f"epsilon is {epsilon!r}, but it must be 'published' or 'frozen'.")
    where = _check_positions(positions, tokens.shape)
    known_count, unknown_count = concept_counts(config)
    return compiled_forward(
        bundle.params,
        jnp.asarray(tokens),
        config=config,
        compute=bundle.compute,
        dense=bool(dense),
        known_clamps=_clamps("intervene_known", "known", intervene_known, known_count, where),
        discovered_clamps=_clamps("intervene_unknown", "discovered", intervene_unknown, unknown_count, where),
        epsilon=epsilon,
        edits=(*_injection(injection, inject_layer, inject_alpha, tokens.shape, config), *edits),
        large=int(large_head_threshold),
    )


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
) -> tuple[LayerEdit, ...]:
    """An injection (T, D) or (B, T, D) as a layer edit; none without one."""
    if injection is None:
        return ()
    direction = np.asarray(injection, np.float32)
    wanted = (*shape, config.n_embd)
    if direction.shape not in (wanted, wanted[1:]):
        raise UserError(f"injection has the shape {direction.shape}; give {wanted}: batch, positions, width.")
    if layer is None:
        layer = config.n_layers // 2  # as steering does; the config's own default, 16, is past the end of small models
    vector = np.float32(alpha) * np.broadcast_to(direction, wanted)
    return (inject(jnp.asarray(vector), layers=from_layer(layer, config.n_layers)),)
