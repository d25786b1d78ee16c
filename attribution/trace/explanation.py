"""An explanation of a trace: for each chunk its concepts, the input tokens and the training data behind it.

Models without concepts have input tokens only: `shares` and `ranking` are None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from steerling_jax.attribution.index.evidence import Evidence
from steerling_jax.attribution.trace.features import NO_FEATURES, TraceFeatures, check_autoencoders, trace_features
from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.concepts.catalogue import Catalogue
from steerling_jax.decoding.characters import TextRun, text_runs
from steerling_jax.decoding.text_ids import text_ids
from steerling_jax.decoding.trace import Trace
from steerling_jax.decoding.trace_record import TraceRecord, restore
from steerling_jax.explain.contributions import Contributions, concept_contributions
from steerling_jax.explain.hidden_rows import hidden_rows
from steerling_jax.explain.inputs.integrated_gradients import attribute_inputs
from steerling_jax.explain.inputs.record import InputAttribution, SpanAttribution
from steerling_jax.explain.logit_shares import Reference
from steerling_jax.explain.ranking import ChunkRanking, ConceptShare, chunk_spans, rank_chunk
from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.progress import Progress, no_progress

# Finds training data for tokens [start, end) of a text of token ids (T,): (ids, start, end) -> Evidence.
EvidenceSearch = Callable[[np.ndarray, int, int], Evidence]
AttributeInputs = Callable[[Trace], InputAttribution]
# A concept that raises the logits of all tokens alike says nothing about the choice of a token, but has a share of
# every raw logit. So reports show shares of centred logits; the published ranking is that of "raw".
DEFAULT_REFERENCE: Reference = "vocabulary"


class CommittedToken(NamedTuple):
    """A committed token: the step, the canvas position, the id, and the raw logit that the trace records."""

    step: int
    position: int
    token_id: int
    logit: float


@dataclass(frozen=True)
class ExplainedChunk:
    """Canvas positions [start, end) with their attribution.

    ranking is None for a model without concepts. inputs is None if input attribution was not requested or no token was
    committed there; evidence is None without an index.
    """

    start: int
    end: int
    text: str
    ranking: ChunkRanking | None
    inputs: SpanAttribution | None = None
    evidence: Evidence | None = None

    def top(self, kind: str, count: int) -> list[ConceptShare]:
        """The `count` concepts of a kind ("known" or "discovered") with the largest absolute share."""
        return [entry for entry in self.ranking or () if entry.type == kind][:count]


@dataclass(frozen=True)
class Explanation:
    """The attribution of every committed token and every chunk of a trace.

    Attributes:
        record, trace: The record that is explained, and its trace restored for the model.
        chunks: The chunks, in order.
        committed: The committed tokens, in the trace's order.
        shares, inputs: Concept contributions and input attributions, one row per committed token. shares is None for a
            model without concepts.
        log_probability: The contributions to the tokens' log-probabilities (reference "model"), beside `shares`.
        pieces: The text of each canvas position's token as it was committed, also where an end of turn overwrote it.
        concepts: The model's catalogue, for names; None for a model without concepts.
        characters: The same canvas as runs of tokens that make whole characters.
        strict: Whether concepts are all that varies: epsilon is then a constant vector, the same at every position.
        features: The features of the model's bottleneck and of the given autoencoders.
    """

    record: TraceRecord
    trace: Trace
    chunks: tuple[ExplainedChunk, ...]
    committed: tuple[CommittedToken, ...]
    shares: Contributions | None
    log_probability: Contributions | None
    inputs: InputAttribution | None
    pieces: tuple[str, ...]
    concepts: Catalogue | None
    characters: tuple[TextRun, ...]
    strict: bool = False
    features: TraceFeatures = NO_FEATURES

    def name(self, kind: str, concept_id: int) -> str:
        """A concept's name; kind is "known" or "discovered"."""
        assert self.concepts is not None
        return self.concepts.get(concept_id, "known" if kind == "known" else "discovered").name

    @property
    def rest(self) -> str:
        """What the part of a logit that belongs to no concept is called."""
        return "epsilon" if self.shares is None else self.shares.rest

    @property
    def share_error(self) -> float | None:
        """The largest difference, over tokens, between what is split and the sum of its parts."""
        return None if self.shares is None else self.shares.largest_error

    @property
    def completeness_error(self) -> float | None:
        """The largest difference, over tokens, between the sum of the inputs' attributions and the change of the logit
        that they explain; None without input attribution."""
        return None if self.inputs is None else float(np.abs(self.inputs.completeness_error).max(initial=0.0))


def explain(
    bundle: Bundle,
    record: TraceRecord,
    *,
    inputs: bool | AttributeInputs = True,
    reference: Reference = DEFAULT_REFERENCE,
    find_evidence: EvidenceSearch | None = None,
    autoencoders: Sequence[Autoencoder] = (),
    progress: Progress = no_progress,
    source: str = "The trace",
) -> Explanation:
    """Explains every chunk of `record`; a text without chunk boundaries is one chunk.

    Args:
        inputs: Also attribute to input tokens, which takes the longest; or the function that does it.
        reference: What is split into shares, see `concept_contributions`.
        find_evidence: Also search the training data with this function.
        autoencoders: Of blocks of the model, each of another one, whose features are explained too.
        source: The name of the record in error messages.

    Raises `UserError` for a trace or an autoencoder of another model.
    """
    check_autoencoders(bundle, autoencoders)
    trace, config = restore(record, bundle, source), bundle.config
    shares = of_probability = None
    concept = config.concept if isinstance(config, ModelConfig) else None
    if concept is not None:
        read = replace(trace, hidden=hidden_rows(bundle, trace, progress=progress))  # for both splits
        shares = concept_contributions(bundle, read, reference=reference)
        of_probability = shares if reference == "model" else concept_contributions(bundle, read, reference="model")
    if callable(inputs):
        attributions = inputs(trace)
    else:
        attributions = attribute_inputs(bundle, trace, progress=progress) if inputs else None
    committed = tuple(CommittedToken(*one) for one in trace.flat())
    spans = _spans(record, trace, config)
    chunks = []
    for number, (start, end) in enumerate(spans):
        if find_evidence is not None:
            progress("training data", number, len(spans))
        has_commits = any(start <= one.position < end for one in committed)
        ids = text_ids(trace.tokens[start:end], config)
        chunks.append(
            ExplainedChunk(
                start,
                end,
                bundle.tokenizer.decode(ids),
                None if shares is None else rank_chunk(shares, start, end, log_probability=of_probability),
                attributions.of_span(start, end) if attributions is not None and has_commits else None,
                find_evidence(trace.tokens, start, end) if find_evidence is not None and ids else None,
            )
        )
    # An end of turn overwrites the tokens after it in `trace.tokens`; attribution is of the tokens as committed.
    pieces = trace.pieces
    assert pieces is not None
    concepts = None if concept is None else bundle.concepts
    characters = text_runs(bundle.tokenizer, trace.committed.tolist(), {trace.mask_id})
    return Explanation(
        record,
        trace,
        tuple(chunks),
        committed,
        shares,
        of_probability,
        attributions,
        pieces,
        concepts,
        characters,
        concept is not None and concept.is_strict,
        trace_features(bundle, trace, reference, autoencoders),
    )


def _spans(record: TraceRecord, trace: Trace, config: ModelConfig | DecoderConfig) -> list[tuple[int, int]]:
    """The chunks [start, end) of the text; that of an autoregressive model is one chunk."""
    # The canvas has whole blocks; what is beyond the requested length is not part of the text.
    length = len(trace.tokens) if record.generation is None else record.generation.max_new_tokens
    start, written = trace.prompt_length, trace.tokens[: trace.prompt_length + length]
    if isinstance(config, ModelConfig):
        return chunk_spans(written, start, config.endofchunk_token_id, config.eot_id)
    stop = () if record.generation is None else record.generation.stop_tokens or ()
    end = start + len(text_ids(written[start:], config, stop))  # without the id that ended it
    return [(start, end)] if end > start else []
