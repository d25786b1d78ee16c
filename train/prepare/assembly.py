"""Stages "laying out", "writing" and "finishing": computes where each piece goes and writes the store shard by shard.

The layout is a running sum of the pieces' sizes. With it, the rows of any shard are known, so that each shard is
written once, by one worker, which reads only the pieces with rows in it: nothing is shuffled and nothing is locked.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from steerling_jax.io.corpus.layout import Shard, StoreLayout
from steerling_jax.io.corpus.pieces import PieceSize
from steerling_jax.io.corpus.store import ARRAYS, documents_file
from steerling_jax.io.disk_errors import report_disk_errors
from steerling_jax.train.prepare.labelling import stored_piece
from steerling_jax.train.prepare.preparation import Preparation
from steerling_jax.train.prepare.splitting import is_clustered
from steerling_jax.train.prepare.vocabulary_file import SENTENCEPIECE_FILE

LAYOUT_FILE = "layout.json"


def layout_tasks(preparation: Preparation) -> list[str]:
    """The layout file, if it does not exist yet."""
    return preparation.missing([LAYOUT_FILE])


def write_layout(preparation: Preparation, name: str) -> None:
    """Collects the sizes of all pieces, creates the store's empty arrays and copies the vocabulary to the store."""
    names = [f"parts/{part:06}.json" for part in range(len(preparation.parts))]
    sizes = [json.loads(content) for content in preparation.work.read_many(names)]
    table = {
        split: [list(sizes[part][split].values()) for part in parts]
        for split, parts in _part_orders(preparation).items()
    }
    with report_disk_errors(f"Cannot write {preparation.store}"):
        _layout(preparation, table).create(preparation.store)
    vocabulary = preparation.plan.vocabulary
    file = SENTENCEPIECE_FILE if vocabulary is None else vocabulary.file
    preparation.store.write(file, preparation.work.read_many([file])[0])
    preparation.work.write_json(name, table)


def _layout(preparation: Preparation, table: dict[str, list[list[int]]]) -> StoreLayout:
    sizes = {split: [PieceSize(*row) for row in rows] for split, rows in table.items()}
    return StoreLayout(sizes, preparation.tokenizer.vocab_size)


def _part_orders(preparation: Preparation) -> dict[str, list[int]]:
    """The parts in the order of their pieces in the store, by split. Held-out documents stay in input order."""
    return {"train": preparation.part_order.tolist(), "heldout": list(range(len(preparation.parts)))}


@lru_cache(maxsize=2)
def _store_layout(preparation: Preparation) -> StoreLayout:
    """The layout, read once per process: it has a row for each piece, and each shard's task needs it."""
    return _layout(preparation, preparation.read_json(LAYOUT_FILE))


def shard_tasks(preparation: Preparation) -> list[tuple[str, int]]:
    """(array, number) of each shard without a file.

    TensorStore writes no file for a shard that contains only zeros; such a shard is written again, without effect.
    """
    existing = preparation.store.names()
    shards = _store_layout(preparation).shards()
    return [(shard.array, shard.number) for shard in shards if _shard_file(shard) not in existing]


def _shard_file(shard: Shard) -> str:
    if shard.array == "documents":
        return documents_file(shard.number)
    # A Zarr v3 key has an index for each dimension; only the first dimension has more than one shard.
    tail = "/0" * len(ARRAYS[shard.array][0])
    return f"{shard.array}/c/{shard.number}{tail}"


def write_shard(preparation: Preparation, task: tuple[str, int]) -> None:
    """Writes one shard of an array, or one file of document records."""
    pieces = [
        stored_piece(preparation, part, split) for split, parts in _part_orders(preparation).items() for part in parts
    ]
    with report_disk_errors(f"Cannot write {preparation.store}"):
        _store_layout(preparation).write(preparation.store, Shard(*task), pieces)


def manifest_tasks(preparation: Preparation) -> list[str]:
    """The manifest, always: it is the last file of a store, whose presence makes the store complete."""
    return ["manifest.json"]


def write_manifest(preparation: Preparation, name: str) -> None:
    """Writes the manifest: what the store was made from, its annotators and concepts, and its sizes."""
    config = preparation.config
    source: dict[str, Any] = {
        "sources": dict(sorted(config.shares.items())),
        "chunk_tokens": config.chunk_tokens,
        "seed": config.seed,
        "heldout_share": config.heldout_share,
        "parts": len(preparation.parts),
        "near_duplicates": "one side" if is_clustered(preparation) else "not looked for",
    }
    if described := [source.to_json() for source in preparation.plan.sources if source.name]:
        source["described"] = described
    about = {
        "source": source,
        "annotators": [annotator.name for annotator in preparation.annotators],
        "concepts": [concept.about() for concept in preparation.plan.concepts],
    }
    preparation.store.write_json(name, _store_layout(preparation).manifest(preparation.tokenizer) | about)
