"""One vector for a text, taken where the model's representation has a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import jax.numpy as jnp
import numpy as np

from steerling_jax.errors import UserError
from steerling_jax.inference import compiled_features, compiled_hidden, encode

if TYPE_CHECKING:
    from steerling_jax.api import Bundle

Kind = Literal["hidden", "composed", "known", "discovered"]
Pooling = Literal["mean", "last", "first", "none"]


def embed(
    bundle: Bundle, text_or_ids: str | Sequence[int], kind: Kind = "hidden", pooling: Pooling = "mean"
) -> np.ndarray:
    """A text's embedding (D,) float32, or (T, D) with pooling "none".

    kind: the last hidden states, what goes to the logits, or the part of it from known or from discovered concepts
    (hidden − known features in a model without discovered concepts, as published). Raises `UserError` for bad values.
    """
    if kind not in ("hidden", "composed", "known", "discovered"):
        raise UserError(f"kind is {kind!r}, but it must be 'hidden', 'composed', 'known' or 'discovered'.")
    if pooling not in ("mean", "last", "first", "none"):
        raise UserError(f"pooling is {pooling!r}, but it must be 'mean', 'last', 'first' or 'none'.")
    if bundle.config.concept is None and kind in ("known", "discovered"):
        raise UserError(f"kind {kind!r} needs a model with concepts; a bare backbone has 'hidden' and 'composed'.")
    tokens = jnp.asarray(encode(bundle, text_or_ids, "text"))[None]
    if kind == "hidden" or bundle.config.concept is None:
        found = compiled_hidden(bundle.params, tokens, config=bundle.config, compute=bundle.compute)
    else:
        found = compiled_features(bundle.params, tokens, config=bundle.config, compute=bundle.compute, kind=kind)
    rows = np.asarray(found[0], np.float32)
    if pooling == "none":
        return rows
    return {"mean": rows.mean(axis=0), "last": rows[-1], "first": rows[0]}[pooling]
