"""What the page looks up: concepts by name, one concept, and the text around a hit in the corpus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steerling_jax.attribution.explorer.asking import parse_query_number, refuse
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.catalogue import HEADS, Concept, Head
from steerling_jax.errors import UserError
from steerling_jax.explain.promoted_tokens import promoted_pieces
from steerling_jax.infer.generation_request import shown
from steerling_jax.infer.server.errors import ApiError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.steering.strengths import measured_strength

_MOST_CONCEPTS, _PROMOTED = 100, 12
_MOST_TOKENS = 1_000  # of a passage


def find_concepts(bundle: Bundle, query: Mapping[str, str]) -> dict[str, Any]:
    """The concepts that the fields `q`, `head` and `limit` of an address ask for, best first."""
    head = query.get("head", "known")
    if head not in HEADS:
        raise refuse(f"head is {shown(head)}, but it must be one of {', '.join(HEADS)}.", "head")
    limit = parse_query_number("limit", query.get("limit"), _MOST_CONCEPTS, 20)
    try:
        found = bundle.concepts.find(query.get("q", ""), head)
    except UserError as error:
        raise refuse(str(error), "q") from None
    return {"concepts": [_plain(bundle, one) for one in found[:limit]], "found": len(found)}


def concept_card(bundle: Bundle, head: str, id: int) -> dict[str, Any]:
    """A concept with the words that it promotes."""
    if head not in HEADS or id >= bundle.concepts.count(head):
        raise ApiError(404, "There is no such concept in this model.", code="concept_not_found")
    kind: Head = head
    return _plain(bundle, bundle.concepts.get(id, kind)) | {
        "promotes": promoted_pieces(bundle, [id], _PROMOTED, kind)[0]
    }


def _plain(bundle: Bundle, one: Concept) -> dict[str, Any]:
    """A concept as JSON. amplify, suppress: the strengths that were measured to work for it, None without any."""
    names = ("id", "name", "description", "head", "group", "is_named")
    head: Head = "discovered" if one.head == "discovered" else "known"
    strengths = {name: measured_strength(bundle, name, (one.id,), head) for name in ("amplify", "suppress")}
    plain = {name: getattr(one, name) for name in names}
    return plain | strengths | {"flags": list(one.flags), "examples": list(one.examples)}


def passage(bundle: Bundle, corpus: CorpusStore | None, document: int, query: Mapping[str, str]) -> dict[str, Any]:
    """Tokens `from` to `to` of a document of the corpus, counted from its first token."""
    records = [] if corpus is None else corpus.documents
    if corpus is None or document >= len(records):
        raise ApiError(404, "There is no such document here.", code="document_not_found")
    record = records[document]
    length = record.end - record.start
    start = parse_query_number("from", query.get("from"), length, 0)
    end = parse_query_number("to", query.get("to"), 1 << 30, length)
    assert start is not None
    assert end is not None
    end = min(end, length, start + _MOST_TOKENS)
    ids = corpus.tokens(record.start + start, record.start + max(start, end)).tolist()
    return {
        "document": document,
        "name": record.name,
        "source": record.source,
        "sha256": record.sha256,
        "split": record.split,
        "from": start,
        "to": max(start, end),
        "tokens": length,
        "text": bundle.tokenizer.decode(ids),
    }
