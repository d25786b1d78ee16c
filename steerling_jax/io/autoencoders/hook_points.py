"""Hook points, the places in a model that an autoencoder reads, as the libraries name them.

All autoencoders here read the output of a block. A hook point *before* block n is the output of block n − 1.
"""

from __future__ import annotations

import re

from steerling_jax.errors import UserError

_TRANSFORMER_LENS = re.compile(r"blocks\.(?P<layer>\d+)\.hook_(?:resid_(?P<side>pre|post)|(?P<other>\w+))")
_HUGGING_FACE = re.compile(r"(?:model\.)?(?:language_model\.)?layers\.(?P<layer>\d+)(?:\.output)?")


def layer_of(hook: str, name: str) -> int:
    """The block whose output a hook point is, counted from 0. Raises `UserError`, naming it, if it is another place."""
    if found := _TRANSFORMER_LENS.fullmatch(hook):
        layer = int(found["layer"]) - (found["side"] == "pre")
        if found["side"] and layer >= 0:
            return layer
    elif found := _HUGGING_FACE.fullmatch(hook):
        return int(found["layer"])
    raise UserError(
        f"{name} reads the hook point {hook!r}; only the outputs of blocks are supported, such as "
        "'blocks.3.hook_resid_post'."
    )


def one_layer(layers: dict[str, int | None], name: str) -> int | None:
    """The layer that several places agree on: by place, what it says, None if nothing.

    Raises `UserError` that names two places that differ.
    """
    said = {place: layer for place, layer in layers.items() if layer is not None}
    first = next(iter(said), "")
    for place, layer in said.items():
        if layer != said[first]:
            raise UserError(
                f"{name}: {first} says layer {said[first]}, but {place} says {layer}; give the file of the right layer."
            )
    return said.get(first)
