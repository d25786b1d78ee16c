"""Which committed tokens an attribution explains, and what of each.

The choice is checked before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.trace import Commit, Trace
from steerling_jax.errors import require
from steerling_jax.explain.inputs.targets import AttributionTarget


class Case(NamedTuple):
    """One thing to explain: a commit and what of it."""

    order: int
    step: int
    position: int
    token: int
    logit: float
    target: AttributionTarget


def choose_cases(
    bundle: Bundle,
    trace: Trace,
    target: AttributionTarget | Sequence[AttributionTarget],
    span: tuple[int, int] | None,
    positions: Sequence[int] | None,
    sample: int | None,
) -> list[Case]:
    """The commits to explain, see `attribute_inputs`. Raises `UserError` for a bad choice or a trace of another
    model."""
    trace.check(bundle.config)
    commits = [(order, *target) for order, commit in enumerate(trace.commits) for target in _written(commit)]
    require(bool(commits), "The generation is empty: it has no written token to explain.")
    if positions is not None:
        require(span is None, "Both span and positions are given; give one of them.")
        require(len(positions) > 0, "positions is empty: name at least one, or leave it out.")
        by_position = {commit[2]: commit for commit in commits}
        for position in positions:
            require(position in by_position, f"No token was written at position {position}; choose another.")
        commits = [by_position[position] for position in positions]
    if span is not None:
        commits = _inside(trace, commits, *span)
    if sample is not None:
        require(sample >= 1, f"sample is {sample}, but it must be at least 1.")
        chosen = np.unique(np.linspace(0, len(commits) - 1, min(sample, len(commits))).round().astype(int))
        commits = [commits[i] for i in chosen]
    if isinstance(target, Sequence):
        require(
            positions is not None and sample is None and len(target) == len(commits),
            "Several targets go with as many positions, one by one, and with no sample; give positions of that length.",
        )
    targets = list(target) if isinstance(target, Sequence) else [target] * len(commits)
    for one in targets:
        one.check(bundle.config)
    return [Case(*commit, target=one) for commit, one in zip(commits, targets, strict=True)]


def _written(commit: Commit) -> Iterator[tuple[int, int, int, float]]:
    """(step, position, token id, target logit) of one commit."""
    rows = zip(commit.positions, commit.token_ids, commit.target_logits, strict=True)
    return ((commit.step, *row) for row in rows)


def _inside(trace: Trace, commits: list, start: int, end: int) -> list:
    P, T = trace.prompt_length, len(trace.tokens)
    require(
        P <= start < end <= T,
        f"The span [{start}, {end}) does not lie in the generated text, which is [{P}, {T}).",
    )
    inside = [commit for commit in commits if start <= commit[2] < end]
    require(bool(inside), f"No token was written in the span [{start}, {end}); choose another.")
    return inside
