"""Which concepts carried a chunk of the text, ranked as the published package does, and where chunks begin and end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from steerling_jax.decoding.trace import Trace
from steerling_jax.errors import UserError
from steerling_jax.explain.contributions import Contributions


class ConceptShare(NamedTuple):
    """One concept's signed share of a chunk. type: "known" or "discovered"; concept_id counts within its type."""

    label: str
    type: str
    contribution: float
    concept_id: int

    def __str__(self) -> str:
        return f"{100 * self.contribution:+6.2f} %  {self.label}"


@dataclass(frozen=True)
class ChunkRanking:
    """Concepts of the half-open chunk [start, end), largest absolute share first; iterating gives the entries.

    epsilon_percent: signed mean share of the published remainder, in percent. absolute_shares, net_shares: known,
    discovered and epsilon as fractions of the absolute and of the net mass, means over the chunk's committed tokens.
    """

    start: int
    end: int
    entries: tuple[ConceptShare, ...]
    epsilon_percent: float
    absolute_shares: tuple[float, float, float]
    net_shares: tuple[float, float, float]

    def __iter__(self) -> Iterator[ConceptShare]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def rank_chunk(contributions: Contributions, start: int, end: int) -> ChunkRanking:
    """Ranks the concepts of positions [start, end) as the published package does.

    Each token's contributions are divided by its absolute mass (known + discovered + |remainder|), so that all tokens
    have one vote; they are summed by concept and divided by the chunk's full length, committed or not. Empty slots are
    left out (the published package lists one, with 0, for a model without discovered concepts).
    """
    if end <= start:
        raise UserError(f"The chunk [{start}, {end}) is empty; give a start below its end.")
    c = contributions
    inside = (c.positions >= start) & (c.positions < end)
    mass = c.absolute_known + c.absolute_discovered + np.abs(c.remainder)
    mass = np.maximum(mass[inside], 1e-8)
    entries = [
        ConceptShare(c.label(kind, int(number)), kind, float(share) / (end - start), int(number))
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
    return ChunkRanking(start, end, tuple(entries), 100 * epsilon, _mean_shares(absolute), _mean_shares(net))


def _sum_by_concept(ids: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each id once, with the sum of its values; slots with the id −1 are empty."""
    unique, inverse = np.unique(ids[ids >= 0], return_inverse=True)
    return unique, np.bincount(inverse, weights=values[ids >= 0], minlength=len(unique))


def _mean_shares(parts: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Three masses (n,) each, as mean fractions of their sum; zeros for no tokens."""
    total = np.maximum(sum(parts), 1e-8)
    known, discovered, epsilon = (float((part / total).mean()) if len(part) else 0.0 for part in parts)
    return known, discovered, epsilon


def chunk_spans(
    tokens: Trace | Sequence[int] | np.ndarray, prompt_length: int, endofchunk_id: int, eot_id: int | None = None
) -> list[tuple[int, int]]:
    """Half-open chunk spans [start, end) of a finished canvas, absolute positions.

    Chunks start after the prompt, leave their closing `endofchunk_id` out and end at the first end-of-turn token; an
    unfinished tail counts as one. Two boundaries in a row make no chunk.
    """
    ids = np.asarray(tokens.tokens if isinstance(tokens, Trace) else tokens)
    turns = np.flatnonzero(ids[prompt_length:] == eot_id) if eot_id is not None else np.zeros(0, int)
    end = prompt_length + int(turns[0]) if len(turns) else len(ids)
    cuts = [prompt_length + int(i) for i in np.flatnonzero(ids[prompt_length:end] == endofchunk_id)]
    spans = zip([prompt_length, *(cut + 1 for cut in cuts)], [*cuts, end], strict=True)
    return [(start, stop) for start, stop in spans if start < stop]
