"""Comparison of an explanation document, which `steerling trace --json` wrote, with the explanation computed again.

The document has rounded numbers and, of long lists, the strongest entries and the sum of the rest; docs/design/
trace-format.md describes it. Lists are compared by id, since entries of nearly equal size may change places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steerling_jax.attribution.index.evidence import Evidence
from steerling_jax.attribution.trace.document import CHUNK_SHARES, INPUTS, KINDS, TOKEN_SHARES
from steerling_jax.attribution.trace.explanation import ExplainedChunk, Explanation
from steerling_jax.attribution.verify.figures import Figure
from steerling_jax.errors import UserError
from steerling_jax.explain.contributions import Contributions
from steerling_jax.explain.inputs.record import InputAttribution
from steerling_jax.explain.ranking import ChunkRanking, split_by_sign

_HIT_FIELDS = ("document", "name", "source", "sha256", "offset", "text", "occurrences")


def compare_explanation(
    document: Mapping[str, Any], explanation: Explanation, figures: Mapping[str, Figure], where: str
) -> None:
    """Adds the document's values to `figures`, by the names of `verification.verify`; those of figures that are not
    among them are left out. Raises `UserError`, naming `where`, for a document that lacks fields."""
    try:
        tokens, chunks = document["tokens"], document["chunks"]
        shares, committed = explanation.shares, explanation.committed
        if (len(tokens), len(chunks)) != (len(committed), len(explanation.chunks)):
            raise UserError(
                f"{where} explains {len(tokens)} tokens in {len(chunks)} chunks, but its trace has "
                f"{len(committed)} in {len(explanation.chunks)}; make it again."
            )
        facts = figures["text" if shares is None else "shares"]
        listed = 0 if shares is None else _longest([*tokens, *chunks])
        for row, token in enumerate(tokens):
            place = f"token at {committed[row].position}"
            figures["logits"].compare(place, token["logit"], committed[row].logit)
            if shares is None:
                _no_concepts(facts, place, token, TOKEN_SHARES)
            else:
                _contributions(figures["contributions"], figures["shares"], place, token, explanation, row, listed)
            if "inputs" in figures and explanation.inputs is not None:
                _inputs_of_token(figures["inputs"], place, token["inputs"], explanation.inputs, row)
        for number, (chunk, computed) in enumerate(zip(chunks, explanation.chunks, strict=True), 1):
            place = f"chunk {number}"
            facts.compare_field(f"{place}, span", [chunk["start"], chunk["end"]], [computed.start, computed.end])
            facts.compare_field(f"{place}, text", chunk["text"], computed.text)
            if computed.ranking is None:
                _no_concepts(facts, place, chunk, CHUNK_SHARES)
            else:
                _ranking(facts, place, chunk, computed.ranking, listed)
            if "chunk_inputs" in figures:
                _inputs_of_chunk(figures["chunk_inputs"], place, chunk["inputs"], computed)
            if "evidence" in figures:
                _evidence(figures["evidence"], place, chunk["evidence"], computed.evidence)
        if shares is None:
            _no_concepts(facts, "the explanation", document, ["concepts"])
        else:
            _names(facts, document["concepts"], explanation)
        facts.compare_field("pieces", list(document["pieces"]), list(explanation.pieces))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{where} is not a whole explanation ({reason}); make it again.") from None


def _no_concepts(figure: Figure, place: str, recorded: Mapping[str, Any], fields: Sequence[str]) -> None:
    """A model without concepts has None in these fields."""
    for name in fields:
        figure.compare_field(f"{place}, {name}", recorded[name], None)


def _longest(entries: Sequence[Mapping[str, Any]]) -> int:
    """How many concepts of a kind the document lists: its longest list."""
    return max((len(entry[kind]) for entry in entries for kind in KINDS[:2]), default=0)


def _contributions(
    figure: Figure, shares: Figure, place: str, token: Mapping[str, Any], one: Explanation, row: int, listed: int
) -> None:
    c, beside = one.shares, one.log_probability
    assert c is not None
    assert beside is not None
    for kind in KINDS[:2]:
        computed = _by_concept(c, kind, "contributions", row)
        active = _by_concept(c, kind, "weights", row)
        probability = _by_concept(beside, kind, "contributions", row)
        recorded = {entry["id"]: entry for entry in token[kind]}
        contributions = {number: entry["contribution"] for number, entry in recorded.items()}
        figure.compare_listed(f"{place}, {kind}", contributions, computed, listed)
        for number, entry in recorded.items():
            shares.compare(f"{place}, activation of {kind} {number}", entry["activation"], active.get(number, 0.0))
            if "log_probability" in entry:  # documents of version 1 lack it
                figure.compare(
                    f"{place}, log-probability of {kind} {number}",
                    entry["log_probability"],
                    probability.get(number, 0.0),
                )
        rest = sum(computed.values()) - sum(computed.get(number, 0.0) for number in recorded)
        figure.compare(f"{place}, other {kind}", token[f"other_{kind}"], rest)
    if "reference_logit" in token:
        figure.compare(f"{place}, reference", token["reference_logit"], c.target_logits[row] - c.split_logits[row])
    figure.compare(f"{place}, epsilon", token["epsilon"], c.epsilon[row])
    figure.compare(f"{place}, share error", token["share_error"], c.error[row])
    _fractions(shares, place, token["net_shares"], c.net_known[row], c.net_discovered[row], c.net_epsilon[row])
    absolute = (c.absolute_known[row], c.absolute_discovered[row], abs(c.remainder[row]))
    _fractions(shares, f"{place}, absolute", token["absolute_shares"], *absolute)
    _signs(shares, place, token, *split_by_sign(c, np.array([row])))


def _by_concept(c: Contributions, kind: str, name: str, row: int) -> dict[int, float]:
    """A token's weights or contributions of a kind, by id."""
    ids, values = getattr(c, f"{kind}_ids")[row], getattr(c, f"{kind}_{name}")[row]
    return dict(zip(ids[ids >= 0].tolist(), values[ids >= 0].tolist(), strict=True))


def _fractions(figure: Figure, place: str, recorded: Mapping[str, float], *masses: float) -> None:
    total = max(float(sum(masses)), 1e-8)
    figure.compare(f"{place} shares", [recorded[kind] for kind in KINDS], [mass / total for mass in masses])


def _signs(
    figure: Figure, place: str, recorded: Mapping[str, Any], raised: Sequence[float], lowered: Sequence[float]
) -> None:
    """The shares that raise and lower logits, which documents of earlier versions lack."""
    for name, values in (("raised_shares", raised), ("lowered_shares", lowered)):
        if name in recorded:
            figure.compare(f"{place}, {name}", [recorded[name][kind] for kind in KINDS], values)


def _ranking(figure: Figure, place: str, chunk: Mapping[str, Any], ranking: ChunkRanking, listed: int) -> None:
    for kind in KINDS[:2]:
        recorded = {entry["id"]: entry["share"] for entry in chunk[kind]}
        everything = {entry.concept_id: entry.contribution for entry in ranking if entry.type == kind}
        figure.compare_listed(f"{place}, {kind}", recorded, everything, listed)
        for entry in chunk[kind]:
            if "log_probability_share" in entry:
                computed_share = ranking.log_probability_shares.get((kind, entry["id"]), 0.0)
                figure.compare(
                    f"{place}, log-probability of {kind} {entry['id']}", entry["log_probability_share"], computed_share
                )
    for name, values in (("net_shares", ranking.net_shares), ("absolute_shares", ranking.absolute_shares)):
        figure.compare(f"{place}, {name}", [chunk[name][kind] for kind in KINDS], values)
    _signs(figure, place, chunk, ranking.raised_shares, ranking.lowered_shares)
    figure.compare(f"{place}, epsilon percent", chunk["epsilon_percent"] / 100, ranking.epsilon_percent / 100)


def _names(figure: Figure, names: Mapping[str, Mapping[str, str]], explanation: Explanation) -> None:
    for kind in KINDS[:2]:
        for number, name in names[kind].items():
            figure.compare_field(f"name of {kind} concept {number}", name, explanation.name(kind, int(number)))


def _inputs_of_token(
    figure: Figure, place: str, recorded: Mapping[str, Any], inputs: InputAttribution, row: int
) -> None:
    _strongest(figure, place, recorded, inputs.attributions[row])
    figure.compare(f"{place}, value", recorded["value"], inputs.path_logits[row])
    figure.compare(f"{place}, baseline", recorded["baseline"], inputs.baseline_logits[row])
    figure.compare(f"{place}, completeness error", recorded["completeness_error"], inputs.completeness_error[row])
    figure.compare_field(f"{place}, nodes", recorded["nodes"], int(inputs.nodes[row]))
    figure.compare_field(f"{place}, converged", recorded["converged"], bool(inputs.converged[row]))


def _inputs_of_chunk(figure: Figure, place: str, recorded: Mapping[str, Any] | None, chunk: ExplainedChunk) -> None:
    span = chunk.inputs
    if recorded is None or span is None:
        figure.compare_field(f"{place}, inputs", recorded is None, span is None)
        return
    _strongest(figure, place, recorded, span.attributions)
    figure.compare(f"{place}, value", recorded["value"], span.path)
    figure.compare(f"{place}, baseline", recorded["baseline"], span.baseline)
    figure.compare(f"{place}, completeness error", recorded["completeness_error"], span.completeness_error)
    figure.compare_field(f"{place}, converged", recorded["converged"], span.converged)


def _strongest(figure: Figure, place: str, recorded: Mapping[str, Any], attributions: np.ndarray) -> None:
    """The listed positions and the sum of the rest, for attributions (T,)."""
    listed = dict(zip(recorded["positions"], recorded["attributions"], strict=True))
    computed = dict(enumerate(attributions.tolist()))
    figure.compare_listed(f"{place}, input", listed, computed, INPUTS)
    rest = sum(computed.values()) - sum(computed.get(position, 0.0) for position in listed)
    figure.compare(f"{place}, rest of the inputs", recorded["rest"], rest)


def _evidence(figure: Figure, place: str, recorded: Mapping[str, Any] | None, evidence: Evidence | None) -> None:
    if recorded is None or evidence is None:
        figure.compare_field(f"{place}, evidence", recorded is None, evidence is None)
        return
    figure.compare_field(f"{place}, scores", sorted(recorded["thresholds"]), sorted(evidence.thresholds))
    for score, threshold in evidence.thresholds.items():
        _relative(figure, f"{place}, threshold of {score}", recorded["thresholds"].get(score, 0.0), threshold)
        if score in recorded.get("best", {}):  # absent in documents of versions that did not record it
            _relative(figure, f"{place}, best of {score}", recorded["best"][score], evidence.best[score])
        shares, computed = recorded["sources"].get(score, {}), evidence.sources(score)
        for source in sorted({*shares, *computed}):
            figure.compare(f"{place}, share of {source}", shares.get(source, 0.0), computed.get(source, 0.0))
    figure.compare_field(f"{place}, nothing close", sorted(recorded["nothing_close"]), sorted(evidence.nothing_close))
    found = {(hit["score"], hit["start"], hit["end"], *hit["query"]): hit for hit in recorded["hits"]}
    expected = {(hit.score, hit.start, hit.end, *hit.query): hit for hit in evidence.hits}
    figure.compare_field(f"{place}, places of hits", sorted(found), sorted(expected))
    for key in found.keys() & expected.keys():
        _relative(figure, f"{place}, {key[0]}", found[key]["value"], expected[key].value)
        for name in ("chunk", *_HIT_FIELDS):
            figure.compare_field(f"{place}, {key[0]}, {name}", found[key][name], getattr(expected[key], name))


def _relative(figure: Figure, place: str, recorded: float, computed: float) -> None:
    """Numbers of equal tokens and cosines are one figure, so the former are taken relative to their size."""
    size = max(abs(computed), 1.0)
    figure.compare(place, recorded / size, computed / size)
