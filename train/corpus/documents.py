"""A document, and the removal of repeated texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Document:
    """A text and its provenance.

    name: identifies it for people. source: the kind of text, by which shares, rules and statistics are given. module:
    the Python module it is from, if any. labels: names of known concepts that its author assigned. id: the identifier
    by which tables of labels refer to it. cluster: equal for documents that must be in the same split, such as versions
    of one text.
    """

    name: str
    source: str
    text: str
    module: str = ""
    labels: tuple[str, ...] = ()
    id: str = ""
    cluster: str = ""

    @cached_property
    def sha256(self) -> str:
        """Hash of the text, in hexadecimal: identifies the document independently of where it was read from."""
        return hashlib.sha256(self.text.encode("utf-8", errors="replace")).hexdigest()


def unique(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents without those whose text occurred before."""
    seen = set()
    for document in documents:
        if document.sha256 not in seen:
            seen.add(document.sha256)
            yield document
