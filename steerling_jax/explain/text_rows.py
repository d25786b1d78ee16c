"""The hidden rows of texts at some layers, all from one pass of the model, and which of them have an extreme norm.

A model's first position may have a norm a hundred times that of others; such rows would own the strongest latents of
many features.

Legend: T tokens of a text, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.autoencoders.bottleneck import detach_bottleneck
from steerling_jax.bundle import Bundle, encode
from steerling_jax.errors import require
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.progress import Progress, no_progress

_NORM_LIMIT = 6.0  # times the median norm of the text's rows
_LONGEST = 512  # tokens of a text that are read together; longer texts are read in parts


class TextRows(NamedTuple):
    """A text, or a part of a long one: its number, token ids (T,), and for each layer the rows (T, D) float32 and
    which of them have a usual norm, (T,) bool."""

    text: int
    tokens: np.ndarray
    rows: tuple[np.ndarray, ...]
    usual: tuple[np.ndarray, ...]


def text_rows(
    bundle: Bundle,
    layers: Sequence[int | None],
    texts: Sequence[str | Sequence[int]],
    progress: Progress = no_progress,
) -> Iterator[TextRows]:
    """Outputs of blocks, counted from 0, or the rows after the final norm for a layer that is None.

    texts: as strings, or as token ids with all that belongs before a text. A bottleneck is left out. Raises `UserError`
    for an empty text.
    """
    plain = detach_bottleneck(bundle)
    longest = min(_LONGEST, bundle.config.context_length)
    for number, text in enumerate(texts):
        progress("reading texts", number, len(texts))
        ids = [*plain.tokenizer.prefix, *plain.tokenizer.encode(text)] if isinstance(text, str) else list(text)
        require(len(ids) > 0, f"Text {number + 1} is empty; remove it.", "texts")
        for start in range(0, len(ids), longest):
            yield rows_of(plain, layers, ids[start : start + longest], number)
    progress("reading texts", len(texts), len(texts))


def rows_of(bundle: Bundle, layers: Sequence[int | None], ids: Sequence[int], number: int = 0) -> TextRows:
    """The rows of token ids that are read together, without the model's bottleneck if it has one."""
    plain = detach_bottleneck(bundle)
    tokens = encode(plain, list(ids), "texts")
    # Powers of two, so that texts of many lengths share few programs.
    longest = min(_LONGEST, bundle.config.context_length)
    size = max(len(tokens), min(longest, max(16, 1 << (len(tokens) - 1).bit_length())))
    padded = jnp.asarray(np.pad(tokens, (0, size - len(tokens))))[None]
    result = _rows(plain.params, padded, jnp.asarray([len(tokens)]), backbone=plain.backbone, layers=tuple(layers))
    rows = tuple(np.asarray(one)[0, : len(tokens)] for one in jax.device_get(result))
    norms = [np.linalg.norm(one, axis=1) for one in rows]
    return TextRows(number, tokens, rows, tuple(norm <= _NORM_LIMIT * np.median(norm) for norm in norms))


@partial(jax.jit, static_argnames=("backbone", "layers"))
def _rows(
    params: Params, tokens: jax.Array, lengths: jax.Array, *, backbone: Backbone, layers: tuple[int | None, ...]
) -> list[jax.Array]:
    capture = tuple(sorted({layer for layer in layers if layer is not None}))
    result = backbone.run(params, backbone.embed(params, tokens), lengths=lengths, capture=capture)
    return [(result.hidden if one is None else result.captured[one]).astype(jnp.float32) for one in layers]
