"""An explanation as one JSON document, which the page shows too. docs/design/trace-format.md describes its fields."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from steerling_jax.attribution.index.evidence import Evidence
from steerling_jax.attribution.trace.explanation import ExplainedChunk, Explanation
from steerling_jax.attribution.trace.features import TraceFeatures, features_of_token, head_of
from steerling_jax.decoding.text_ids import NO_MASK
from steerling_jax.decoding.trace_record import to_plain
from steerling_jax.explain.contributions import Contributions
from steerling_jax.explain.inputs.record import InputAttribution
from steerling_jax.explain.ranking import ChunkRanking, split_by_sign
from steerling_jax.io.trace_file import EXPLANATION, EXPLANATION_VERSION

INPUTS = 32  # positions listed for a token or a chunk, by absolute attribution; the others are summed up as `rest`
KINDS = ("known", "discovered", "epsilon")
_SHARES = ("net_shares", "absolute_shares", "raised_shares", "lowered_shares")
# Fields of tokens and of chunks that only models with concepts have.
TOKEN_SHARES = (
    "reference_logit", "known", "other_known", "discovered", "other_discovered", "epsilon", "share_error", *_SHARES,
)  # fmt: skip
CHUNK_SHARES = ("known", "discovered", *_SHARES, "epsilon_percent")


def make_document(explanation: Explanation, count: int) -> dict[str, Any]:
    """The document, with `count` concepts of each kind per token and per chunk.

    Attributions are rounded to six significant digits; the trace itself is exact. For a model without concepts the
    fields of concepts are None.
    """
    inputs = explanation.inputs
    tokens = [_token(explanation, row, count) for row in range(len(explanation.committed))]
    chunks = [_chunk(chunk, count) for chunk in explanation.chunks]
    return {
        "format": EXPLANATION,
        "version": EXPLANATION_VERSION,
        "reference": None if explanation.shares is None else explanation.shares.reference,
        "strict": explanation.strict,
        "trace": to_plain(explanation.record),
        "pieces": list(explanation.pieces),
        "characters": [list(run) for run in explanation.characters],
        "errors": {
            "largest_share_error": _optional(explanation.share_error),
            "largest_completeness_error": None if inputs is None else rounded(explanation.completeness_error),
            "targets": len(tokens),
            "unconverged": None if inputs is None else int((~inputs.converged).sum()),
            "tolerance": None if inputs is None else dataclasses.asdict(inputs.tolerance),
        },
        "input_method": None if inputs is None else inputs.method,
        "input_baseline": None if inputs is None else input_baseline(explanation),
        "concepts": None if explanation.shares is None else _names(explanation, tokens, chunks),
        "tokens": tokens,
        "chunks": chunks,
        # Features are of models with a bottleneck, and of autoencoders that were given.
        **_features(explanation.features),
    }


def _token(explanation: Explanation, row: int, count: int) -> dict[str, Any]:
    one, shares, parts = explanation.committed[row], explanation.shares, explanation.features.parts
    return {
        "position": one.position,
        "step": one.step,
        "token_id": one.token_id,
        "logit": rounded(one.logit),
        **(dict.fromkeys(TOKEN_SHARES) if shares is None else _token_shares(explanation, shares, row, count)),
        "inputs": None if explanation.inputs is None else _inputs(explanation.inputs, row),
        **({} if parts is None else features_of_token(parts, one.position, count)),
    }


def _features(found: TraceFeatures) -> dict[str, Any]:
    """The field `features`, what the features of tokens are parts of, and `activations`, those of other autoencoders;
    each only where there are some."""
    fields: dict[str, Any] = {}
    if found.parts is not None and found.source is not None:
        parts = found.parts
        fields["features"] = {
            "reference": parts.reference,
            "largest_error": rounded(parts.error.max()),
            "promoted": {str(feature): list(words) for feature, words in parts.promoted.items()},
            "head": head_of(found.source),
            "layer": found.source.layer,
            "name": found.source.name,
        }
    if found.activations:
        fields["activations"] = [
            {
                "head": head_of(one.autoencoder),
                "layer": one.autoencoder.layer,
                "name": one.autoencoder.name,
                "tokens": [
                    [[feature, rounded(value)] for feature, value in zip(*row, strict=True) if value > 0]
                    for row in zip(one.features.tolist(), one.values.tolist(), strict=True)
                ],
            }
            for one in found.activations
        ]
    return fields


def _token_shares(explanation: Explanation, c: Contributions, row: int, count: int) -> dict[str, Any]:
    """The concepts of a token."""
    beside = explanation.log_probability
    token: dict[str, Any] = {"reference_logit": rounded(c.target_logits[row] - c.split_logits[row])}
    for kind in KINDS[:2]:
        ids, weights, values, probability = (
            getattr(of, f"{kind}_{name}")[row]
            for of, name in ((c, "ids"), (c, "weights"), (c, "contributions"), (beside, "contributions"))
        )
        order = [i for i in np.argsort(-np.abs(values), kind="stable").tolist() if ids[i] >= 0]
        token[kind] = [
            {
                "id": int(ids[i]),
                "activation": rounded(weights[i]),
                "contribution": rounded(values[i]),
                "log_probability": rounded(probability[i]),
            }
            for i in order[:count]
        ]
        token[f"other_{kind}"] = rounded(values[order[count:]].sum())
    token["epsilon"] = rounded(c.epsilon[row])
    token["share_error"] = rounded(c.error[row])
    token["net_shares"] = _fractions(c.net_known[row], c.net_discovered[row], c.net_epsilon[row])
    token["absolute_shares"] = _fractions(c.absolute_known[row], c.absolute_discovered[row], abs(c.remainder[row]))
    raised, lowered = split_by_sign(c, np.array([row]))
    return token | {"raised_shares": _by_kind(raised), "lowered_shares": _by_kind(lowered)}


def _inputs(inputs: InputAttribution, row: int) -> dict[str, Any]:
    return strongest(inputs.attributions[row]) | {
        "value": rounded(inputs.path_logits[row]),
        "baseline": rounded(inputs.baseline_logits[row]),
        "completeness_error": rounded(inputs.completeness_error[row]),
        "nodes": int(inputs.nodes[row]),
        "converged": bool(inputs.converged[row]),
    }


def strongest(values: np.ndarray) -> dict[str, Any]:
    """The positions with the largest absolute values of (T,), their values, and the sum of all others."""
    order = np.argsort(-np.abs(values), kind="stable")
    listed = [i for i in order[:INPUTS].tolist() if values[i] != 0]
    return {
        "positions": listed,
        "attributions": [rounded(values[i]) for i in listed],
        "rest": rounded(values.sum() - values[listed].sum()),
    }


def _chunk(chunk: ExplainedChunk, count: int) -> dict[str, Any]:
    span = chunk.inputs
    return {
        "start": chunk.start,
        "end": chunk.end,
        "text": chunk.text,
        **(dict.fromkeys(CHUNK_SHARES) if chunk.ranking is None else _chunk_shares(chunk, chunk.ranking, count)),
        "inputs": None
        if span is None
        else strongest(span.attributions)
        | {
            "value": rounded(span.path),
            "baseline": rounded(span.baseline),
            "completeness_error": rounded(span.completeness_error),
            "converged": span.converged,
        },
        "evidence": None if chunk.evidence is None else evidence_panel(chunk.evidence),
    }


def _chunk_shares(chunk: ExplainedChunk, ranking: ChunkRanking, count: int) -> dict[str, Any]:
    """The concepts of a chunk."""
    return {
        **{
            kind: [
                {
                    "id": e.concept_id,
                    "share": rounded(e.contribution),
                    "log_probability_share": rounded(ranking.log_probability_shares[kind, e.concept_id]),
                }
                for e in chunk.top(kind, count)
            ]
            for kind in KINDS[:2]
        },
        "net_shares": _by_kind(ranking.net_shares),
        "absolute_shares": _by_kind(ranking.absolute_shares),
        "raised_shares": _by_kind(ranking.raised_shares),
        "lowered_shares": _by_kind(ranking.lowered_shares),
        "epsilon_percent": rounded(ranking.epsilon_percent),
    }


def input_baseline(explanation: Explanation) -> str:
    """What input attributions start from: "masks", or the "mean embedding" of all tokens for a model without masks."""
    return "mean embedding" if explanation.trace.mask_id == NO_MASK else "masks"


def evidence_panel(evidence: Evidence) -> dict[str, Any]:
    return {
        "thresholds": {score: rounded(value) for score, value in evidence.thresholds.items()},
        "nothing_close": list(evidence.nothing_close),
        "best": {score: rounded(value) for score, value in evidence.best.items()},
        "hits": [
            dataclasses.asdict(hit) | {"value": rounded(hit.value), "query": list(hit.query)} for hit in evidence.hits
        ],
        "sources": {
            score: {name: rounded(share) for name, share in evidence.sources(score).items()}  # pyright: ignore[reportArgumentType]
            for score in evidence.thresholds
        },
    }


def _names(
    explanation: Explanation, tokens: list[dict[str, Any]], chunks: list[dict[str, Any]]
) -> dict[str, dict[str, str]]:
    """Names of the concepts in the document, by kind and id."""
    names: dict[str, dict[str, str]] = {}
    for kind in KINDS[:2]:
        ids = sorted({entry["id"] for row in (*tokens, *chunks) for entry in row[kind]})
        names[kind] = {str(i): explanation.name(kind, i) for i in ids}
    return names


def _by_kind(shares: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(KINDS, map(rounded, shares), strict=True))


def _fractions(*masses: float) -> dict[str, float]:
    total = max(float(sum(masses)), 1e-8)
    return {kind: rounded(mass / total) for kind, mass in zip(KINDS, masses, strict=True)}


def _optional(value: float | None) -> float | None:
    return None if value is None else rounded(value)


def rounded(value: Any) -> float:
    """Rounds to six significant digits: the values are float32 sums, whose seventh digit is rounding error."""
    return float(f"{float(value):.6g}")
