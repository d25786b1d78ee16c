"""What concepts, features and hidden rows are in the chunks of a corpus, all read in one pass.

Of each chunk the means over its positions: activations of all known and discovered concepts, latents of autoencoders of
blocks, and the blocks' outputs. Legend: m chunks, N positions, D width, S latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from one_roof_scores import Reading

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.encoding import encode_dense_rows
from steerling_jax.autoencoders.weights import Weights
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.concept import HEADS
from steerling_jax.concepts.heads import head_spec
from steerling_jax.corpus.labelled_chunks import positives_of
from steerling_jax.corpus.reader import Corpus
from steerling_jax.explain.chunk_activations import concept_activations
from steerling_jax.explain.masked_rows import rows_under_masks
from steerling_jax.explain.naming.activations import means_of_chunks, sample_chunks
from steerling_jax.io.atomic import atomic_path
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.progress import Progress, no_progress

SEQ_LEN = 256


@dataclass(frozen=True)
class Positions:
    """The output rows (N, D) of the last block, with the token and the chunk's number of each, (N,)."""

    rows: np.ndarray
    tokens: np.ndarray
    chunks: np.ndarray


def read_chunks(
    bundle: Bundle,
    autoencoders: Sequence[Autoencoder],
    store: Corpus,
    split: str,
    tokens: int,
    concepts: int,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[Reading, Positions]:
    """The chunks of about `tokens` tokens of a split, read under masks as in `explain.masked_rows`.

    concepts: of the labels.
    """
    config, blocks = bundle.config, tuple(range(bundle.backbone.n_layers))
    heads = tuple(HEADS) if config.concept is not None else ()
    widths = {head: head_spec(config, head).n_concepts for head in heads}
    widths |= {f"features {one.layer}": one.n_latents for one in autoencoders}
    widths |= {f"block {block}": config.n_embd for block in blocks} | {"norm": len(blocks)}
    weights = {one.layer: one.weights for one in autoencoders}
    rows: list[np.ndarray] = []
    ids: list[np.ndarray] = []

    def of_batch(batch: np.ndarray, local: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        key = jax.random.fold_in(jax.random.key(seed), number)
        columns, last = jax.device_get(
            _columns(bundle.params, weights, batch, key, heads=heads, blocks=blocks, config=config,
                     compute=bundle.compute)
        )  # fmt: skip
        inside = np.flatnonzero(local >= 0)
        rows.append(np.asarray(last)[inside])
        ids.append(batch.reshape(-1)[inside])
        # A chunk's positions follow each other, and numbers are those of the order: sums over runs of equal numbers.
        _, starts, counts = np.unique(local.reshape(-1)[inside], return_index=True, return_counts=True)
        return np.add.reduceat(np.asarray(columns)[inside], starts, axis=0), counts

    ranges = sample_chunks(store, split, tokens)
    chunks, means = means_of_chunks(store, ranges, sum(widths.values()), of_batch, seq_len=SEQ_LEN, progress=progress)
    ends = np.cumsum(list(widths.values()))[:-1]
    named = dict(zip(widths, np.split(means, ends, axis=1), strict=True))
    reading = Reading(chunks, positives_of(store, chunks, concepts), named)
    return reading, Positions(np.concatenate(rows), np.concatenate(ids), _chunk_of(store, ranges))


def _chunk_of(store: Corpus, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """The chunk's number of each token of a chunk, in the order in which they are read."""
    spans = [(number, span) for low, high in ranges
             for number, span in zip(range(low, high), store.read("chunk_spans", low, high), strict=True)]  # fmt: skip
    return np.concatenate([np.full(int(end - start), number) for number, (start, end) in spans])


@partial(jax.jit, static_argnames=("heads", "blocks", "config", "compute"))
def _columns(
    params: Params,
    weights: dict[int, Weights],
    tokens: jax.Array,
    key: jax.Array,
    *,
    heads: tuple,
    blocks: tuple[int, ...],
    config: ModelConfig,
    compute: Compute,
) -> tuple[jax.Array, jax.Array]:
    """The columns (N, columns) of a batch's positions, and the rows (N, D) of the last block."""
    result = rows_under_masks(params, tokens, key, config=config, compute=compute, capture=blocks)
    N = tokens.size
    hidden = result.hidden.reshape(N, -1)
    outputs = {block: result.captured[block].reshape(N, -1).astype(jnp.float32) for block in blocks}
    columns = [
        concept_activations(params, hidden, jnp.arange(head_spec(config, head).n_concepts), head, config, compute)
        for head in heads
    ]
    columns += [encode_dense_rows(one, outputs[layer]) for layer, one in weights.items()]
    columns += [*outputs.values(), jnp.stack([jnp.linalg.norm(one, axis=1) for one in outputs.values()], axis=1)]
    return jnp.concatenate(columns, axis=1), outputs[blocks[-1]]


def save(path: Path, reading: Reading, positions: Positions | None) -> None:
    extra = {} if positions is None else {f"positions/{name}": value for name, value in vars(positions).items()}
    with atomic_path(path) as scratch, scratch.open("wb") as file:
        np.savez(file, chunks=reading.chunks, positive=reading.positive, **reading.means, **extra)


def load(path: Path) -> Reading:
    with np.load(path) as arrays:
        names = [name for name in arrays.files if not name.startswith("positions/")]
        means = {name: arrays[name] for name in names if name not in ("chunks", "positive")}
        return Reading(arrays["chunks"], arrays["positive"], means)


def load_positions(path: Path) -> Positions:
    with np.load(path) as arrays:
        return Positions(*(arrays[f"positions/{name}"] for name in ("rows", "tokens", "chunks")))
