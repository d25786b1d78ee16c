"""What the page looks up: concepts by name, one concept, and the text around a hit in the corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steerling_jax.attribution.explorer.asking import parse_query_number, refuse
from steerling_jax.attribution.trace.features import feature_card, head_of
from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.autoencoders.bottleneck import bottleneck_of
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.catalogue import Catalogue
from steerling_jax.concepts.concept import HEADS, KINDS, Concept, Head, Kind
from steerling_jax.errors import UserError
from steerling_jax.explain.feature_texts import promoted_tokens_of
from steerling_jax.explain.promoted_tokens import promoted_pieces
from steerling_jax.infer.generation_request import shown
from steerling_jax.infer.server.errors import ApiError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.backbone import BOTTLENECK
from steerling_jax.steering.strengths import measured_strength

_MOST_CONCEPTS, _PROMOTED = 100, 12
_MOST_TOKENS = 1_000  # of a passage
_DIGITS = 18  # of a feature's number


def find_concepts(bundle: Bundle, query: Mapping[str, str]) -> dict[str, Any]:
    """The concepts that the fields `q`, `head` and `limit` of an address ask for, best first.

    Without a head they are known concepts and features of autoencoders; "discovered:12" and "feature:3:17" in `q` say
    the head themselves.
    """
    text, head = query.get("q", ""), query.get("head")
    if head is not None and head not in KINDS:
        raise refuse(f"head is {shown(head)}, but it must be one of {', '.join(KINDS)}.", "head")
    limit = parse_query_number("limit", query.get("limit"), _MOST_CONCEPTS, 20)
    assert limit is not None
    try:
        found, features = _find(bundle.concepts, text, head, limit)
    except UserError as error:
        raise refuse(str(error), "q") from None
    # Features must not be hidden behind many concepts, nor the other way round.
    concepts = found[: limit - min(len(features), limit // 2)]
    listed = [*concepts, *features[: limit - len(concepts)]]
    return {"concepts": [_plain(bundle, one) for one in listed], "found": len(found) + len(features)}


def _find(catalogue: Catalogue, text: str, head: Kind | None, limit: int) -> tuple[list[Concept], list[Concept]]:
    """The concepts and the features that match a text."""
    if text.partition(":")[0].strip().casefold() in KINDS and ":" in text:
        kind, name = catalogue.locate(text)
        return [catalogue.get(id, kind) for id in catalogue.resolve(name, kind)], []
    if head is not None:
        return (catalogue.find(text, head), []) if head != "feature" else ([], _find_features(catalogue, text, limit))
    heads = [kind for kind, count in (("known", catalogue.known), ("feature", catalogue.features)) if count]
    found: dict[str, list[Concept]] = {"known": [], "feature": []}
    errors: list[UserError] = []
    for kind in heads:
        try:
            found[kind] = catalogue.find(text, "known") if kind == "known" else _find_features(catalogue, text, limit)
        except UserError as error:  # a number or a group that the other one may have
            errors.append(error)
    if errors and len(errors) == len(heads):
        raise errors[0]
    return found["known"], found["feature"]


def _find_features(catalogue: Catalogue, text: str, limit: int) -> list[Concept]:
    """The features that match a text; a number is one of every autoencoder. Without a text, those with names first."""
    number = text.strip().removeprefix("#")
    if not number:
        entries = [one for one in catalogue.concepts if one.head == "feature"]
        entries.sort(key=lambda one: not one.is_named)
        return entries or [catalogue.get(id, "feature") for id in range(min(limit, catalogue.features))]
    if not number.isdecimal():
        return catalogue.find(text, "feature")
    ids = [first + int(number) for first, one in catalogue.numbered_ranges
           if len(number) < _DIGITS and int(number) < one.size]  # fmt: skip
    if not ids:
        most = max(count for _, count in catalogue.ranges)
        raise UserError(f"There is no feature {number[:_DIGITS]}; the autoencoders have features 0 to {most - 1}.")
    return [catalogue.get(id, "feature") for id in ids]


def concept_card(bundle: Bundle, head: str, id: int, autoencoders: Sequence[Autoencoder] = ()) -> dict[str, Any]:
    """A concept with the words that it promotes; head: "known", "discovered", or "feature:3" for block 3's features."""
    if head in HEADS and id < bundle.concepts.count(head):
        kind: Head = head
        one = bundle.concepts.get(id, kind)
        return _plain(bundle, one) | {"promotes": promoted_pieces(bundle, [id], _PROMOTED, kind)[0]}
    bottleneck = [bottleneck_of(bundle)] if BOTTLENECK in bundle.params else []
    for autoencoder in (*autoencoders, *bottleneck):
        if head_of(autoencoder) == head and id < autoencoder.n_latents:
            entry = next((one for one in autoencoder.features if one.id == id), Concept(id, "", head="feature"))
            words = promoted_tokens_of(bundle, autoencoder, [id], _PROMOTED)[0]
            return _feature(entry, autoencoder.layer, id) | feature_card(autoencoder, id, words)
    raise ApiError(404, "There is no such concept in this model.", code="concept_not_found")


def _plain(bundle: Bundle, one: Concept) -> dict[str, Any]:
    """A concept as JSON. steer: its name in a request. amplify, suppress: the strengths that were measured to work for
    it, None without any."""
    if one.head == "feature":
        return _feature(one, *bundle.concepts.place(one.id))
    head: Head = "discovered" if one.head == "discovered" else "known"
    strengths = {name: measured_strength(bundle, name, (one.id,), head) for name in ("amplify", "suppress")}
    steer = one.name if head == "known" else f"discovered:{one.id}"
    return _fields(one) | strengths | {"steer": steer}


def _feature(one: Concept, layer: int | None, number: int) -> dict[str, Any]:
    """A feature as JSON. steer: None where it cannot be steered by, because its largest latent, the unit of strengths,
    was not measured, or because nothing is added where it is read."""
    head = "feature:bottleneck" if layer is None else f"feature:{layer}"
    strengths = {name: 1.0 if (own := getattr(one, name)) is None else own for name in ("amplify", "suppress")}
    steer = f"{head}:{number}" if layer is not None and one.largest else None
    own = {"id": number, "head": head, "layer": layer, "density": one.density, "largest": one.largest}
    return _fields(one) | own | strengths | {"steer": steer}


def _fields(one: Concept) -> dict[str, Any]:
    names = ("id", "name", "description", "head", "group", "is_named")
    plain = {name: getattr(one, name) for name in names}
    return plain | {"flags": list(one.flags), "examples": list(one.examples)}


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
