"""Ranking of the concepts that contributed most to a chunk of text, and the boundaries of chunks.

The ranking is that of the published package. What it ranks depends on the reference of the contributions: of raw logits
it gives the published list, of centred logits the one that commands show.

Legend: n committed tokens, K listed concepts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from steerling_jax.decoding.tables import Table, Tabular
from steerling_jax.decoding.trace import Trace
from steerling_jax.errors import UserError
from steerling_jax.explain.contributions import Contributions
from steerling_jax.explain.logit_shares import DESCRIPTIONS, Reference


class ConceptShare(NamedTuple):
    """A concept's signed share of a chunk.

    label: the concept's name or number, as it is printed. type: "known" or "discovered". concept_id: the id within that
    type, by which all commands and options know the concept. contribution: a fraction of the absolute mass.
    """

    label: str
    type: str
    contribution: float
    concept_id: int

    def __str__(self) -> str:
        return f"{100 * self.contribution:+6.2f} %  {self.label}"


@dataclass(frozen=True, repr=False)
class ChunkRanking(Tabular):
    """The concepts of the half-open chunk [start, end), largest absolute share first. Iterating yields the entries.
    Prints as a table.

    epsilon_percent: signed mean share of the published remainder, in percent.
    absolute_shares, net_shares: known concepts, discovered concepts and epsilon as fractions of the absolute and of the
    net mass, each a mean over the chunk's committed tokens.
    raised_shares, lowered_shares: of the same kinds, the absolute shares of the contributions that raise the logits
    and of those that lower them, both positive; together with the other kinds' they add up to 1.
    reference: what was split, that of the contributions.
    log_probability_shares: each concept's share of the log-probabilities, by (type, id); empty unless `rank_chunk` was
    given their contributions.
    """

    start: int
    end: int
    entries: tuple[ConceptShare, ...]
    epsilon_percent: float
    absolute_shares: tuple[float, float, float]
    net_shares: tuple[float, float, float]
    raised_shares: tuple[float, float, float] = (0.0, 0.0, 0.0)
    lowered_shares: tuple[float, float, float] = (0.0, 0.0, 0.0)
    reference: Reference = "raw"
    log_probability_shares: Mapping[tuple[str, int], float] = field(default_factory=dict)

    def __iter__(self) -> Iterator[ConceptShare]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def table(self) -> Table:
        """A row for each concept."""
        known, discovered, epsilon = (f"{100 * share:.0f} %" for share in self.net_shares)
        of = "" if self.reference == "raw" else f", {DESCRIPTIONS[self.reference]}"
        title = (
            f"Positions {self.start} to {self.end - 1}{of}: net {known} known, {discovered} discovered, "
            f"{epsilon} epsilon"
        )
        columns = {
            "concept": [entry.label for entry in self.entries],
            "type": [entry.type for entry in self.entries],
            "concept_id": [entry.concept_id for entry in self.entries],
            "share": [entry.contribution for entry in self.entries],
        }
        if self.log_probability_shares:
            columns["log_probability_share"] = [
                self.log_probability_shares[entry.type, entry.concept_id] for entry in self.entries
            ]
        return Table(title, columns)


def rank_chunk(
    contributions: Contributions, start: int, end: int, *, log_probability: Contributions | None = None
) -> ChunkRanking:
    """Ranks the concepts of the positions [start, end) by their share, as the published package does.

    log_probability: the contributions of the same trace with the reference "model", whose shares stand beside those
    that decide the order.

    Each token's contributions are divided by its absolute mass (known + discovered + |remainder|), so that all tokens
    have the same weight. They are summed by concept and divided by the chunk's full length, which includes positions
    that were not committed. Empty slots are omitted; the published package lists one with 0 for a model without
    discovered concepts. Raises `UserError` for an empty chunk.
    """
    if end <= start:
        raise UserError(f"The chunk [{start}, {end}) is empty; give a start below its end.")
    c = contributions
    inside = (c.positions >= start) & (c.positions < end)
    entries = [
        ConceptShare(c.printed_label(kind, number), kind, share, number)
        for (kind, number), share in _concept_shares(c, inside, end - start).items()
    ]
    entries.sort(key=lambda entry: -abs(entry.contribution))
    epsilon = float((c.remainder[inside] / _masses(c, inside)).mean()) if inside.any() else 0.0
    absolute = (c.absolute_known[inside], c.absolute_discovered[inside], np.abs(c.remainder[inside]))
    net = (c.net_known[inside], c.net_discovered[inside], c.net_epsilon[inside])
    raised, lowered = split_by_sign(c, inside)
    return ChunkRanking(
        start,
        end,
        tuple(entries),
        100 * epsilon,
        _mean_shares(absolute),
        _mean_shares(net),
        raised,
        lowered,
        c.reference,
        {} if log_probability is None else _concept_shares(log_probability, inside, end - start),
    )


def _masses(contributions: Contributions, inside: np.ndarray) -> np.ndarray:
    """The absolute mass of each token that `inside` selects."""
    c = contributions
    return np.maximum((c.absolute_known + c.absolute_discovered + np.abs(c.remainder))[inside], 1e-8)


def _concept_shares(contributions: Contributions, inside: np.ndarray, length: int) -> dict[tuple[str, int], float]:
    """The share of each concept, by (type, id), in a chunk of `length` positions whose commits `inside` selects."""
    c, mass = contributions, _masses(contributions, inside)[:, None]
    return {
        (kind, int(number)): float(share) / length
        for kind, ids, values in (
            ("known", c.known_ids, c.known_contributions),
            ("discovered", c.discovered_ids, c.discovered_contributions),
        )
        for number, share in zip(*_sum_by_concept(ids[inside], values[inside] / mass), strict=True)
    }


def split_by_sign(
    contributions: Contributions, rows: np.ndarray
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Shares of the contributions that raise the logits and of those that lower them, of known concepts, discovered
    concepts and epsilon: all six add up to 1, a mean over the committed tokens that `rows` (a mask or indices) selects.
    """
    c = contributions
    kinds = [c.known_contributions[rows], c.discovered_contributions[rows], c.remainder[rows][..., None]]
    mass = np.maximum(sum(np.abs(values).sum(axis=-1) for values in kinds), 1e-8)

    def shares(sign: int) -> tuple[float, float, float]:
        parts = [np.maximum(sign * values, 0.0).sum(axis=-1) / mass for values in kinds]
        known, discovered, epsilon = (float(part.mean()) if part.size else 0.0 for part in parts)
        return known, discovered, epsilon

    return shares(1), shares(-1)


def _sum_by_concept(ids: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unique ids and the sum of each id's values; slots with the id −1 are empty and are omitted."""
    unique, inverse = np.unique(ids[ids >= 0], return_inverse=True)
    return unique, np.bincount(inverse, weights=values[ids >= 0], minlength=len(unique))


def _mean_shares(parts: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Means over tokens of three masses (n,) as fractions of their sum; zeros for n = 0."""
    total = np.maximum(sum(parts), 1e-8)
    known, discovered, epsilon = (float((part / total).mean()) if len(part) else 0.0 for part in parts)
    return known, discovered, epsilon


def chunk_spans(
    tokens: Trace | Sequence[int] | np.ndarray, prompt_length: int, endofchunk_id: int, eot_id: int | None = None
) -> list[tuple[int, int]]:
    """Half-open spans [start, end) of the chunks of a finished canvas, in canvas positions.

    The first chunk starts after the prompt, and the last one ends at the first end-of-turn token `eot_id` or at the end
    of the canvas. The closing `endofchunk_id` does not belong to a chunk, and empty chunks are omitted.
    """
    ids = np.asarray(tokens.tokens if isinstance(tokens, Trace) else tokens)
    turns = np.flatnonzero(ids[prompt_length:] == eot_id) if eot_id is not None else np.zeros(0, int)
    end = prompt_length + int(turns[0]) if len(turns) else len(ids)
    cuts = [prompt_length + int(i) for i in np.flatnonzero(ids[prompt_length:end] == endofchunk_id)]
    spans = zip([prompt_length, *(cut + 1 for cut in cuts)], [*cuts, end], strict=True)
    return [(start, stop) for start, stop in spans if start < stop]
