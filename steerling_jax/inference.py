"""`sj.forward` and `sj.hidden_states`: a model run once over given tokens, with validated arguments.

Programs are compiled once for each shape and set of options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from steerling_jax.bundle import Bundle, check_token_ids, encode
from steerling_jax.decoding.tables import Table, Tabular, counted
from steerling_jax.errors import UserError
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.edits import LayerEdit, check_layers, from_layer, inject
from steerling_jax.models.steerling import bottleneck as bn
from steerling_jax.models.steerling.config import ModelConfig, concept_counts
from steerling_jax.models.steerling.heads import Clamps, EpsilonRule
from steerling_jax.models.steerling.model import Decomposition, ForwardResult, compiled_forward
from steerling_jax.tokenizer import Tokenizer


class _Names(NamedTuple):
    """What a printed result needs beside the numbers: tokens (B, T) int32, and how tokens and concepts are called."""

    tokens: np.ndarray
    tokenizer: Tokenizer
    concepts: tuple[str, ...] | None


class NamedForwardResult(Tabular, ForwardResult):
    """A `ForwardResult`, logits (B, T, V) and their decomposition, that prints as a table with a row for each position;
    `to_dataframe` gives all rows."""

    names: _Names | None = None

    def table(self) -> Table:
        """A row for each position: its token, the likeliest one, and the strongest concepts."""
        assert self.names is not None
        tokens, tokenizer, concepts = self.names
        probabilities = np.asarray(jax.nn.softmax(self.logits, axis=-1).max(axis=-1)).reshape(-1)
        likeliest = np.asarray(self.logits.argmax(axis=-1)).reshape(-1)
        B, T = tokens.shape
        columns: dict[str, Any] = {"row": np.repeat(np.arange(B), T)} if B > 1 else {}
        columns |= {
            "position": np.tile(np.arange(T), B),
            "token": [tokenizer.piece(token) for token in tokens.reshape(-1).tolist()],
            "likeliest": [tokenizer.piece(token) for token in likeliest.tolist()],
            "probability": probabilities,
        }
        d = self.decomposition
        for kind, ids, logits in (
            ("known", d.known_topk_indices, d.known_topk_logits),
            ("discovered", d.unknown_topk_indices, d.unknown_topk_logits),
        ):
            if ids is not None and logits is not None:
                first = np.asarray(ids[..., 0]).reshape(-1).tolist()
                named = concepts if kind == "known" else None
                columns[kind] = [f"#{i}" if named is None else named[i] for i in first]
                columns[f"{kind}_activation"] = np.asarray(jax.nn.sigmoid(logits[..., 0])).reshape(-1)
        return Table(f"Forward pass over {counted(B * T, 'position')}", columns)

    def __repr__(self) -> str:
        # Inside a compiled function, and after `jax.tree.map`, there are no names or no numbers to print.
        concrete = isinstance(self.logits, jax.Array | np.ndarray) and not isinstance(self.logits, Tracer)
        return super().__repr__() if self.names is not None and concrete else ForwardResult.__repr__(self)

    def _repr_html_(self) -> str | None:
        return None if self.names is None else super()._repr_html_()


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
) -> NamedForwardResult:
    """Logits (B, T, V) and their decomposition into concepts, for a text, or token ids (T,) or (B, T), masks included.
    Prints as a table.

    Models of other families than Steerling have no concepts: the result has logits and `hidden`, and of the arguments
    they take `injection…` and `edits`.
    dense: also every concept's logit and weight, (B, T, C).
    intervene_known, intervene_unknown: known and discovered concept ids to the activations that they are clamped to.
    positions: where they are clamped, bool (T,) or (B, T); default all.
    epsilon: the correction term under a clamp, "published" (it is off where a known concept is clamped) or "frozen" (it
    is that of the unclamped pass, so that a clamp changes `composed` by exactly its own difference).
    injection: (T, D) or (B, T, D), multiplied by `inject_alpha` and added after every layer whose number (from 1) is at
    least `inject_layer`; default half the layers.
    edits: further changes to the outputs of layers (`models.edits.LayerEdit`), after the injection.
    large_head_threshold: the number of concepts above which clamps follow the rule for sparse heads.
    Raises `UserError` for invalid values, with the argument's name in `.field`.
    """
    backbone = bundle.backbone
    tokens = _tokens(bundle, token_ids, "token_ids")
    if epsilon not in ("published", "frozen"):
        raise UserError(f"epsilon is {epsilon!r}, but it must be 'published' or 'frozen'.", "epsilon")
    where = _check_positions(positions, tokens.shape)
    steerling = isinstance(bundle.config, ModelConfig)
    known_count, unknown_count = concept_counts(bundle.config) if steerling else (0, 0)
    known_clamps = _clamps("intervene_known", "known", intervene_known, known_count, where)
    discovered_clamps = _clamps("intervene_unknown", "discovered", intervene_unknown, unknown_count, where)
    check_layers(edits, backbone.n_layers, backbone.width)
    edits = (*_injection(injection, inject_layer, inject_alpha, tokens.shape, backbone), *edits)
    if not steerling:
        logits, hidden = _logits(bundle.params, jnp.asarray(tokens), backbone=backbone, edits=edits)
        return _named(ForwardResult(logits, Decomposition(hidden=hidden)), tokens, bundle)
    result = compiled_forward(
        bundle.params,
        jnp.asarray(tokens),
        config=bundle.config,
        compute=bundle.compute,
        dense=bool(dense),
        known_clamps=known_clamps,
        discovered_clamps=discovered_clamps,
        epsilon=epsilon,
        edits=edits,
        large=int(large_head_threshold),
    )
    return _named(result, tokens, bundle)


def _named(result: ForwardResult, tokens: np.ndarray, bundle: Bundle) -> NamedForwardResult:
    named = NamedForwardResult(*result)
    named.names = _Names(tokens, bundle.tokenizer, bundle.concept_names)
    return named


def hidden_states(bundle: Bundle, text_or_ids: Any, layers: Sequence[int]) -> dict[int, np.ndarray]:
    """Outputs of blocks, counted from 0, by block: {layer: (B, T, D)} float32, from one pass over the tokens.

    text_or_ids: a text, or token ids (T,) or (B, T), masks included. layers: blocks; the last one's output is read
    before the final norm. Raises `UserError` for a block that the model lacks; outputs of attention and MLP cannot be
    read.

    Example:
        >>> states = sj.hidden_states(bundle, "import json", layers=[0, 3])
        >>> states[3].shape  # one text, its tokens, the width
        (1, 3, 256)
    """
    tokens = _tokens(bundle, text_or_ids, "text_or_ids")
    count = bundle.config.n_layers
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise UserError(f"layers is {layers!r}; give a list of blocks, such as [0, {count - 1}].", "layers")
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int | np.integer) or not 0 <= layer < count:
            raise UserError(
                f"layers contains {layer!r}; give numbers of blocks from 0 to {count - 1}, whose outputs are returned.",
                "layers",
            )
    capture = tuple(sorted({int(layer) for layer in layers}))
    captured = jax.device_get(_captured(bundle.params, jnp.asarray(tokens), backbone=bundle.backbone, capture=capture))
    return {layer: np.asarray(values, np.float32) for layer, values in captured.items()}


@partial(jax.jit, static_argnames=("backbone",))
def _logits(
    params: Params, tokens: jax.Array, *, backbone: Backbone, edits: tuple[LayerEdit, ...]
) -> tuple[jax.Array, jax.Array]:
    hidden = backbone.run(params, backbone.embed(params, tokens), edits=edits).hidden
    return backbone.logits(params, hidden), hidden


@partial(jax.jit, static_argnames=("backbone", "capture"))
def _captured(
    params: Params, tokens: jax.Array, *, backbone: Backbone, capture: tuple[int, ...]
) -> dict[int, jax.Array]:
    return backbone.run(params, backbone.embed(params, tokens), capture=capture).captured


def _tokens(bundle: Bundle, text_or_ids: Any, argument: str) -> np.ndarray:
    """Token ids (B, T) int32 of a text or of ids."""
    if isinstance(text_or_ids, str):
        return encode(bundle, text_or_ids, argument)[None]
    return check_token_ids(text_or_ids, bundle.config, argument)


def _check_positions(positions: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Positions of a clamp, (B·T,) bool."""
    if positions is None:
        return np.ones(shape, bool).reshape(-1)
    where = np.asarray(positions)
    if where.dtype != np.bool_:
        raise UserError(f"positions contains {where.dtype} values; give booleans, one for each token.", "positions")
    if where.shape not in (shape, shape[1:]):
        raise UserError(f"positions has the shape {where.shape}; give {shape}, that of token_ids.", "positions")
    return np.broadcast_to(where, shape).reshape(-1)


def _clamps(
    argument: str, kind: str, values: Mapping[int, float] | None, count: int, positions: np.ndarray
) -> Clamps | None:
    """One head's clamps. None for an empty mapping too, as in the published package."""
    if not values:
        return None
    if count == 0:
        raise UserError(f"{argument} needs a model with {kind} concepts; this one has none.", argument)
    ids = list(values)
    for number in ids:
        if not isinstance(number, int | np.integer) or not 0 <= number < count:
            raise UserError(
                f"{argument} names the concept {number!r}, but {kind} concepts are 0 to {count - 1}.", argument
            )
    try:
        numbers = np.asarray([float(value) for value in values.values()], np.float32)
    except (TypeError, ValueError):
        raise UserError(
            f"{argument} must map concept ids to numbers, not {list(values.values())!r}.", argument
        ) from None
    return Clamps(jnp.asarray(ids, jnp.int32), jnp.asarray(numbers), jnp.asarray(positions))


def _injection(
    injection: Any, layer: int | None, alpha: float, shape: tuple[int, ...], backbone: Backbone
) -> tuple[LayerEdit, ...]:
    """An injection (T, D) or (B, T, D) as a layer edit; none without one."""
    if injection is None:
        return ()
    direction = np.asarray(injection, np.float32)
    expected = (*shape, backbone.width)
    if direction.shape not in (expected, expected[1:]):
        raise UserError(
            f"injection has the shape {direction.shape}; give {expected}: batch, positions, width.", "injection"
        )
    if layer is None:
        # As in steering; the published default, 16, is beyond the last layer of small models.
        layer = backbone.n_layers // 2
    vector = np.float32(alpha) * np.broadcast_to(direction, expected)
    return (inject(jnp.asarray(vector), layers=from_layer(layer, backbone.n_layers)),)
