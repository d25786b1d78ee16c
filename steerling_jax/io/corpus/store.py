"""The corpus store: tokens, chunks, labels and documents in one folder, read a slice at a time.

It is written once (`layout.py`, `writer.py`). Training streams it and attribution refers to it, by the same chunk
numbers and token offsets. The arrays are zarr3, through TensorStore, in shards of tens of megabytes with inner chunks
of about one megabyte: few files, and a read of a slice fetches little more than the slice.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from steerling_jax.corpus.reader import Chunk, DocumentRecord
from steerling_jax.errors import UserError
from steerling_jax.io.storage import StoragePath
from steerling_jax.io.text_files import load_json
from steerling_jax.tokenizer import SpecialIds

FORMAT_VERSION = 1
MAX_LABELS = 16
SPLITS = ("train", "heldout")
STRIDE = 1024  # tokens between entries of `stride_chunks`, the index from tokens to chunks
DOCUMENTS_PER_FILE = 1 << 16
_CACHE_BYTES = 256 << 20
_MANIFEST_KEYS = {"tokenizer_sha256", "vocab_size", "special_ids", "splits", "counts", "concepts", "source"}
_REBUILD = "make the corpus again with `steerling prepare`"

# Array: trailing shape, dtype (None: the smallest that holds the vocabulary), rows per shard, rows per inner chunk.
ARRAYS: dict[str, tuple[tuple[int, ...], str | None, int, int]] = {
    "tokens": ((), None, 1 << 25, 1 << 18),
    "chunk_spans": ((2,), "int64", 1 << 22, 1 << 16),
    "chunk_documents": ((), "int32", 1 << 22, 1 << 18),
    "chunk_labels": ((MAX_LABELS,), "int32", 1 << 20, 1 << 14),
    "chunk_origins": ((MAX_LABELS,), "uint8", 1 << 22, 1 << 16),
    "stride_chunks": ((), "int32", 1 << 22, 1 << 18),
}


class CorpusStore:
    """A store opened for reading. Opening reads the manifest; tokens, chunks and documents are read on request.

    Raises `UserError` if the folder holds no store, or one that is damaged or of another format version.
    """

    def __init__(self, folder: str | Path):
        self.folder, self._storage = Path(folder), StoragePath(folder)
        self.manifest = _read_manifest(self._storage)
        self.special = SpecialIds(**self.manifest["special_ids"])
        context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
        try:
            self._arrays = {
                name: ts.open(array_spec(self._storage, name), open=True, read=True, context=context).result()
                for name in ARRAYS
                if name != "chunk_origins" or self.annotators
            }
        except ValueError as error:
            raise UserError(f"The corpus {self.folder} is damaged or incomplete: {_REBUILD}.") from error

    def check_tokenizer(self, sha256: str) -> None:
        """Raises `UserError` unless the store was made with the tokenizer of that hash."""
        if sha256 != self.manifest["tokenizer_sha256"]:
            raise UserError(
                f"The corpus {self.folder} was made with another tokenizer than this model's: "
                "make it again with the model's own."
            )

    def split(self, name: str) -> tuple[int, int]:
        """Token range, half-open, of the split `train` or `heldout`."""
        start, end = self.manifest["splits"][name]
        return start, end

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special ones included."""
        return self.manifest["vocab_size"]

    @property
    def concepts(self) -> list[dict[str, Any]]:
        """The known concepts: id, name, group, description."""
        return self.manifest["concepts"]

    @property
    def annotators(self) -> list[str]:
        """The annotators' names, by their numbers in `chunk_origins`; empty for stores of versions without origins."""
        return self.manifest.get("annotators", [])

    def license_of(self, source: str) -> str:
        """The license of a source as its description gives it; empty for sources that are not described."""
        described = self.manifest.get("source", {}).get("described", [])
        return next((one["license"] for one in described if one["name"] == source), "")

    @property
    def chunk_count(self) -> int:
        """Number of chunks in the store, M."""
        return self._arrays["chunk_spans"].shape[0]

    @property
    def documents(self) -> list[DocumentRecord]:
        """The records of all documents, read on first use."""
        return self._documents

    @cached_property
    def _documents(self) -> list[DocumentRecord]:
        records: list[DocumentRecord] = []
        for name in self._documents_files:
            first = len(records)
            try:
                for line in (self._storage.read(name) or b"").decode().rstrip("\n").split("\n"):
                    records.append(DocumentRecord(**load_json(line)))
            except (ValueError, TypeError) as error:
                where = f"{self._storage}/{name}, line {len(records) - first + 1},"
                raise UserError(f"{where} cannot be read: {_REBUILD}.") from error
        return records

    @cached_property
    def documents_sha256(self) -> str:
        """SHA-256 of all documents' records: identifies the texts and their order."""
        digest = hashlib.sha256()
        for name in self._documents_files:
            digest.update(self._storage.read(name) or b"")
        return digest.hexdigest()

    @property
    def _documents_files(self) -> list[str]:
        count = sum(split["documents"] for split in self.manifest["counts"].values())
        return [documents_file(number) for number in range(max(1, -(-count // DOCUMENTS_PER_FILE)))]

    def read(self, array: str, start: int, end: int) -> np.ndarray:
        """Rows `start` to `end` of one of the store's arrays."""
        try:
            return np.asarray(self._arrays[array][start:end].read().result())
        except ValueError as error:
            raise UserError(
                f"Cannot read {array} {start}:{end} of the corpus {self.folder}: it is damaged, or shorter than that."
            ) from error

    def tokens(self, start: int, end: int) -> np.ndarray:
        """Tokens `start` to `end`, (end - start,) uint16 or uint32."""
        return self.read("tokens", start, end)

    def chunk(self, number: int) -> Chunk:
        """Chunk `number`: its token span, its document, its labels."""
        (start, end), *_ = self.read("chunk_spans", number, number + 1).tolist()
        (document,) = self.read("chunk_documents", number, number + 1).tolist()
        labels = self.read("chunk_labels", number, number + 1)[0]
        return Chunk(start, end, document, tuple(labels[labels >= 0].tolist()))

    def chunks_between(self, start: int, end: int) -> tuple[int, int]:
        """Numbers, half-open, of the chunks with a token in `start` to `end`.

        `stride_chunks` narrows the search to the chunks of a few thousand tokens, so a few rows are read, whatever the
        number of chunks.
        """
        index = self._arrays["stride_chunks"]
        strides = self.read(
            "stride_chunks", min(start // STRIDE, index.shape[0]), min(-(-end // STRIDE) + 1, index.shape[0])
        )
        if not strides.size:  # `start` is after the last chunk
            return self.chunk_count, self.chunk_count
        first = int(strides[0])
        last = int(strides[-1]) + 1 if -(-end // STRIDE) < index.shape[0] else self.chunk_count
        spans = self.read("chunk_spans", first, last)
        inside = np.flatnonzero((spans[:, 1] > start) & (spans[:, 0] < end))
        return (first + int(inside[0]), first + int(inside[-1]) + 1) if inside.size else (first, first)


def _read_manifest(folder: StoragePath) -> dict[str, Any]:
    path = f"{folder}/manifest.json"
    try:
        content = folder.read("manifest.json")
        if content is None:
            raise UserError(f"There is no corpus at {folder}: make one with `steerling prepare`.")
        manifest = load_json(content)
        version = manifest["format_version"]
        missing = _MANIFEST_KEYS - manifest.keys()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as a corpus manifest: {_REBUILD}.") from error
    if version != FORMAT_VERSION:
        raise UserError(f"The corpus {folder} has format {version}, this version reads {FORMAT_VERSION}: {_REBUILD}.")
    if missing:
        raise UserError(f"{path} has no {min(missing)}: {_REBUILD}.")
    return manifest


def array_spec(folder: StoragePath, name: str) -> dict[str, Any]:
    """TensorStore's spec of a zarr3 array in `folder`."""
    return {"driver": "zarr3", "kvstore": (folder / name).array_url}


def documents_file(number: int) -> str:
    """Name of the file that holds the records of documents 65,536 · number and on."""
    return f"documents-{number:05}.jsonl" if number else "documents.jsonl"
