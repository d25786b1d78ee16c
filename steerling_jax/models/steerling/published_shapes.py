"""The layers' projections as published: ours are split where devices split them, and hold the same numbers in the
same order.

`c_attn` (D + 2·G·d, D) is `c_q` (D, D) over `c_kv` (2, G·d, D), keys first; `c_fc` (2F, D) is ours as (2, F, D). What
names a model's numbers (fingerprints, gradient features) goes by the published shapes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

# A published projection to ours, in the order of its rows.
PIECES: dict[str, tuple[str, ...]] = {"c_attn": ("c_q", "c_kv"), "c_fc": ("c_fc",)}
_SIDE_BY_SIDE = frozenset({"c_kv", "c_fc"})  # (m, rows, D): maps of one input


def fused(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters, or gradients of them, with the projections fused as published, under the published names.

    Layers are stacked; further leading axes (one for examples, say) stay.
    """
    blocks = dict(params["blocks"])
    for module, names in (("attn", ("c_attn",)), ("mlp", ("c_fc",))):
        ours = dict(blocks[module])
        for name in names:
            pieces = [ours.pop(piece) for piece in PIECES[name]]
            kinds = pieces[0].keys()  # weight, and bias where there is one
            ours[name] = {kind: _joined([piece[kind] for piece in pieces], PIECES[name], kind) for kind in kinds}
        blocks[module] = ours
    return {**params, "blocks": blocks}


def _joined(leaves: list[Any], names: tuple[str, ...], kind: str) -> jax.Array:
    trailing = 1 if kind == "weight" else 0  # axes after the rows
    rows = []
    for leaf, name in zip(leaves, names, strict=True):
        if name in _SIDE_BY_SIDE:
            at = leaf.ndim - 2 - trailing
            leaf = leaf.reshape(*leaf.shape[:at], -1, *leaf.shape[at + 2 :])
        rows.append(leaf)
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=-1 - trailing)
