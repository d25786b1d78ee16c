"""The last stages: where each piece goes, and the store written shard by shard."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from steerling_jax.io.corpus.pieces import PieceSize
from steerling_jax.io.corpus.store import ARRAYS, documents_file
from steerling_jax.io.corpus.writer import Shard, StoreLayout
from steerling_jax.io.disk import told
from steerling_jax.train.corpus.labelling import is_clustered, kept_piece
from steerling_jax.train.prepare.job import TOKENIZER, Preparation


def without_layout(job: Preparation) -> list[str]:
    return job.missing(["layout.json"])


def make_layout(job: Preparation, name: str) -> None:
    """Gathers the sizes of all pieces, makes the store's empty arrays, and writes what stands beside them."""
    names = [f"parts/{part:06}.json" for part in range(len(job.parts))]
    sizes = [json.loads(content) for content in job.work.read_many(names)]
    table = {split: [list(sizes[part][split].values()) for part in parts] for split, parts in _pieces(job).items()}
    layout = _layout(job, table)
    with told(f"Cannot write {job.store}"):
        layout.create(job.store)
    vocabulary = TOKENIZER if job.vocabulary is None else job.vocabulary["file"]
    job.store.write(vocabulary, job.work.read_many([vocabulary])[0])
    job.work.write_json(name, table)


def _layout(job: Preparation, table: dict[str, list[list[int]]]) -> StoreLayout:
    sizes = {split: [PieceSize(*row) for row in rows] for split, rows in table.items()}
    return StoreLayout(sizes, job.tokenizer.vocab_size)


def _pieces(job: Preparation) -> dict[str, list[int]]:
    """Parts in the order in which their pieces stand in the store, by split."""
    return {"train": job.part_order.tolist(), "heldout": list(range(len(job.parts)))}


@lru_cache(maxsize=2)
def store_layout(job: Preparation) -> StoreLayout:
    return _layout(job, json.loads(job.work.read_many(["layout.json"])[0]))


def unwritten(job: Preparation) -> list[tuple[str, int]]:
    """Shards without a file. (One that holds zeros alone never gets one, and is written again at no cost.)"""
    there = job.store.names()
    shards = store_layout(job).shards()
    return [(shard.array, shard.number) for shard in shards if _shard_file(shard) not in there]


def _shard_file(shard: Shard) -> str:
    if shard.array == "documents":
        return documents_file(shard.number)
    tail = "/0" * len(ARRAYS[shard.array][0])
    return f"{shard.array}/c/{shard.number}{tail}"


def write_shard(job: Preparation, task: tuple[str, int]) -> None:
    pieces = [kept_piece(job, part, split) for split, parts in _pieces(job).items() for part in parts]
    with told(f"Cannot write {job.store}"):
        store_layout(job).write(job.store, Shard(*task), pieces)


def unfinished(job: Preparation) -> list[str]:
    return ["manifest.json"]


def finish(job: Preparation, name: str) -> None:
    described = [source.to_json() for source in job.sources if source.name]
    source: dict[str, Any] = {
        "sources": job.shares,
        "chunk_tokens": job.settings.chunk_tokens,
        "seed": job.settings.seed,
        "heldout_share": job.settings.heldout_share,
        "parts": len(job.parts),
        "near_duplicates": "one side" if is_clustered(job) else "not looked for",
    }
    if described:
        source["described"] = described
    about = {
        "source": source,
        "annotators": [annotator.name for annotator in job.annotators],
        "concepts": [concept.about() for concept in job.concepts],
    }
    job.store.write_json(name, store_layout(job).manifest(job.tokenizer) | about)
