"""Ranking of the concepts that contributed most to a chunk of text, and the boundaries of chunks.

The ranking is that of the published package.

Legend: n committed tokens, K listed concepts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from steerling_jax.decoding.tables import Table, Tabular
from steerling_jax.decoding.trace import Trace
from steerling_jax.errors import UserError
from steerling_jax.explain.contributions import Contributions


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
    """

    start: int
    end: int
    entries: tuple[ConceptShare, ...]
    epsilon_percent: float
    absolute_shares: tuple[float, float, float]
    net_shares: tuple[float, float, float]
    raised_shares: tuple[float, float, float] = (0.0, 0.0, 0.0)
    lowered_shares: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __iter__(self) -> Iterator[ConceptShare]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def table(self) -> Table:
        """A row for each concept."""
        known, discovered, epsilon = (f"{100 * share:.0f} %" for share in self.net_shares)
        title = (
            f"Positions {self.start} to {self.end - 1}: net {known} known, {discovered} discovered, {epsilon} epsilon"
        )
        columns = {
            "concept": [entry.label for entry in self.entries],
            "type": [entry.type for entry in self.entries],
            "concept_id": [entry.concept_id for entry in self.entries],
            "share": [entry.contribution for entry in self.entries],
        }
        return Table(title, columns)


def rank_chunk(contributions: Contributions, start: int, end: int) -> ChunkRanking:
    """Ranks the concepts of the positions [start, end) by their share, as the published package does.

    Each token's contributions are divided by its absolute mass (known + discovered + |remainder|), so that all tokens
    have the same weight. They are summed by concept and divided by the chunk's full length, which includes positions
    that were not committed. Empty slots are omitted; the published package lists one with 0 for a model without
    discovered concepts. Raises `UserError` for an empty chunk.
    """
    if end <= start:
        raise UserError(f"The chunk [{start}, {end}) is empty; give a start below its end.")
    c = contributions
    inside = (c.positions >= start) & (c.positions < end)
    mass = c.absolute_known + c.absolute_discovered + np.abs(c.remainder)
    mass = np.maximum(mass[inside], 1e-8)
    entries = [
        ConceptShare(c.printed_label(kind, int(number)), kind, float(share) / (end - start), int(number))
        for kind, ids, values in (
            ("known", c.known_ids, c.known_contributions),
            ("discovered", c.discovered_ids, c.discovered_contributions),
        )
        for number, share in zip(*_sum_by_concept(ids[inside], values[inside] / mass[:, None]), strict=True)
    ]
    entries.sort(key=lambda entry: -abs(entry.contribution))
    epsilon = float((c.remainder[inside] / mass).mean()) if inside.any() else 0.0
    absolute = (c.absolute_known[inside], c.absolute_discovered[inside], np.abs(c.remainder[inside]))
    net = (c.net_known[inside], c.net_discovered[inside], c.net_epsilon[inside])
    raised, lowered = split_by_sign(c, inside)
    return ChunkRanking(
        start, end, tuple(entries), 100 * epsilon, _mean_shares(absolute), _mean_shares(net), raised, lowered
    )


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
