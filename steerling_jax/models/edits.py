"""Changes to the outputs of layers while a model runs: injection, projection and clamping are one kind of value.

Legend: X rows of a pass, B rows of an edit (X is a multiple of B), T positions, L layers, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from steerling_jax.errors import UserError


@struct.dataclass
class LayerEdit:
    """A change to the output x of chosen layers at chosen positions: `x + where · (push + (level − ⟨x, axis⟩) · axis)`.

    An injection (`h + α d`) has a `push` alone. A projection has an `axis` of length 1 and the level 0, which takes the
    component along the axis out of x; another level clamps that component. Absent parts are None.

    push: (L or 1, B, T or 1, D), what is added, for each layer or the same for all.
    axis: (B, D) float32 of length 1. level: (B,) float32, the component of x along it after the edit.
    where: (X, T) bool, the positions; None for all. layers: (L or fewer,) bool, the layers; None for all. Layers beyond
        its end are not changed.
    generated_only: whether generation makes the change at generated tokens alone, not at the prompt; it sets `where`.
    """

    push: jax.Array | None = None
    axis: jax.Array | None = None
    level: jax.Array | None = None
    where: jax.Array | None = None
    layers: jax.Array | None = None
    generated_only: bool = struct.field(pytree_node=False, default=False)

    def apply(self, x: jax.Array, layer: jax.Array | int) -> jax.Array:
        """The output x (X, T, D) of block `layer`, counted from 0, as the next block reads it; in x's dtype."""
        change = jnp.zeros((), jnp.float32)
        if self.push is not None:
            change = change + _for_rows(self.push[layer if self.push.shape[0] > 1 else 0].astype(jnp.float32), len(x))
        if self.axis is not None:
            level = jnp.zeros(len(self.axis)) if self.level is None else self.level
            axis, level = _for_rows(self.axis[:, None, :], len(x)), _for_rows(level[:, None, None], len(x))
            along = jnp.sum(x.astype(jnp.float32) * axis, axis=-1, keepdims=True)
            change = change + (level - along) * axis
        if self.layers is not None:
            change = jnp.where(self.layers.at[layer].get(mode="fill", fill_value=False), change, 0.0)
        if self.where is not None:
            change = jnp.where(self.where[:, :, None], change, 0.0)
        return x + change.astype(x.dtype)


def inject(vector: jax.Array, layers: jax.Array | None = None, where: jax.Array | None = None) -> LayerEdit:
    """Adds `vector` (B, T or 1, D) to the outputs of the chosen layers, the same at each."""
    return LayerEdit(push=vector[None], layers=layers, where=where)


def push_output(vector: jax.Array, layer: int, generated_only: bool = False) -> LayerEdit:
    """Adds `vector` (D,) to the output of block `layer`, counted from 0."""
    return LayerEdit(
        push=vector[None, None, None, :], layers=jnp.arange(layer + 1) == layer, generated_only=generated_only
    )


def project_out(axis: jax.Array, layers: jax.Array | None = None, where: jax.Array | None = None) -> LayerEdit:
    """Takes the component along `axis` (B, D), of length 1, out of the outputs of the chosen layers."""
    return LayerEdit(axis=axis, layers=layers, where=where)


def from_layer(first: jax.Array | int, n_layers: int) -> jax.Array:
    """The layers (L,) bool whose number, counted from 1 as steering settings count them, is at least `first`."""
    return jnp.arange(1, n_layers + 1) >= first


def check_layers(edits: Sequence[LayerEdit], n_layers: int, width: int) -> None:
    """Raises `UserError`, naming the edit, for values that are no edits and for edits of another model's layers."""
    for number, edit in enumerate(edits):
        name = f"edits[{number}]"
        if not isinstance(edit, LayerEdit):
            raise UserError(f"{name} is {edit!r:.60}; give a LayerEdit, as `inject` makes one.", "edits")
        if edit.layers is not None and len(edit.layers) > n_layers:
            raise UserError(
                f"{name}.layers has {len(edit.layers)} entries, but the model has {n_layers} layers.", "edits"
            )
        if edit.push is not None and edit.push.shape[0] not in (1, n_layers):
            raise UserError(
                f"{name}.push is for {edit.push.shape[0]} layers, but the model has {n_layers}; give one push, or one "
                "for each layer.",
                "edits",
            )
        for field in ("push", "axis"):
            values = getattr(edit, field)
            if values is not None and values.shape[-1] != width:
                raise UserError(
                    f"{name}.{field} has the shape {values.shape}, but the model's width is {width}.", "edits"
                )


def apply_edits(x: jax.Array, layer: jax.Array | int, edits: Sequence[LayerEdit]) -> jax.Array:
    """The output x (X, T, D) of block `layer` after all `edits`, in their order."""
    for edit in edits:
        x = edit.apply(x, layer)
    return x


def _for_rows(values: jax.Array, rows: int) -> jax.Array:
    """Values (B, T, D) for X rows: branches and drafts of a request follow each other and share its edit."""
    B = values.shape[0]
    if rows == B or B == 1:
        return values
    repeated = jnp.broadcast_to(values[:, None], (B, rows // B, *values.shape[1:]))
    return repeated.reshape(rows, *values.shape[1:])
