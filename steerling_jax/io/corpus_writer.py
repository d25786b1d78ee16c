"""Writing a corpus store: documents go in one by one, the folder appears when all are in."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import tensorstore as ts

from steerling_jax.io.atomic import atomic_path, write_json
from steerling_jax.io.corpus import ARRAYS, FORMAT_VERSION, MAX_LABELS, SPLITS, STRIDE, DocumentRecord, array_spec
from steerling_jax.io.tokenizer import Tokenizer


class _Array:
    """Appends rows to one zarr3 array, a whole shard at a time."""

    def __init__(self, folder: Path, name: str, vocab_size: int):
        tail, dtype, self._shard, inner = ARRAYS[name]
        dtype = dtype or ("uint16" if vocab_size <= 1 << 16 else "uint32")
        self._tail, self._dtype = tail, np.dtype(dtype)
        self._blocks: list[np.ndarray] = []
        self.count, self._written = 0, 0
        grid = {"name": "regular", "configuration": {"chunk_shape": [self._shard, *tail]}}
        codec = {"name": "sharding_indexed", "configuration": {"chunk_shape": [inner, *tail]}}
        metadata = {"shape": [0, *tail], "data_type": dtype, "chunk_grid": grid, "codecs": [codec], "fill_value": 0}
        self._store = ts.open(array_spec(folder / name) | {"metadata": metadata}, create=True).result()

    def append(self, rows: Sequence[Any]) -> None:
        if not len(rows):
            return
        self._blocks.append(np.asarray(rows, self._dtype).reshape(len(rows), *self._tail))
        self.count += len(rows)
        if self.count - self._written >= self._shard:
            self._flush(self._shard * ((self.count - self._written) // self._shard))

    def close(self) -> None:
        if self.count > self._written:
            self._flush(self.count - self._written)

    def _flush(self, count: int) -> None:
        rows, end = np.concatenate(self._blocks), self._written + count
        self._store = self._store.resize(exclusive_max=[end, *self._tail]).result()
        self._store[self._written : end].write(rows[:count]).result()
        self._blocks, self._written = [rows[count:]], end


class CorpusWriter:
    """Fills the folder of a store; use it through `corpus_writer`. Documents of `train` first, then of `heldout`."""

    def __init__(self, folder: Path, documents: TextIO, tokenizer: Tokenizer):
        self._tokenizer, self._documents = tokenizer, documents
        self._arrays = {name: _Array(folder, name, tokenizer.vocab_size) for name in ARRAYS}
        self._counts: dict[str, dict[str, int]] = {
            split: {"documents": 0, "chunks": 0, "tokens": 0} for split in SPLITS
        }
        self._last_split = SPLITS[0]
        self._number = 0

    def add(
        self, *, name: str, source: str, sha256: str, split: str, chunks: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> None:
        """One document, as (token ids, concept labels) of each chunk; labels beyond the first 16 are left out."""
        if SPLITS.index(split) < SPLITS.index(self._last_split):
            raise ValueError("write all documents of the training split before the held-out ones")
        special, start = self._tokenizer.special, self._arrays["tokens"].count
        tokens, spans, labels = [special.bos_id], [], []
        for ids, concepts in chunks:
            spans.append((start + len(tokens), start + len(tokens) + len(ids)))
            tokens += [*ids, special.endofchunk_id]
            kept = list(concepts)[:MAX_LABELS]
            labels.append(kept + [-1] * (MAX_LABELS - len(kept)))
        tokens.append(special.eos_id)
        self._index_strides(spans)
        self._arrays["tokens"].append(tokens)
        self._arrays["chunk_spans"].append(spans)
        self._arrays["chunk_documents"].append([self._number] * len(spans))
        self._arrays["chunk_labels"].append(labels)
        record = DocumentRecord(name, source, sha256, split, start, start + len(tokens))
        self._documents.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
        for key, more in (("documents", 1), ("chunks", len(spans)), ("tokens", len(tokens))):
            self._counts[split][key] += more
        self._number, self._last_split = self._number + 1, split

    def _index_strides(self, spans: Sequence[tuple[int, int]]) -> None:
        """Entry i of `stride_chunks` is the first chunk that ends after token i · 1024."""
        first, index = self._arrays["chunk_spans"].count, self._arrays["stride_chunks"]
        for chunk, (_, end) in enumerate(spans, first):
            index.append([chunk] * (-(-end // STRIDE) - index.count))

    def finish(self) -> dict[str, Any]:
        """Writes what is left and returns what the manifest says about it."""
        for array in self._arrays.values():
            array.close()
        boundary = self._counts["train"]["tokens"]
        return {
            "format_version": FORMAT_VERSION,
            "tokenizer_sha256": self._tokenizer.sha256,
            "vocab_size": self._tokenizer.vocab_size,
            "special_ids": asdict(self._tokenizer.special),
            "splits": {"train": [0, boundary], "heldout": [boundary, self._arrays["tokens"].count]},
            "counts": self._counts,
        }


@contextlib.contextmanager
def corpus_writer(
    target: str | Path,
    tokenizer: Tokenizer,
    *,
    concepts: Sequence[Mapping[str, Any]],
    source: Mapping[str, Any],
    vocabulary: bytes | None = None,
) -> Iterator[CorpusWriter]:
    """Writes a store that appears at `target` only when it is complete. `vocabulary` becomes its `tokenizer.model`.

    `concepts` are dicts of id, name, group and description; `source` is whatever the maker wants remembered.
    """
    with atomic_path(target, folder=True) as folder:
        with (folder / "documents.jsonl").open("w", encoding="utf-8") as documents:
            writer = CorpusWriter(folder, documents, tokenizer)
            yield writer
        manifest = writer.finish() | {"source": dict(source), "concepts": list(concepts)}
        if vocabulary is not None:
            (folder / "tokenizer.model").write_bytes(vocabulary)
        write_json(folder / "manifest.json", manifest)
