"""Concepts by name, and passages of the corpus around a hit."""

from __future__ import annotations

import dataclasses

import pytest

from steerling_jax.attribution.explorer.cards import find_concepts, passage
from steerling_jax.bundle import Bundle
from steerling_jax.infer.server.errors import ApiError
from steerling_jax.io.corpus.store import CorpusStore


def test_a_passage_is_part_of_its_document(topic_bundle: Bundle, topic_store: CorpusStore):
    record = topic_store.documents[3]
    found = passage(topic_bundle, topic_store, 3, {"from": "2", "to": "7"})
    ids = topic_store.tokens(record.start + 2, record.start + 7).tolist()
    assert found["text"] == topic_bundle.tokenizer.decode(ids)
    assert (found["name"], found["from"], found["to"]) == (record.name, 2, 7)
    whole = passage(topic_bundle, topic_store, 3, {"to": "999999"})
    assert (whole["from"], whole["to"]) == (0, record.end - record.start), "not beyond its document"
    assert passage(topic_bundle, topic_store, 3, {"from": "9", "to": "4"})["text"] == ""


@pytest.mark.parametrize(
    ("document", "query", "status"), [(90, {}, 404), (0, {"from": "x"}, 400), (0, {"from": "9999999"}, 400)]
)
def test_passages_that_are_not_there(topic_bundle, topic_store, document: int, query: dict[str, str], status: int):
    with pytest.raises(ApiError) as error:
        passage(topic_bundle, topic_store, document, query)
    assert error.value.status == status
    with pytest.raises(ApiError):
        passage(topic_bundle, None, 0, {})


def test_concepts_have_what_their_cards_show(topic_bundle: Bundle):
    catalogue = topic_bundle.concepts
    measured = dataclasses.replace(catalogue.get(0, "known"), amplify=4.5, examples=("a text",))
    others = tuple(one for one in catalogue.concepts if (one.id, one.head) != (0, "known"))
    catalogue = dataclasses.replace(catalogue, concepts=(measured, *others))
    bundle = dataclasses.replace(topic_bundle, catalogue=catalogue, strengths={"suppress": 0.25})
    found = find_concepts(bundle, {"q": measured.name})["concepts"][0]
    assert (found["name"], found["amplify"], found["suppress"]) == (measured.name, 4.5, 0.25)
    assert (found["examples"], found["is_named"]) == (["a text"], True)
