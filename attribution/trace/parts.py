"""Parts that an explanation's document can have besides: what each step considered, and what its concepts are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from steerling_jax.attribution.trace.document import make_document
from steerling_jax.attribution.trace.explanation import Explanation
from steerling_jax.attribution.trace.features import TraceFeatures, feature_cards, head_of
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.concept import HEADS
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.trace import Trace
from steerling_jax.explain.considered import ConsideredStep, considered
from steerling_jax.explain.promoted_tokens import promoted_pieces
from steerling_jax.progress import Progress, no_progress

_PROMOTED = 6  # tokens of a concept's card


def complete_document(
    bundle: Bundle, explanation: Explanation, count: int, *, steps: bool = True, progress: Progress = no_progress
) -> dict[str, Any]:
    """The document of `make_document` with cards of its concepts and, with `steps`, what each step considered."""
    document = make_document(explanation, count)
    cards = {} if explanation.concepts is None else concept_cards(bundle, document["concepts"])
    cards |= _feature_cards(bundle, explanation.features, document)
    if cards:
        document["cards"] = cards
    if steps:
        record = explanation.record
        document["considered"] = considered_part(bundle, explanation.trace, record.generation, None, progress)
    return document


def concept_cards(bundle: Bundle, names: Mapping[str, Iterable[str]]) -> dict[str, dict[str, dict[str, Any]]]:
    """For each head and concept id in `names`: description, group, and the tokens that it promotes."""
    cards: dict[str, dict[str, dict[str, Any]]] = {}
    for head in HEADS:
        ids = [int(id) for id in names.get(head, ())]
        promoted = promoted_pieces(bundle, ids, _PROMOTED, head) if ids else []
        cards[head] = {}
        for id, words in zip(ids, promoted, strict=True):
            one = bundle.concepts.get(id, head)
            cards[head][str(id)] = {"description": one.description, "group": one.group, "promotes": words}
    return cards


def _feature_cards(
    bundle: Bundle, found: TraceFeatures, document: Mapping[str, Any]
) -> dict[str, dict[str, dict[str, Any]]]:
    """The cards of all features that a document lists, by head and number."""
    listed: dict[str, set[int]] = {}
    if found.source is not None:
        listed[head_of(found.source)] = {one["feature"] for row in document["tokens"] for one in row["features"]}
    for part in document.get("activations", ()):
        listed[part["head"]] = {feature for row in part["tokens"] for feature, _ in row}
    autoencoders = [one for one in (found.source, *(part.autoencoder for part in found.activations)) if one is not None]
    return {head_of(one): feature_cards(bundle, one, sorted(listed[head_of(one)])) for one in autoencoders}


def considered_part(
    bundle: Bundle, trace: Trace, generation: GenerationConfig | None, step: int | None, progress: Progress
) -> dict[str, Any]:
    """What one step had to choose from, or all of them, and at how many the replay agrees with the text.

    pieces: the text of every candidate, by token id.
    """
    steps = considered(bundle, trace, generation, None if step is None else [step], progress=progress)
    agreeing = [one.agrees for one in steps if one.agrees is not None]
    ids = {c.token_id for one in steps for place in one.positions for c in place.candidates}
    return {
        "steps": [_step(one) for one in steps],
        "agreeing": sum(agreeing),
        "compared": len(agreeing),
        "pieces": {str(id): bundle.tokenizer.piece(id) for id in sorted(ids)},
    }


def _step(one: ConsideredStep) -> dict[str, Any]:
    """`open`: for each position `[position, [[token, probability, raw probability], …], entropy, confidence,
    temperature]`."""
    return {
        "step": one.step,
        "open": [
            [
                place.position,
                [[c.token_id, _short(c.probability), _short(c.raw_probability)] for c in place.candidates],
                _short(place.entropy),
                _short(place.confidence),
                None if place.temperature is None else _short(place.temperature),
            ]
            for place in one.positions
        ],
        "order": list(one.order),
        "agrees": one.agrees,
    }


def _short(value: Any) -> float:
    """Four significant digits: a step has dozens of probabilities, which are read as per cent."""
    return float(f"{float(value):.4g}")
