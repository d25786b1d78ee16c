"""The layer edits of a request: validated, placed at the positions of a pass, and compared with those of others.

Legend: X rows of a pass, T positions.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import jax
import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.models.backbone import BackboneConfig
from steerling_jax.models.edits import LayerEdit, check_layers


def check_edits(edits: Sequence[LayerEdit], config: BackboneConfig) -> None:
    """Raises `UserError` for an edit that generation cannot apply to every pass of one text."""
    check_layers(edits, config.n_layers, config.width)
    for number, edit in enumerate(edits):
        name = f"edits[{number}]"
        if edit.where is not None:
            raise UserError(
                f"{name} has a `where`, but positions differ from pass to pass; set generated_only.", "edits"
            )
        for field, axes in (("push", (1, 2)), ("axis", (0,)), ("level", (0,))):
            values = getattr(edit, field)
            if values is not None and any(values.shape[axis] != 1 for axis in axes):
                raise UserError(
                    f"{name}.{field} has the shape {values.shape}, but generation needs one row and, in a push, one "
                    "position: the same edit everywhere.",
                    "edits",
                )


def place_edits(edits: Sequence[LayerEdit], generated: jax.Array) -> tuple[LayerEdit, ...]:
    """The edits of a pass; generated (X, T) bool: its positions after the prompt."""
    return tuple(dataclasses.replace(edit, where=generated) if edit.generated_only else edit for edit in edits)


def edits_digest(edits: Sequence[LayerEdit]) -> bytes:
    """16 bytes that are equal for equal edits only; nothing for no edits.

    Requests of one lane have the same edits, and so do those that share the keys and values of a prefix.
    """
    if not edits:
        return b""
    digest = hashlib.blake2b(digest_size=16)
    for edit in edits:
        for field in dataclasses.fields(edit):
            value = getattr(edit, field.name)
            digest.update(field.name.encode())
            if value is not None:
                array = np.asarray(value)
                digest.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.digest()
