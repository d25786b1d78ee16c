"""The layers' projections in their published shapes, and how they correspond to the parameters of this package.

The parameters hold the same numbers in the same order, but are split where devices shard them: `c_attn`
(D + 2·G·d, D) is `c_q` (D, D) followed by `c_kv` (2, G·d, D), keys first; `c_fc` (2F, D) is (2, F, D). Code that
identifies a model by its numbers (fingerprints, gradient features) uses the published shapes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

# Each published projection to the parameters that make it up, in the order of its rows.
PIECES: dict[str, tuple[str, ...]] = {"c_attn": ("c_q", "c_kv"), "c_fc": ("c_fc",)}
_SIDE_BY_SIDE = frozenset({"c_kv", "c_fc"})  # (m, rows, D): m projections of the same input


def fused(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters, or gradients of them, with the projections in their published shapes, under the published names.

    Layers stay stacked, and further leading axes (one for examples, for instance) are kept.
    """
    blocks = dict(params["blocks"])
    for module, names in (("attn", ("c_attn",)), ("mlp", ("c_fc",))):
        projections = dict(blocks[module])
        for name in names:
            pieces = [projections.pop(piece) for piece in PIECES[name]]
            kinds = pieces[0].keys()  # weight, and bias where there is one
            projections[name] = {kind: _join([piece[kind] for piece in pieces], PIECES[name], kind) for kind in kinds}
        blocks[module] = projections
    return {**params, "blocks": blocks}


def _join(leaves: list[Any], names: tuple[str, ...], kind: str) -> jax.Array:
    """The leaves `names` as one published leaf, joined along its rows."""
    trailing = 1 if kind == "weight" else 0  # axes after the rows
    rows = []
    for leaf, name in zip(leaves, names, strict=True):
        if name in _SIDE_BY_SIDE:
            at = leaf.ndim - 2 - trailing
            leaf = leaf.reshape(*leaf.shape[:at], -1, *leaf.shape[at + 2 :])
        rows.append(leaf)
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=-1 - trailing)
