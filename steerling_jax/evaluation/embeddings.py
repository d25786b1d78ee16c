"""Embeddings of texts: hidden states, or the part of them from known or discovered concepts, pooled over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, overload

import jax
import numpy as np

from steerling_jax.bundle import Bundle, encode
from steerling_jax.decoding.tables import Table
from steerling_jax.errors import require
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.batching import by_length, stack
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import decompose, logit_features
from steerling_jax.models.steerling.heads import run_known_head


class Embedding(np.ndarray):
    """Embeddings of texts that print as a table. What is computed from them is a plain array."""

    kind: str | None = None  # None for slices and copies, which print as arrays
    pooling: str = ""
    lengths: tuple[int, ...] = ()  # tokens of each text

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)

    def table(self) -> Table:
        """A row for each text, or for each token with pooling "none"."""
        rows = np.asarray(self).reshape(-1, self.shape[-1])
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
        columns: dict[str, Any] = {
            "number": np.arange(len(rows)),
            "norm": np.linalg.norm(rows, axis=1),
            "cosine_to_first": unit @ unit[0],
        }
        if len(self.lengths) == len(rows):
            columns["tokens"] = list(self.lengths)
        values = f"{len(rows)} vectors" if len(rows) > 1 else "A vector"
        return Table(f"{values} of {rows.shape[1]} {self.kind} features, pooling {self.pooling!r}", columns)

    def to_dataframe(self) -> Any:
        """A row for each vector and a column for each feature, as a `pandas.DataFrame`. Raises `UserError` without
        pandas."""
        rows = np.asarray(self).reshape(-1, self.shape[-1])
        return Table("", {f"feature_{i}": rows[:, i] for i in range(rows.shape[1])}).to_dataframe()

    def __repr__(self) -> str:
        return repr(np.asarray(self)) if self.kind is None else self.table().text()

    __str__ = __repr__

    def _repr_html_(self) -> str | None:
        return None if self.kind is None else self.table().html()


def _named(array: np.ndarray, kind: str, pooling: str, texts: Sequence[np.ndarray]) -> Embedding:
    embedding = array.view(Embedding)
    embedding.kind, embedding.pooling, embedding.lengths = kind, pooling, tuple(map(len, texts))
    return embedding


Kind = Literal["hidden", "composed", "known", "discovered"]
Pooling = Literal["mean", "last", "first", "none"]
Text = str | Sequence[int] | np.ndarray


@overload
def embed(
    bundle: Bundle, text_or_ids: Text, kind: Kind = "hidden", pooling: Pooling = "mean", batch_size: int = 16
) -> Embedding: ...
@overload
def embed(
    bundle: Bundle,
    text_or_ids: Sequence[Text],
    kind: Kind = "hidden",
    *,
    pooling: Literal["none"],
    batch_size: int = 16,
) -> list[Embedding]: ...
@overload
def embed(
    bundle: Bundle,
    text_or_ids: Sequence[Text],
    kind: Kind = "hidden",
    pooling: Literal["mean", "last", "first"] = "mean",
    batch_size: int = 16,
) -> Embedding: ...
def embed(
    bundle: Bundle,
    text_or_ids: Text | Sequence[Text],
    kind: Kind = "hidden",
    pooling: Pooling = "mean",
    batch_size: int = 16,
) -> Embedding | list[Embedding]:
    """The embedding of a text, (D,) float32, or (T, D) with pooling "none"; of N texts (N, D), or a list of N (T, D).

    kind: "hidden", the last hidden states; "composed", what the output projection reads, in a model without concepts
    the same; "known" or "discovered", the part of it from these concepts (in a model without discovered concepts
    hidden − known features, as published).
    pooling: over the tokens. Several texts are processed in batches of `batch_size`, padded to one of a few lengths so
    that few programs are compiled; no token attends to padding, so a text's embedding does not depend on the others, up
    to rounding. The arrays print as tables and have `to_dataframe`. Raises `UserError` for invalid values.
    """
    require(
        kind in ("hidden", "composed", "known", "discovered"),
        f"kind is {kind!r}, but it must be 'hidden', 'composed', 'known' or 'discovered'.",
    )
    require(
        pooling in ("mean", "last", "first", "none"),
        f"pooling is {pooling!r}, but it must be 'mean', 'last', 'first' or 'none'.",
    )
    require(batch_size >= 1, f"batch_size is {batch_size}, but it must be at least 1.")
    require(
        kind in ("hidden", "composed")
        or (isinstance(bundle.config, ModelConfig) and bundle.config.concept is not None),
        f"kind {kind!r} needs a model with concepts; this one has 'hidden' and 'composed'.",
    )
    if not _are_many(text_or_ids):
        text = encode(bundle, text_or_ids, "text")  # type: ignore[arg-type]
        return _named(_embed(bundle, [text], kind, pooling, 1)[0], kind, pooling, [text])
    texts = [encode(bundle, text, f"text {number}") for number, text in enumerate(text_or_ids)]  # type: ignore[arg-type]
    embedded = _embed(bundle, texts, kind, pooling, batch_size)
    if pooling == "none":
        return [_named(one, kind, pooling, [text]) for one, text in zip(embedded, texts, strict=True)]
    return _named(np.stack(embedded), kind, pooling, texts)


def _are_many(text_or_ids: Any) -> bool:
    """Whether the argument is several texts: a sequence of strings or of sequences of ids, not of ids."""
    if isinstance(text_or_ids, str) or len(text_or_ids) == 0:
        return False
    return isinstance(text_or_ids[0], str) or np.ndim(text_or_ids[0]) > 0


def _embed(bundle: Bundle, texts: list[np.ndarray], kind: Kind, pooling: Pooling, batch_size: int) -> list[np.ndarray]:
    """The embeddings of texts given as tokens (T,), in their order."""
    embedded: dict[int, np.ndarray] = {}
    for padded, numbers in by_length([len(text) for text in texts], bundle.config).items():
        for first in range(0, len(numbers), batch_size):
            batch = numbers[first : first + batch_size]
            tokens, lengths = stack([texts[number] for number in batch], batch_size, padded)
            hidden = _hidden(bundle.params, tokens, lengths, backbone=bundle.backbone)
            features = hidden
            if isinstance(bundle.config, ModelConfig) and kind != "hidden":
                features = _features(bundle.params, hidden, config=bundle.config, compute=bundle.compute, kind=kind)
            for number, rows, length in zip(batch, np.asarray(features, np.float32), lengths, strict=False):
                embedded[number] = _pooled(rows[:length], pooling).copy()  # a view would keep the whole batch in memory
    return [embedded[number] for number in range(len(texts))]


def _pooled(rows: np.ndarray, pooling: Pooling) -> np.ndarray:
    """Features (T, D) of a text to (D,), or unchanged for "none"."""
    if pooling == "mean":
        return rows.mean(axis=0)
    return {"last": rows[-1], "first": rows[0], "none": rows}[pooling]


@partial(jax.jit, static_argnames=("backbone",))
def _hidden(params: Params, tokens: jax.Array, lengths: jax.Array, *, backbone: Backbone) -> jax.Array:
    """tokens (B, T), padded after `lengths` (B,), to hidden states (B, T, D)."""
    return backbone.run(params, backbone.embed(params, tokens), lengths=lengths).hidden


@partial(jax.jit, static_argnames=("config", "compute", "kind"))
def _features(params: Params, hidden: jax.Array, *, config: ModelConfig, compute: Compute, kind: Kind) -> jax.Array:
    """Hidden states (B, T, D) to the features of a Steerling model, of the same shape."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    if kind == "composed":
        rows = logit_features(params, rows, config, compute)
    elif kind == "known":
        rows = run_known_head(params, rows, config, compute).features
    else:
        rows = decompose(params, rows, config=config, compute=compute).discovered_features
    return rows.reshape(hidden.shape)
