"""Selection of the committed tokens that an input attribution explains, and of the target for each.

The selection is validated before the model runs.
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
    """One committed token and the target that is explained for it.

    order: index of the commit in the trace. step, position, token, logit: as the trace records them.
    """

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
    """The cases to explain, for the arguments of `attribute_inputs` with the same names.

    Raises `UserError` for an invalid selection and for a trace of another model.
    """
    trace.check(bundle.config)
    commits = [(order, *token) for order, commit in enumerate(trace.commits) for token in _tokens_of(commit)]
    require(bool(commits), "The generation is empty: it has no committed token to explain.")
    if positions is not None:
        require(span is None, "Both span and positions are given; give one of them.")
        require(len(positions) > 0, "positions is empty; give at least one position, or omit it.")
        by_position = {commit[2]: commit for commit in commits}
        for position in positions:
            require(position in by_position, f"No token was committed at position {position}; choose another.")
        commits = [by_position[position] for position in positions]
    if span is not None:
        commits = _in_span(trace, commits, *span)
    if sample is not None:
        require(sample >= 1, f"sample is {sample}, but it must be at least 1.")
        chosen = np.unique(np.linspace(0, len(commits) - 1, min(sample, len(commits))).round().astype(int))
        commits = [commits[i] for i in chosen]
    if isinstance(target, Sequence):
        require(
            positions is not None and sample is None and len(target) == len(commits),
            "A list of targets needs a list of positions of the same length and no sample; give a position per target.",
        )
    targets = list(target) if isinstance(target, Sequence) else [target] * len(commits)
    for each in targets:
        each.check(bundle.config)
    return [Case(*commit, target=each) for commit, each in zip(commits, targets, strict=True)]


def _tokens_of(commit: Commit) -> Iterator[tuple[int, int, int, float]]:
    """(step, position, token id, target logit) of each token of one commit."""
    rows = zip(commit.positions, commit.token_ids, commit.target_logits, strict=True)
    return ((commit.step, *row) for row in rows)


def _in_span(trace: Trace, commits: list, start: int, end: int) -> list:
    """The commits at positions [start, end). Raises `UserError` for an empty or invalid span."""
    P, T = trace.prompt_length, len(trace.tokens)
    require(
        P <= start < end <= T,
        f"The span [{start}, {end}) is not inside the generated text, which is [{P}, {T}).",
    )
    inside = [commit for commit in commits if start <= commit[2] < end]
    require(bool(inside), f"No token was committed in the span [{start}, {end}); choose another.")
    return inside
