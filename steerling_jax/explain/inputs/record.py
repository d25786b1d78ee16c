"""The record of an input attribution: what each position of the canvas added to each target, and how exact that is.

Every method fills the same record, so that one function can compare them.

Legend: n explained targets, T canvas positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from steerling_jax.decoding.trace import Trace
from steerling_jax.errors import UserError
from steerling_jax.explain.inputs.targets import AttributionTarget

Method = Literal["integrated-gradients", "gradient-x-input", "leave-one-out", "embedding-similarity", "recency"]
Scope = Literal["prompt", "generated", "all"]


@dataclass(frozen=True)
class Tolerance:
    """A target is explained exactly enough when |completeness error| ≤ max(relative · |path − baseline|, absolute).

    absolute is in the target's own unit (a logit for `TokenLogit`). most_nodes: where the search for more ends.
    """

    relative: float = 0.01
    absolute: float = 0.01
    most_nodes: int = 64

    def __post_init__(self):
        for name in ("relative", "absolute"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"The tolerance's {name} is {getattr(self, name)}, but it must be a number from 0 on.")
        if self.most_nodes < 1:
            raise UserError(f"The tolerance's most_nodes is {self.most_nodes}, but it must be at least 1.")

    def allows(self, error: np.ndarray, difference: np.ndarray) -> np.ndarray:
        """Whether completeness errors (n,) are small enough for these differences path − baseline (n,)."""
        return np.abs(error) <= np.maximum(self.relative * np.abs(difference), self.absolute)


DEFAULT_TOLERANCE = Tolerance()


class InputScore(NamedTuple):
    """One input position's share, over all explained tokens."""

    input_position: int
    input_token_id: int
    score: float


class SpanAttribution(NamedTuple):
    """The sum over the targets at positions [start, end), each explained in its own snapshot: a chunk as one target.

    attributions (T,) float32; path, baseline, completeness_error: sums; tokens: how many targets; converged: all of
    them.
    """

    start: int
    end: int
    attributions: np.ndarray
    path: float
    baseline: float
    completeness_error: float
    tokens: int
    converged: bool


@dataclass(frozen=True)
class InputAttribution:
    """What each position of the canvas added to each target. NumPy arrays.

    attributions (n, T) float32.
    target_positions, target_token_ids, target_orders (n,) int32: which commits; orders count the commits from 0.
    target_logits (n,): as recorded.
    path_logits, baseline_logits (n,): the target's value on the snapshot and on masks alone (logits by default).
    completeness_error (n,): sum of the attributions − (path − baseline). The exact integral would make it 0; for the
    other methods it says how far they are from adding up.
    nodes (n,) int32: gradient passes taken for each. converged (n,) bool: whether the error is within `tolerance`.
    targets: n of them.
    """

    trace: Trace
    attributions: np.ndarray
    target_positions: np.ndarray
    target_token_ids: np.ndarray
    target_orders: np.ndarray
    target_logits: np.ndarray
    path_logits: np.ndarray
    baseline_logits: np.ndarray
    completeness_error: np.ndarray
    nodes: np.ndarray
    converged: np.ndarray
    method: Method
    targets: tuple[AttributionTarget, ...]
    tolerance: Tolerance

    @property
    def unconverged(self) -> str | None:
        """One sentence about the targets outside the tolerance; None where there are none."""
        outside = ~self.converged
        if not outside.any():
            return None
        return (
            f"{outside.sum()} of {len(outside)} targets are outside the tolerance after "
            f"{self.nodes[outside].max()} nodes; the largest completeness error is "
            f"{np.abs(self.completeness_error[outside]).max():.3g}."
        )

    def aggregate(
        self, scope: Scope = "prompt", *, signed: bool = True, start: int | None = None, end: int | None = None
    ) -> list[InputScore]:
        """Ranks the input positions of `scope` over all targets, or those at positions [start, end).

        Each target's row is divided by its absolute mass within the scope, so that all have one vote, and the rows are
        averaged: signed (ranked by net effect) or in absolute value. "all" is prompt and committed positions.
        """
        committed = {position: token for _, position, token, _ in self.trace.flat()}
        prompt = dict(enumerate(self.trace.prompt.tolist()))
        tokens = {"prompt": prompt, "generated": committed, "all": prompt | committed}[scope]
        where = np.asarray(sorted(tokens), int)
        rows = self.attributions[self._inside(start, end)][:, where]
        if not rows.size:
            return []
        votes = rows / np.maximum(np.abs(rows).sum(axis=1, keepdims=True), 1e-8)
        scores = (votes if signed else np.abs(votes)).mean(axis=0)
        ranked = np.argsort(-scores, kind="stable")
        return [InputScore(int(where[i]), tokens[int(where[i])], float(scores[i])) for i in ranked]

    def of_span(self, start: int, end: int) -> SpanAttribution:
        """The span as one target. Raises `UserError` where none of its tokens was explained."""
        inside = self._inside(start, end)
        if not inside.any():
            raise UserError(f"No explained token lies in [{start}, {end}); give a span that holds one.")
        path, baseline, error = (
            float(values[inside].sum()) for values in (self.path_logits, self.baseline_logits, self.completeness_error)
        )
        return SpanAttribution(
            start,
            end,
            self.attributions[inside].sum(axis=0),
            path,
            baseline,
            error,
            int(inside.sum()),
            bool(self.converged[inside].all()),
        )

    def _inside(self, start: int | None, end: int | None) -> np.ndarray:
        low, high = 0 if start is None else start, len(self.trace.tokens) if end is None else end
        return (self.target_positions >= low) & (self.target_positions < high)
