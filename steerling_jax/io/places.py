"""Folders here or in a bucket (`gs://`, `s3://`), by one small interface: files are read and written whole.

A written file appears at once or not at all, also when the writer is killed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorstore as ts

from steerling_jax.errors import UserError, first_line

REMOTE = ("gs://", "s3://")
_LOOK = "See that the address is right, and that you may read there."


class Place:
    """A folder by its path or address. May be pickled: only the address travels."""

    def __init__(self, address: str | Path):
        self.address = str(address).rstrip("/")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and self.address == other.address

    def __hash__(self) -> int:
        return hash(self.address)

    def __reduce__(self) -> tuple[type[Place], tuple[str]]:
        return Place, (self.address,)

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.address}/{name}")

    @property
    def is_remote(self) -> bool:
        return self.address.startswith(REMOTE)

    @property
    def url(self) -> str:
        """The address as TensorStore takes it, with a slash at the end."""
        return f"{self.address}/" if self.is_remote else f"{Path(self.address).absolute().as_uri()}/"

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes | None:
        """A file's bytes, or `start` to `end` of them; None where there is no such file."""
        with _told(f"read {self.address}/{name}", _LOOK):
            found = self._files.read(name, byte_range=None if start is None else slice(start, end)).result()
        return None if found.state == "missing" else bytes(found.value)

    def read_many(self, names: list[str]) -> list[bytes]:
        """Files that must all be there, read at once. Raises `UserError` for one that is not."""
        with _told(f"read {self.address}", _LOOK):
            waiting = [self._files.read(name) for name in names]
            found = [one.result() for one in waiting]
        for name, one in zip(names, found):
            if one.state == "missing":
                raise UserError(f"{self.address}/{name} is gone: remove {self.address} and begin again.")
        return [bytes(one.value) for one in found]

    def write(self, name: str, content: bytes) -> None:
        with _told(f"write {self.address}/{name}", "Choose another place or free some space."):
            self._files.write(name, content).result()

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    def has(self, name: str) -> bool:
        return self.read(name, 0, 0) is not None

    def names(self, under: str = "") -> set[str]:
        """Names of all files whose name begins with `under`."""
        with _told(f"list {self.address}", _LOOK):
            return {key.decode() for key in self._files.list(ts.KvStore.KeyRange(under, f"{under}\uffff")).result()}

    def remove(self) -> None:
        """Removes all files in it."""
        with _told(f"empty {self.address}", "Remove it yourself."):
            self._files.delete_range(ts.KvStore.KeyRange()).result()

    @cached_property
    def _files(self) -> Any:
        return ts.KvStore.open(self.url).result()


@contextlib.contextmanager
def _told(what: str, advice: str) -> Iterator[None]:
    """Turns what TensorStore raises into a sentence."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"Cannot {what}: {first_line(error)}. {advice}") from error
