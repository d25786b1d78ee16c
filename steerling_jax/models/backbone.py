"""The interface that model families share: a backbone is a frozen object of functions of (params, arrays).

Whatever reads, steers, decodes or trains a model goes through these functions, so that another family needs one
implementation of them and nothing else.

Legend: B rows, T positions, D width, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax

Params = dict[str, Any]

# What earlier positions leave for later ones, as an explicit value: keys and values of attention layers, the state of
# recurrent ones. A pytree of fixed shapes, so that a decoding loop can carry it through `lax.scan` or `while_loop`.
Cache = Any

# The entry of `params` with an attached bottleneck: a pytree that is called with hidden states (B, T, D) after the
# final norm and returns those that the output projection reads (`autoencoders.bottleneck.Bottleneck`).
BOTTLENECK = "bottleneck"


def through_bottleneck(params: Params, hidden: jax.Array) -> jax.Array:
    """Hidden states (B, T, D) after the final norm as the output projection reads them: replaced by the attached
    bottleneck's, if there is one."""
    return params[BOTTLENECK](hidden) if BOTTLENECK in params else hidden


class BackboneConfig(Protocol):
    """What the configurations of all model families have."""

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        ...

    @property
    def width(self) -> int:
        """Width D of hidden states."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        ...

    @property
    def context_length(self) -> int:
        """The longest text in tokens."""
        ...


class PassResult(NamedTuple):
    """hidden (B, T, D): after the final norm, and after an attached bottleneck. cache: for the positions that
    follow. captured: by layer, counted from 0, its output (B, T, D) after edits, for the layers in `capture`."""

    hidden: jax.Array
    cache: Cache
    captured: dict[int, jax.Array]


class Run(Protocol):
    """The layers of a model."""

    def __call__(
        self,
        params: Params,
        x: jax.Array,
        *,
        start: jax.Array | int = 0,
        lengths: jax.Array | None = None,
        cache: Cache | None = None,
        edits: tuple[Any, ...] = (),
        capture: tuple[int, ...] = (),
    ) -> PassResult:
        """Embeddings x (B, T, D) of the positions from `start` on, () int32, or (B,) for each row its own.

        lengths: (B,) int32, where each row's padding begins, from 0 to T; None for no padding. Padding is at the end of
        a row: no token sees it, and what later passes see of the cache does not depend on it. Hidden states there have
        no meaning. A row of length 0 leaves its part of the cache as it is. cache: what the positions before `start`
        left; None for none. It has room for `start` + T positions, padding included. The result's cache is it with
        these positions added. edits: changes to layers' outputs (`models.edits.LayerEdit`), in their order. capture:
        layers, counted from 0, whose outputs are returned.
        """
        ...


@dataclass(frozen=True)
class Backbone:
    """A model family's functions, bound to one configuration.

    embed: (params, tokens (B, T) int32) to (B, T, D). run: see `Run`. logits: (params, hidden (..., D)) to (..., V)
    float32. empty_cache: (rows, positions) to the cache that `run` takes at position 0, with room for so many
    positions; every leaf has a row axis, the only one whose size depends on the number of rows.
    """

    n_layers: int
    width: int
    vocab_size: int
    embed: Callable[[Params, jax.Array], jax.Array]
    run: Run
    logits: Callable[[Params, jax.Array], jax.Array]
    empty_cache: Callable[[int, int], Cache]
