"""Verification of a recorded trace: its figures are computed again from the record, the weights and the index."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import numpy as np

from steerling_jax.attribution.trace.explanation import EvidenceSearch, Explanation, explain
from steerling_jax.attribution.verify.explained import compare_explanation
from steerling_jax.attribution.verify.figures import Figure, Identity, Verification
from steerling_jax.bundle import Bundle
from steerling_jax.decoding.trace import Trace
from steerling_jax.decoding.trace_record import TraceRecord, origin_of
from steerling_jax.errors import require
from steerling_jax.explain.committed_logits import committed_logits
from steerling_jax.explain.inputs.integrated_gradients import attribute_inputs, node_counts
from steerling_jax.explain.inputs.record import DEFAULT_TOLERANCE, InputAttribution, Tolerance
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.progress import Progress, no_progress

# Of the largest value of a figure. Sums of float32 differ between processors in their seventh digit, those of bfloat16
# in their third.
TOLERANCES = {"float32": 1e-3, "bfloat16": 3e-2}
_NAMES = {
    "logits": "logits",
    "contributions": "contributions of concepts",
    "shares": "shares and activations",
    "inputs": "input attributions",
    "chunk_inputs": "input attributions of chunks",
    "evidence": "training-data evidence",
}


def verify(
    bundle: Bundle,
    record: TraceRecord,
    document: Mapping[str, Any] | None = None,
    *,
    inputs: bool = True,
    find_evidence: EvidenceSearch | None = None,
    index: str | None = None,
    tolerance: float | None = None,
    where: str = "The record",
    progress: Progress = no_progress,
) -> Verification:
    """Computes the figures of `record` again and compares them.

    Args:
        document: the explanation document that the record is from. Without one, contributions and input attributions
            are computed and compared with the recorded logits, which they have to add up to.
        inputs: also input attributions, which take the longest.
        find_evidence, index: the search in the index, and its fingerprint.
        tolerance: the largest accepted difference, as a fraction of a figure's largest value; None for `TOLERANCES`.
        where: the record's name in error messages.

    Raises:
        UserError: the record is of another model, contradicts itself, or is incomplete.
    """
    if document is not None:
        _check_document(document, where)
    limit = TOLERANCES[_precision(record)] if tolerance is None else tolerance
    left_out: dict[str, str] = {}
    in_record = document is None or any(token.get("inputs") for token in document["tokens"])
    if not (inputs and in_record):
        left_out |= dict.fromkeys(("inputs", "chunk_inputs"), "not requested" if in_record else "not in the record")
    if document is None or find_evidence is None:
        recorded = document is not None and has_evidence(document)
        left_out["evidence"] = "not requested" if recorded else "not in the record"
    if document is None:
        left_out |= dict.fromkeys(("shares", "chunk_inputs"), "not in the record")
    names = dict(_NAMES)
    if not (isinstance(bundle.config, ModelConfig) and bundle.config.concept is not None):
        left_out |= dict.fromkeys(("contributions", "shares"), "the model has no concepts")
        # The figure of shares has the texts and spans of chunks as well; here they are one of their own.
        names |= {} if document is None else {"text": "text and chunks"}
    figures = {name: Figure(text, limit) for name, text in names.items() if name not in left_out}
    attribute = None
    if "inputs" in figures:
        attribute = lambda trace: _attribute(bundle, trace, document, progress)  # noqa: E731
    # A document of version 1 does not say what it splits: it is the raw logit.
    reference = "raw" if document is None else document.get("reference") or "raw"
    explanation = explain(
        bundle,
        record,
        inputs=attribute or False,
        reference=reference,
        find_evidence=find_evidence,
        progress=progress,
        source=where,
    )
    _compare_logits(figures, bundle, explanation)
    if document is not None:
        compare_explanation(document, explanation, figures, where)
    return Verification(
        _identities(record, bundle, index), list(figures.values()), {_NAMES[name]: left_out[name] for name in left_out}
    )


def _check_document(document: Mapping[str, Any], where: str) -> None:
    for name in ("tokens", "chunks"):
        entries = document.get(name)
        require(
            isinstance(entries, list) and all(isinstance(one, Mapping) for one in entries),
            f"{where} has no list of {name}: it is not a whole explanation; make it again.",
        )


def has_evidence(document: Mapping[str, Any]) -> bool:
    """Whether an explanation document contains training-data evidence."""
    return any(chunk.get("evidence") for chunk in document["chunks"])


def _precision(record: TraceRecord) -> str:
    kinds = (record.origin.dtype, record.origin.matmul_dtype)
    return "bfloat16" if "bfloat16" in kinds else "float32"


def _identities(record: TraceRecord, bundle: Bundle, index: str | None) -> list[Identity]:
    origin, now = record.origin, origin_of(bundle)
    rows = [
        Identity("weights", origin.fingerprint, now.fingerprint),
        Identity("tokenizer", origin.tokenizer_sha256, now.tokenizer_sha256),
        Identity("catalogue", origin.catalogue, now.catalogue),
    ]
    return rows if index is None else [*rows, Identity("index", record.index, index)]


def _compare_logits(figures: Mapping[str, Figure], bundle: Bundle, explanation: Explanation) -> None:
    """The recorded logits beside those of the snapshots, of the sum of the parts, and of the input attributions."""
    shares, inputs = explanation.shares, explanation.inputs
    logits = committed_logits(bundle, explanation.trace)
    for row, one in enumerate(explanation.committed):
        place = f"token at {one.position}"
        figures["logits"].compare(place, one.logit, logits[row])
        if shares is not None:
            parts = shares.known_contributions[row].sum() + shares.discovered_contributions[row].sum()
            whole = parts + shares.epsilon[row] + (shares.target_logits[row] - shares.split_logits[row])
            figures["contributions"].compare(f"{place}, sum of the parts", one.logit, whole)
        if "inputs" in figures and inputs is not None:
            figures["inputs"].compare(f"{place}, value on the snapshot", one.logit, inputs.path_logits[row])


def _attribute(
    bundle: Bundle, trace: Trace, document: Mapping[str, Any] | None, progress: Progress
) -> InputAttribution:
    """The input attributions of all committed tokens, with the numbers of nodes that the document records.

    Whether a number of nodes was enough can be decided differently on another processor, where the error is close to
    the tolerance; another number would then change attributions by as much as the tolerance.
    """
    if document is None:
        return attribute_inputs(bundle, trace, progress=progress)
    tolerance = _tolerance(document)
    # The record counts the nodes of all attempts: 8, 8 + 16, and so on.
    attempts = node_counts(None, tolerance)
    last = dict(zip(accumulate(attempts), attempts, strict=True))
    used = [(token.get("inputs") or {}).get("nodes") for token in document["tokens"]]
    groups: dict[int | None, list[int]] = defaultdict(list)
    for row, (_, position, *_) in enumerate(trace.flat()):
        nodes = used[row] if row < len(used) else None
        groups[last.get(nodes) if isinstance(nodes, int) else None].append(position)
    parts: list[InputAttribution] = []
    for nodes, positions in groups.items():
        part = attribute_inputs(bundle, trace, positions=positions, nodes=nodes, tolerance=tolerance, progress=progress)
        if nodes is not None:
            total = next(total for total, final in last.items() if final == nodes)
            part = dataclasses.replace(part, nodes=np.full_like(part.nodes, total))
        parts.append(part)
    return _in_order(parts, trace)


def _tolerance(document: Mapping[str, Any]) -> Tolerance:
    errors = document.get("errors")
    recorded = errors.get("tolerance") if isinstance(errors, Mapping) else None
    names = [one.name for one in dataclasses.fields(Tolerance)]
    if not isinstance(recorded, Mapping) or not all(isinstance(recorded.get(name), int | float) for name in names):
        return DEFAULT_TOLERANCE
    return Tolerance(**{name: recorded[name] for name in names})


def _in_order(parts: list[InputAttribution], trace: Trace) -> InputAttribution:
    """Attributions of disjoint targets as one, in the trace's order."""
    whole: dict[str, Any] = {}
    positions = np.concatenate([part.target_positions for part in parts])
    row_of = {int(position): row for row, position in enumerate(positions)}
    order = [row_of[position] for _, position, *_ in trace.flat()]
    for one in dataclasses.fields(InputAttribution):
        values = [getattr(part, one.name) for part in parts]
        if isinstance(values[0], np.ndarray):
            whole[one.name] = np.concatenate(values)[order]
        elif one.name == "targets":
            targets = [target for each in values for target in each]
            whole[one.name] = tuple(targets[row] for row in order)
    return dataclasses.replace(parts[0], **whole)
