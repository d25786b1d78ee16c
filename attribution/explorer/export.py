"""A text with its explanation as one file: a page that works offline, JSON, or a graph of its last token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from steerling_jax.attribution.explorer.page import make_page
from steerling_jax.attribution.explorer.panels import CONCEPTS
from steerling_jax.attribution.trace.explanation import EvidenceSearch, explain
from steerling_jax.attribution.trace.graph import make_graph
from steerling_jax.attribution.trace.parts import complete_document
from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.decoding.trace_record import TraceRecord
from steerling_jax.progress import Progress


class ExportedFile(NamedTuple):
    """The content of a file, its media type and the end of its name."""

    content: bytes
    media_type: str
    suffix: str


def export_file(
    bundle: Bundle,
    autoencoders: Sequence[Autoencoder],
    record: TraceRecord,
    kind: str,
    parts: Sequence[str],
    find_evidence: EvidenceSearch | None,
    progress: Progress,
    state: str = "",
) -> ExportedFile:
    """The file of a text. kind: "html", "json" or "graph". parts: "inputs", "considered" and "evidence", which take
    longer. state: of the page, see `page.make_page`."""
    explanation = explain(
        bundle,
        record,
        inputs="inputs" in parts or kind == "graph",
        find_evidence=find_evidence if "evidence" in parts else None,
        autoencoders=autoencoders,
        progress=progress,
    )
    if kind == "graph":
        return ExportedFile(_json(make_graph(bundle, explanation, None, progress)), "application/json", "graph.json")
    document = complete_document(bundle, explanation, CONCEPTS, steps="considered" in parts, progress=progress)
    if kind == "json":
        return ExportedFile(_json(document), "application/json", "json")
    # A text may contain a lone surrogate, which UTF-8 cannot encode; in the page's JSON it is written as an escape.
    return ExportedFile(make_page(document, state).encode("utf-8", "backslashreplace"), "text/html", "html")


def _json(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode()
