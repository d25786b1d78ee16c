"""The training-data index on disk: units, each of whole documents, and what holds for all of them.

INDEX/index.json                what it was made with: model, fingerprint, vocabulary, settings; never changes
INDEX/plans/CORPUS.json         which documents of one state of the corpus go into which unit
INDEX/units/ID/                 one unit: unit.json (its documents, a checksum of each array) and zarr3 arrays
INDEX/current.json              the finished state: the corpus, its units, thresholds

A unit knows its documents by key (hash of the text, vocabulary, length), not by their number, so it stays good when the
corpus grows or is shuffled. It appears whole or not at all, and is named after what it holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from steerling_jax.errors import UserError
from steerling_jax.io.atomic import atomic_path, write_json
from steerling_jax.io.corpus.store import CorpusStore, array_spec
from steerling_jax.io.disk import told
from steerling_jax.io.storage import StoragePath

FORMAT_VERSION = 2  # 2: influence with more maskings, and so another threshold
_INNER_BYTES = 1 << 20  # of an array's inner chunks; a unit's array is one shard
_AGAIN = "make it again with `steerling index`"
SEPARATOR = -1  # between documents in a unit's text

# Of a unit with n tokens of text, M chunks, d documents: text (n,) int32, chunk boundaries left out and documents ended
# by SEPARATOR; suffixes (n,) uint32; chunk_starts (M,) int64 in the text; chunk_offsets (M,) int64 from the start of
# the document in the corpus; chunk_documents (M,) int32, which of the d; ids, codes (M, K), rows (M, D) float16;
# gradients (M, F) float16 where asked for.


def document_keys(store: CorpusStore) -> list[str]:
    """What each document is known by: the same text, vocabulary and length have the same tokens. A repeated document
    has its number of repetition in its key."""
    seen: dict[str, int] = {}
    keys = []
    for document in store.documents:
        what = f"{document.sha256} {store.manifest['tokenizer_sha256']} {document.end - document.start}"
        key = hashlib.sha256(what.encode()).hexdigest()[:32]
        seen[key] = seen.get(key, -1) + 1
        keys.append(key if not seen[key] else f"{key}.{seen[key]}")
    return keys


def corpus_digest(keys: Sequence[str]) -> str:
    """The state of a corpus, from the keys of the documents that are indexed, in their order."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]


class IndexFolder:
    """An index's folder and its description; arrays are read when a unit is asked for them."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.about = read_json(self.folder / "index.json")
        if self.about.get("format_version") != FORMAT_VERSION:
            version = self.about.get("format_version")
            raise UserError(
                f"The index {folder} has format {version}, this version reads {FORMAT_VERSION}: remove it and {_AGAIN}."
            )

    def current(self) -> dict[str, Any]:
        """The finished state. Raises `UserError` where the index was never finished."""
        path = self.folder / "current.json"
        if not path.is_file():
            raise UserError(f"The index {self.folder} is not finished: run `steerling index` on it until it is.")
        return read_json(path)

    def unit(self, name: str) -> Unit:
        return Unit(self.folder / "units" / name)

    def unit_names(self) -> list[str]:
        """Units that are there, finished ones of whatever state of the corpus."""
        return sorted(path.parent.name for path in self.folder.glob("units/[!.]*/unit.json"))


@dataclass(frozen=True)
class Unit:
    """One unit's folder."""

    folder: Path

    @cached_property
    def about(self) -> dict[str, Any]:
        """documents: keys; chunks, tokens: counts; checksums of the arrays."""
        return read_json(self.folder / "unit.json")

    def read(self, name: str) -> np.ndarray:
        """One of its arrays. Raises `UserError` where it is not what was written."""
        try:
            array = np.asarray(
                ts.open(array_spec(StoragePath(self.folder), name), open=True, read=True).result().read().result()
            )
        except (ValueError, OSError) as error:
            raise self._damaged(name) from error
        if _checksum(array) != self.about["checksums"].get(name):
            raise self._damaged(name)
        return array

    def _damaged(self, name: str) -> UserError:
        return UserError(
            f"{self.folder / name} is damaged or incomplete: remove {self.folder} and run `steerling index` again."
        )


def write_unit(target: Path, documents: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a unit's folder; it appears when it is complete."""
    with told(f"Cannot write {target}"), atomic_path(target, folder=True) as folder:
        for name, array in arrays.items():
            _write_array(folder / name, array)
        about = {
            "documents": list(documents),
            "chunks": len(arrays["chunk_starts"]),
            "tokens": len(arrays["text"]),
            "bytes": {name: array.nbytes for name, array in arrays.items()},
            "checksums": {name: _checksum(array) for name, array in arrays.items()},
        }
        write_json(folder / "unit.json", about)


def _write_array(path: Path, array: np.ndarray) -> None:
    shape = [max(size, 1) for size in array.shape]
    inner = [min(shape[0], max(1, _INNER_BYTES // (array.itemsize * int(np.prod(shape[1:]))))), *shape[1:]]
    outer = [-(-shape[0] // inner[0]) * inner[0], *shape[1:]]
    metadata = {
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": outer}},
        "codecs": [{"name": "sharding_indexed", "configuration": {"chunk_shape": inner}}],
        "fill_value": 0,
    }
    ts.open(array_spec(StoragePath(path.parent), path.name) | {"metadata": metadata}, create=True).result().write(
        array
    ).result()


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data if array.size else b"")


def start_index(folder: Path, about: Mapping[str, Any]) -> IndexFolder:
    """Makes the folder's `index.json`, or checks that it says the same."""
    path = folder / "index.json"
    about = {"format_version": FORMAT_VERSION, **about}
    if not path.is_file():
        write_json(path, about)
    index = IndexFolder(folder)
    for name, value in about.items():
        if index.about.get(name) != value:
            raise UserError(
                f"The index {folder} was made with another {name.replace('_', ' ')} ({index.about.get(name)}, not "
                f"{value}): choose another folder, or remove it."
            )
    return index


def write_once(path: Path, value: Any) -> Any:
    """Writes JSON unless the file is there, and returns what the file says: of several processes one decides."""
    own = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    if not path.is_file():
        with told(f"Cannot write {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                own.write_text(json.dumps(value), encoding="utf-8")
                with contextlib.suppress(FileExistsError):
                    path.hardlink_to(own)
            finally:
                own.unlink(missing_ok=True)
    return read_json(path)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: is {path.parent} an index? If so, {_AGAIN}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: remove {path.parent} and run `steerling index` again.") from error
