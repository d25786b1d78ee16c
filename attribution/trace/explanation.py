"""A trace taken apart: chunk by chunk the concepts, the inputs and the training data behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from steerling_jax.attribution.index.evidence import Evidence
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.catalogue import Catalogue
from steerling_jax.decoding.generation import text_ids
from steerling_jax.decoding.trace import Trace
from steerling_jax.decoding.trace_record import TraceRecord, restore
from steerling_jax.explain.contributions import Contributions, concept_contributions
from steerling_jax.explain.inputs.integrated_gradients import attribute_inputs
from steerling_jax.explain.inputs.record import InputAttribution, SpanAttribution
from steerling_jax.explain.ranking import ChunkRanking, ConceptShare, chunk_spans, rank_chunk
from steerling_jax.progress import Progress

# Finds training data for tokens [start, end) of a text, given as ids.
Find = Callable[[np.ndarray, int, int], Evidence]


@dataclass(frozen=True)
class ExplainedChunk:
    """Canvas positions [start, end) and what is behind them. inputs: None where none were asked for, or nothing was
    written there; evidence: None without an index."""

    start: int
    end: int
    text: str
    ranking: ChunkRanking
    inputs: SpanAttribution | None = None
    evidence: Evidence | None = None

    def top(self, kind: str, count: int) -> list[ConceptShare]:
        """The `count` concepts of a kind ("known" or "discovered") with the largest absolute share."""
        return [entry for entry in self.ranking if entry.type == kind][:count]


@dataclass(frozen=True)
class Explanation:
    """All that is known of a trace. shares and inputs have one row a committed token, in the trace's order; pieces:
    each canvas position's token as text, as it was committed, also where an end of turn overwrote it. concepts: of the
    model, for their names."""

    record: TraceRecord
    trace: Trace
    chunks: tuple[ExplainedChunk, ...]
    shares: Contributions
    inputs: InputAttribution | None
    pieces: tuple[str, ...]
    concepts: Catalogue

    def name(self, kind: str, concept_id: int) -> str:
        """A concept's name; kind is "known" or "discovered"."""
        return self.concepts.get(concept_id, "known" if kind == "known" else "discovered").name

    @property
    def share_error(self) -> float:
        """The largest distance, over tokens, between a logit and the sum of its parts."""
        return float(self.shares.error.max(initial=0.0))

    @property
    def completeness_error(self) -> float | None:
        """The largest distance, over tokens, between the inputs' sum and what they should add up to."""
        return None if self.inputs is None else float(np.abs(self.inputs.completeness_error).max(initial=0.0))


def explain(
    bundle: Bundle,
    record: TraceRecord,
    *,
    inputs: bool = True,
    find: Find | None = None,
    tell: Progress | None = None,
    where: str = "The trace",
) -> Explanation:
    """Explains every chunk of `record`; a text without chunk boundaries is one chunk.

    inputs: also attribute to the tokens before, which takes the longest. find: also look for training data. where: what
    errors call the record. Raises `UserError` for another model's trace and for a model without concepts.
    """
    trace, config = restore(record, bundle, where), bundle.config
    shares = concept_contributions(bundle, trace)
    found = attribute_inputs(bundle, trace, progress=tell) if inputs else None
    spans = chunk_spans(trace, trace.prompt_length, config.endofchunk_token_id, config.eot_id)
    chunks = []
    for number, (start, end) in enumerate(spans):
        if tell is not None and find is not None:
            tell("training data", number, len(spans))
        written = bool(((shares.positions >= start) & (shares.positions < end)).any())
        ids = text_ids(trace.tokens[start:end], config)
        chunks.append(
            ExplainedChunk(
                start,
                end,
                bundle.tokenizer.decode(ids),
                rank_chunk(shares, start, end),
                found.of_span(start, end) if found is not None and written else None,
                find(trace.tokens, start, end) if find is not None and ids else None,
            )
        )
    canvas = trace.tokens.copy()
    canvas[shares.positions] = shares.token_ids
    pieces = tuple(map(bundle.tokenizer.piece, canvas.tolist()))
    return Explanation(record, trace, tuple(chunks), shares, found, pieces, bundle.concepts)
