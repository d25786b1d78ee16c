"""The result of an input attribution: each canvas position's attribution to each target, and its completeness error.

Every method returns the same record, so that results of different methods can be compared directly.

Legend: n explained targets, T canvas positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from steerling_jax.decoding.tables import Table, Tabular, counted
from steerling_jax.decoding.trace import Trace
from steerling_jax.errors import UserError
from steerling_jax.explain.inputs.targets import AttributionTarget

Method = Literal["integrated-gradients", "gradient-x-input", "leave-one-out", "embedding-similarity", "recency"]
Scope = Literal["prompt", "generated", "all"]


@dataclass(frozen=True)
class Tolerance:
    """The largest accepted completeness error: max(relative · |path − baseline|, absolute).

    absolute is in the target's own unit (a logit for `TokenLogit`). most_nodes: the largest number of nodes that is
    tried. Raises `UserError` for negative or infinite values.
    """

    relative: float = 0.01
    absolute: float = 0.01
    most_nodes: int = 64

    def __post_init__(self):
        for name in ("relative", "absolute"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(
                    f"The tolerance's {name} is {getattr(self, name)}, but it must be a finite number >= 0."
                )
        if self.most_nodes < 1:
            raise UserError(f"The tolerance's most_nodes is {self.most_nodes}, but it must be at least 1.")

    def allows(self, error: np.ndarray, difference: np.ndarray) -> np.ndarray:
        """Whether each completeness error (n,) is within the tolerance, for the differences path − baseline (n,)."""
        return np.abs(error) <= np.maximum(self.relative * np.abs(difference), self.absolute)


DEFAULT_TOLERANCE = Tolerance()
# Of targets that are computed from a selection of concepts. They jump along the path where a concept enters or leaves
# the selection, which no gradient sees: the error of 64 nodes is as large as that of 16 (docs/design/attribution.md).
SELECTION_TOLERANCE = Tolerance(most_nodes=16)


class InputScore(NamedTuple):
    """An input position's share of the attribution mass, averaged over the explained tokens."""

    input_position: int
    input_token_id: int
    score: float


class SpanAttribution(NamedTuple):
    """The sum over the targets at positions [start, end), each explained in its own snapshot.

    attributions (T,) float32; path, baseline, completeness_error: sums over the targets; tokens: number of targets;
    converged: whether every target converged.
    """

    start: int
    end: int
    attributions: np.ndarray
    path: float
    baseline: float
    completeness_error: float
    tokens: int
    converged: bool


@dataclass(frozen=True, repr=False)
class InputAttribution(Tabular):
    """Attributions of each canvas position to each target, as NumPy arrays. Prints as a table of the input tokens,
    averaged over targets; `to_dataframe` has a row for each target and input token.

    attributions (n, T) float32.
    target_positions, target_token_ids, target_orders (n,) int32: the explained commits; orders count commits from 0.
    target_logits (n,) float32: the committed tokens' logits as the trace records them.
    path_logits, baseline_logits (n,): the target's value on the snapshot and on a canvas of masks (logits by default).
    completeness_error (n,): sum of the attributions − (path − baseline). The exact integral makes it 0; for the other
    methods it measures how far the attributions are from summing to the difference.
    nodes (n,) int32: gradient passes per target. converged (n,) bool: whether the error is within `tolerance`.
    targets: the n targets.
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
        """A sentence about the targets outside the tolerance, or None if all converged."""
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
        """Input positions of `scope`, ranked over all targets or over those at positions [start, end).

        Each target's attributions are divided by their absolute sum within the scope, so that every target has the same
        weight, and averaged over targets: signed, or in absolute value. "all" is prompt and committed positions.
        """
        committed = {position: token for _, position, token, _ in self.trace.flat()}
        prompt = dict(enumerate(self.trace.prompt.tolist()))
        tokens = {"prompt": prompt, "generated": committed, "all": prompt | committed}[scope]
        positions = np.asarray(sorted(tokens), int)
        rows = self.attributions[self._in_span(start, end)][:, positions]
        if not rows.size:
            return []
        shares = rows / np.maximum(np.abs(rows).sum(axis=1, keepdims=True), 1e-8)
        scores = (shares if signed else np.abs(shares)).mean(axis=0)
        ranked = np.argsort(-scores, kind="stable")
        return [InputScore(int(positions[i]), tokens[int(positions[i])], float(scores[i])) for i in ranked]

    def of_span(self, start: int, end: int) -> SpanAttribution:
        """The span as one target. Raises `UserError` if none of its tokens was explained."""
        inside = self._in_span(start, end)
        if not inside.any():
            raise UserError(f"No token in [{start}, {end}) was explained; give a span with an explained token.")
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

    def summary(self) -> Table:
        """The input tokens with the largest mean shares of the targets' attributions."""
        scores = sorted(self.aggregate("all"), key=lambda score: -abs(score.score))
        state = self.unconverged or f"largest completeness error {self.largest_error:.1e}"
        columns = {
            "input_position": [score.input_position for score in scores],
            "input": [self._piece(score.input_position, score.input_token_id) for score in scores],
            "share": [score.score for score in scores],
        }
        return Table(f"Inputs of {counted(len(self.targets), 'token')}, by {self.method}; {state}", columns)

    def table(self) -> Table:
        """A row for each target and each input token with an attribution."""
        canvas = self.trace.committed
        targets, inputs = np.nonzero(self.attributions)
        columns = {
            "position": self.target_positions[targets],
            "token": [self._piece(int(self.target_positions[i]), int(self.target_token_ids[i])) for i in targets],
            "input_position": inputs,
            "input": [self._piece(int(i), int(canvas[i])) for i in inputs],
            "attribution": self.attributions[targets, inputs],
        }
        return Table(f"Inputs of {counted(len(self.targets), 'token')}, by {self.method}", columns)

    @property
    def largest_error(self) -> float:
        """The largest absolute completeness error; 0 without targets."""
        return float(np.abs(self.completeness_error).max(initial=0.0))

    def _piece(self, position: int, token: int) -> str:
        return str(token) if self.trace.pieces is None else self.trace.pieces[position]

    def _in_span(self, start: int | None, end: int | None) -> np.ndarray:
        """(n,) bool: which targets are at positions [start, end)."""
        low, high = 0 if start is None else start, len(self.trace.tokens) if end is None else end
        return (self.target_positions >= low) & (self.target_positions < high)
