"""The training-data index on disk: units, each of whole documents, and what applies to all of them.

INDEX/index.json                how it was made: model, fingerprint, vocabulary, settings; never changes
INDEX/plans/CORPUS.json         which documents of one state of the corpus go into which unit
INDEX/units/ID/                 one unit: unit.json (its documents, a checksum of each array) and zarr3 arrays
INDEX/current.json              the finished state: the corpus, its units, thresholds

A unit identifies its documents by key (hash of the text, vocabulary, length) and not by their number, so it stays valid
when the corpus grows or is shuffled. It appears atomically, and is named after its content.

Arrays of a unit with n tokens of text, M chunks and d documents: text (n,) int32, without chunk boundaries, each
document followed by SEPARATOR; suffixes (n,) uint32; chunk_starts (M,) int64, positions in the text; chunk_offsets (M,)
int64, from the start of the document in the corpus; chunk_documents (M,) int32, which of the d documents; ids, codes
(M, K), rows (M, D) float16; gradients (M, F) float16, optional.
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
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.corpus.store import CorpusStore, array_spec
from steerling_jax.io.disk_errors import report_disk_errors
from steerling_jax.io.json_files import write_json
from steerling_jax.io.storage import StoragePath
from steerling_jax.io.text_files import load_json

FORMAT_VERSION = 2  # version 1 had another influence threshold, computed with fewer maskings
SEPARATOR = -1  # between documents in a unit's text
_INNER_CHUNK_BYTES = 1 << 20  # what one read of an array takes from the disk; an array is one shard, so one file
_REBUILD = "make it again with `steerling index`"


def document_keys(store: CorpusStore) -> list[str]:
    """The key of each document of a corpus.

    Documents with the same text, vocabulary and length have the same tokens, and so the same key; repetitions of a
    document get the number of the repetition appended.
    """
    repetitions: dict[str, int] = {}
    keys = []
    for document in store.documents:
        identity = f"{document.sha256} {store.manifest['tokenizer_sha256']} {document.end - document.start}"
        key = hashlib.sha256(identity.encode()).hexdigest()[:32]
        repetitions[key] = repetitions.get(key, -1) + 1
        keys.append(key if not repetitions[key] else f"{key}.{repetitions[key]}")
    return keys


def corpus_digest(keys: Sequence[str]) -> str:
    """Identifies the state of a corpus by the keys of the indexed documents, in their order."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]


class IndexFolder:
    """An index's folder and its `index.json`; the arrays are read unit by unit, on request."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.metadata = _read_json(self.folder / "index.json")
        version = self.metadata.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"The index {folder} has format {version}, this version reads {FORMAT_VERSION}: remove it and "
                f"{_REBUILD}."
            )

    def current(self) -> dict[str, Any]:
        """The finished state. Raises `UserError` if the index was never finished."""
        path = self.folder / "current.json"
        if not path.is_file():
            raise UserError(f"The index {self.folder} is not finished: run `steerling index` on it until it is.")
        return _read_json(path)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits: a hash of the finished state, with its thresholds and the checksums of its units'
        arrays."""
        state = self.current()
        content = [self.metadata, state, [self.unit(name).metadata for name in state["units"]]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def unit(self, name: str) -> Unit:
        """The unit of that name."""
        return Unit(self.folder / "units" / name)

    def unit_names(self) -> list[str]:
        """Names of the finished units, of any state of the corpus."""
        return sorted(path.parent.name for path in self.folder.glob("units/[!.]*/unit.json"))


@dataclass(frozen=True)
class Unit:
    """One unit's folder."""

    folder: Path

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """`unit.json`: the documents' keys, the numbers of chunks and tokens, the arrays' sizes and checksums."""
        return _read_json(self.folder / "unit.json")

    def read(self, name: str) -> np.ndarray:
        """One of the unit's arrays. Raises `UserError` if it is damaged."""
        try:
            array = np.asarray(
                ts.open(array_spec(StoragePath(self.folder), name), open=True, read=True).result().read().result()
            )
        except (ValueError, OSError) as error:
            raise self._damaged(name) from error
        if _checksum(array) != self.metadata["checksums"].get(name):
            raise self._damaged(name)
        return array

    def _damaged(self, name: str) -> UserError:
        return UserError(
            f"{self.folder / name} is damaged or incomplete: remove {self.folder} and run `steerling index` again."
        )


def write_unit(target: Path, documents: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a unit's folder atomically."""
    with report_disk_errors(f"Cannot write {target}"), atomic_path(target, folder=True) as folder:
        for name, array in arrays.items():
            _write_array(folder / name, array)
        metadata = {
            "documents": list(documents),
            "chunks": len(arrays["chunk_starts"]),
            "tokens": len(arrays["text"]),
            "bytes": {name: array.nbytes for name, array in arrays.items()},
            "checksums": {name: _checksum(array) for name, array in arrays.items()},
        }
        write_json(folder / "unit.json", metadata)


def _write_array(path: Path, array: np.ndarray) -> None:
    """Writes a zarr3 array of one shard, with inner chunks of about a megabyte along the first axis."""
    shape = [max(size, 1) for size in array.shape]
    inner = [min(shape[0], max(1, _INNER_CHUNK_BYTES // (array.itemsize * int(np.prod(shape[1:]))))), *shape[1:]]
    outer = [-(-shape[0] // inner[0]) * inner[0], *shape[1:]]  # a shard is a whole number of inner chunks
    metadata = {
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": outer}},
        "codecs": [{"name": "sharding_indexed", "configuration": {"chunk_shape": inner}}],
        "fill_value": 0,
    }
    spec = array_spec(StoragePath(path.parent), path.name) | {"metadata": metadata}
    ts.open(spec, create=True).result().write(array).result()


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data if array.size else b"")


def start_index(folder: Path, settings: Mapping[str, Any]) -> IndexFolder:
    """Creates the folder's `index.json`, or raises `UserError` if there is one that differs in any field."""
    path = folder / "index.json"
    metadata = {"format_version": FORMAT_VERSION, **settings}
    if not path.is_file():
        write_json(path, metadata)
    index = IndexFolder(folder)
    for name, value in metadata.items():
        if index.metadata.get(name) != value:
            raise UserError(
                f"The index {folder} was made with another {name.replace('_', ' ')} ({index.metadata.get(name)}, not "
                f"{value}): choose another folder, or remove it."
            )
    return index


def write_once(path: Path, value: Any) -> Any:
    """Writes JSON unless the file exists, and returns the file's content.

    When several processes call it at once, all return what one of them wrote: unlike a rename, creating a hard link
    fails if the target exists, so the first one wins.
    """
    own = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    if not path.is_file():
        with report_disk_errors(f"Cannot write {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                own.write_text(json.dumps(value), encoding="utf-8")
                with contextlib.suppress(FileExistsError):
                    path.hardlink_to(own)
            finally:
                own.unlink(missing_ok=True)
    return _read_json(path)


def _read_json(path: Path) -> Any:
    try:
        return load_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: is {path.parent} an index? If so, {_REBUILD}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: remove {path.parent} and run `steerling index` again.") from error
