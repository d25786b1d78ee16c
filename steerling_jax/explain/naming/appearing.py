"""Which concepts a reader meets: those among the strongest of a chunk, in a fixed list of held-out texts.

Most of a model's concepts are rarely among the few that a trace lists. Coverage of names is therefore measured over the
concepts that appear, see `steerling name`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from steerling_jax.bundle import Bundle
from steerling_jax.corpus.reader import Corpus, DocumentRecord
from steerling_jax.decoding.trace import Trace
from steerling_jax.explain.contributions import concept_contributions
from steerling_jax.explain.given_text import given_trace
from steerling_jax.explain.ranking import chunk_spans, rank_chunk

TOP = 5  # concepts of each kind that a trace lists for a chunk, by default
PROMPT_TOKENS, MIN_TOKENS, MAX_TOKENS = 8, 32, 128  # of a text: its prompt, and its length with it


def fixed_texts(store: Corpus, count: int, seed: int = 0) -> list[DocumentRecord]:
    """`count` held-out documents of at least 32 tokens, the same ones for every model and order of the corpus.

    They are those with the smallest hashes of the seed and the document's own hash (`DocumentRecord.sha256`).
    """
    eligible = [one for one in store.documents if one.split == "heldout" and one.end - one.start >= MIN_TOKENS]
    return sorted(eligible, key=lambda one: hashlib.sha256(f"{seed}:{one.sha256}".encode()).digest())[:count]


def document_trace(bundle: Bundle, store: Corpus, document: DocumentRecord) -> Trace:
    """The trace of a document's first tokens, at most 128 or the model's context, as a given text after its first 8."""
    end = min(document.end, document.start + min(MAX_TOKENS, bundle.config.block_size))
    tokens = store.tokens(document.start, end).astype(int).tolist()
    return given_trace(bundle, tokens[:PROMPT_TOKENS], tokens[PROMPT_TOKENS:])


def appearing_concepts(bundle: Bundle, traces: Iterable[Trace], head: str, top: int = TOP) -> set[int]:
    """Ids of a head's concepts that are among its `top` of a chunk of one of the traces, by absolute share."""
    ids: set[int] = set()
    for trace in traces:
        shares = concept_contributions(bundle, trace)
        for start, end in chunk_spans(
            trace, trace.prompt_length, bundle.config.endofchunk_token_id, bundle.config.eot_id
        ):
            ids.update([entry.concept_id for entry in rank_chunk(shares, start, end) if entry.type == head][:top])
    return ids
