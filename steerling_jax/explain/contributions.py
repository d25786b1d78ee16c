"""Concept contributions: how much each concept added to the logit of each committed token.

A token's logit is `composed · lm_head[token]`, and `composed` is the sum of the concepts' vectors and a rest. The logit
is therefore exactly the sum of one term per concept, `weight · (E_c · lm_head[token])`, and one for the rest. The rest
is computed from the vectors, and `error` is the distance between the sum of all terms and the logit that generation
recorded. The published package defines its epsilon as whatever is missing from the sum, so its own check always passes;
that number is `remainder` here.

Guided text has the logits (1 + s) · conditional − s · unconditional. This is linear in the two branches' `composed`, so
the contributions of both branches are combined with the same weights.

Legend: n committed tokens, s guidance strength, K listed concepts, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.tables import Table, Tabular, counted
from steerling_jax.decoding.trace import Trace
from steerling_jax.errors import UserError
from steerling_jax.explain.finite import require_finite
from steerling_jax.explain.hidden_rows import hidden_rows
from steerling_jax.explain.logit_shares import (
    DESCRIPTIONS,
    REFERENCES,
    LogitShares,
    Reference,
    combine_branches,
    composed_rows,
    logit_shares,
    reference_rows,
)
from steerling_jax.models.steerling.decompose import RowClamps

_ROWS = 64  # tokens per call: one compiled program of bounded memory serves traces of any length


@dataclass(frozen=True, repr=False)
class Contributions(Tabular):
    """Concept contributions to each committed token's logit, as NumPy arrays in the order of the trace's commits.

    steps, positions, token_ids (n,) int32, target_logits (n,) float32: the commits as the trace records them.
    *_ids (n, K) int32, *_weights (n, K): the listed concepts, largest activation first, and their activations.
    *_contributions (n, K): weight · (E_c · lm_head[token]). K is 0 for discovered concepts in a model without them.
    epsilon (n,): (composed − Σ listed concept vectors) · lm_head[token], computed from the vectors.
    remainder (n,): target logit − Σ listed contributions, the published epsilon.
    error (n,): |Σ listed contributions + epsilon − target logit|.
    net_known, net_discovered, net_epsilon (n,): |k̂·w|, |û·w|, |ε·w| with the whole feature vectors, where
    ε = composed − k̂ − û. Concepts that cancel each other count in the absolute sums but not here.

    For guided text K is twice as large: first the concepts listed in the conditional branch, then those listed only in
    the unconditional one. Unused slots have the id −1, weight 0 and contribution 0. Weights are then the effective
    ones, (1 + s) · conditional − s · unconditional; where a branch does not list a concept, the concept's part of that
    branch belongs to epsilon.

    reference, reference_logits (n,): what is split is target logit − reference logit; see `concept_contributions`. The
    products above are then with lm_head[token] minus the reference's row. reference_logits is 0 for "raw".

    strict: whether the model has no epsilon. What is called epsilon above is then a constant, the part of a vector that
    is the same at every position, and is printed as "constant".

    pieces: the text of each token. Prints as a table with a row for each token; `to_dataframe` has a row for each token
    and listed concept, and one for its epsilon or constant, which add up to the logit.
    """

    steps: np.ndarray
    positions: np.ndarray
    token_ids: np.ndarray
    target_logits: np.ndarray
    known_ids: np.ndarray
    known_weights: np.ndarray
    known_contributions: np.ndarray
    discovered_ids: np.ndarray
    discovered_weights: np.ndarray
    discovered_contributions: np.ndarray
    epsilon: np.ndarray
    remainder: np.ndarray
    error: np.ndarray
    net_known: np.ndarray
    net_discovered: np.ndarray
    net_epsilon: np.ndarray
    n_concepts: int
    concept_names: tuple[str, ...] | None = None
    discovered_names: Mapping[int, str] | None = None
    pieces: tuple[str, ...] | None = None
    reference: Reference = "raw"
    reference_logits: np.ndarray | None = None
    strict: bool = False

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def split_logits(self) -> np.ndarray:
        """(n,): what the parts add up to, the target logit minus the reference logit."""
        return self.target_logits if self.reference_logits is None else self.target_logits - self.reference_logits

    @property
    def rest(self) -> str:
        """What the part of a logit that belongs to no concept is called."""
        return "constant" if self.strict else "epsilon"

    @property
    def absolute_known(self) -> np.ndarray:
        """(n,): sum of the absolute contributions of the listed known concepts."""
        return np.abs(self.known_contributions).sum(axis=1)

    @property
    def absolute_discovered(self) -> np.ndarray:
        """(n,): sum of the absolute contributions of the listed discovered concepts."""
        return np.abs(self.discovered_contributions).sum(axis=1)

    def label(self, kind: str, concept_id: int) -> str:
        """A concept's label in the published package, where the numbers of discovered concepts continue those of known
        ones. Everything that is printed has the number within the head instead, see `ConceptShare`."""
        if kind == "discovered":
            return f"Discovered: #{concept_id + self.n_concepts}"
        return f"Known: {self.concept_names[concept_id]}" if self.concept_names else f"Known: #{concept_id}"

    def printed_label(self, kind: str, concept_id: int) -> str:
        """A concept's label with its name or its number within its head, as everything prints it."""
        if kind != "discovered":
            return self.label(kind, concept_id)
        return f"Discovered: {(self.discovered_names or {}).get(concept_id, f'#{concept_id}')}"

    def summary(self) -> Table:
        """A row for each token: its logit, the sums of its parts, and the concept with the largest contribution."""
        both = np.concatenate([self.known_contributions, self.discovered_contributions], axis=1)
        ids, split = np.concatenate([self.known_ids, self.discovered_ids], axis=1), self.known_ids.shape[1]
        best = np.abs(both).argmax(axis=1)
        kinds = np.where(best < split, "known", "discovered")
        rows = np.arange(len(self))
        centred = {} if self.reference == "raw" else {"above_reference": self.split_logits}
        columns = self._tokens(rows) | {
            "logit": self.target_logits,
            **centred,
            "known": self.known_contributions.sum(axis=1),
            "discovered": self.discovered_contributions.sum(axis=1),
            self.rest: self.epsilon,
            "strongest": [self.printed_label(kind, int(ids[i, k])) for i, k, kind in zip(rows, best, kinds)],
            "contribution": both[rows, best],
        }
        return Table(f"{self._title()}; the parts add up to within {self.largest_error:.1e}", columns)

    def _title(self) -> str:
        of = "" if self.reference == "raw" else f", {DESCRIPTIONS[self.reference]}"
        return f"Contributions to {counted(len(self), 'logit')}{of}"

    def table(self) -> Table:
        """A row for each token and listed concept, and one for each token's epsilon or constant."""
        parts: list[tuple[np.ndarray, dict[str, Any]]] = []
        for kind, ids, weights, values in (
            ("known", self.known_ids, self.known_weights, self.known_contributions),
            ("discovered", self.discovered_ids, self.discovered_weights, self.discovered_contributions),
        ):
            rows, slots = np.nonzero(ids >= 0)
            numbers = ids[rows, slots]
            names = [self.printed_label(kind, int(number)) for number in numbers]
            parts.append((rows, _part(kind, numbers, names, weights[rows, slots], values[rows, slots])))
        n = len(self)
        nothing, rest = np.full(n, np.nan, np.float32), self.rest
        parts.append((np.arange(n), _part(rest, np.full(n, -1, np.int32), [rest] * n, nothing, self.epsilon)))
        rows = np.concatenate([rows for rows, _ in parts])
        order = np.argsort(rows, kind="stable")
        facts = {name: np.concatenate([part[name] for _, part in parts])[order] for name in parts[0][1]}
        return Table(self._title(), self._tokens(rows[order]) | facts)

    @property
    def largest_error(self) -> float:
        """The largest `error`; 0 without tokens."""
        return float(self.error.max(initial=0.0))

    def _tokens(self, rows: np.ndarray) -> dict[str, Any]:
        """Columns that say which tokens `rows` are."""
        columns: dict[str, Any] = {"position": self.positions[rows]}
        if self.pieces is None:
            return columns | {"token_id": self.token_ids[rows]}
        return columns | {"token": [self.pieces[row] for row in rows]}


def _part(kind: str, ids: np.ndarray, names: list[str], weights: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Columns of a contribution's kind, for any number of rows."""
    return {
        "kind": np.full(len(ids), kind, object),
        "concept_id": ids,
        "concept": np.asarray(names, object),
        "activation": weights,
        "contribution": values,
    }


def concept_contributions(bundle: Bundle, trace: Trace, *, reference: Reference = "raw") -> Contributions:
    """Splits the logit of every committed token of `trace` into contributions of concepts.

    reference: what is split. "raw", the logit, as published. "vocabulary", the logit minus the mean of all logits: a
    concept that raises all tokens alike contributes 0. "model", the logit minus its mean under the model's own
    distribution, which is the log-probability minus its own mean. In each case the parts add up. "raw" is the default
    because its values are those of the published package; `steerling demo` and `trace` show "vocabulary".

    Uses the hidden row of the pass that committed the token: recorded in the trace, or else recomputed from the
    snapshot. Raises `UserError` for a model without concepts, a trace of another model, and weights that are not
    finite.
    """
    config = bundle.config
    trace.check(config)
    if config.concept is None:
        raise UserError("Concept contributions need a model with concepts; this one is a bare backbone.")
    commits = list(trace.flat())
    steps, positions, tokens = (np.asarray([c[i] for c in commits], np.int32) for i in range(3))
    logits = np.asarray([c[3] for c in commits], np.float32)
    if reference not in REFERENCES:
        raise UserError(f"reference is {reference!r}, but it must be one of {', '.join(REFERENCES)}.")
    offsets, clamps = positions - np.int32(trace.prompt_length), trace.clamps
    branches = [hidden_rows(bundle, trace)]
    if trace.guidance > 0:
        branches.append(hidden_rows(bundle, trace, unconditional=True))
    subtracted, means = _references(bundle, branches, offsets, clamps, trace.guidance, reference)
    split = [_in_batches(bundle, rows, tokens, subtracted, offsets, clamps) for rows in branches]
    # The combination is linear, so it has to happen while net shares are still signed; |·| comes afterwards.
    shares = split[0] if len(split) == 1 else combine_branches(split[0], split[1], trace.guidance)
    nets = {name: np.abs(getattr(shares, name)) for name in ("net_known", "net_discovered", "net_epsilon")}
    shares = shares._replace(**nets)
    listed = shares.known_contributions.sum(axis=1) + shares.discovered_contributions.sum(axis=1)
    return Contributions(
        steps,
        positions,
        tokens,
        logits,
        **shares._asdict(),
        remainder=logits - means - listed,
        error=np.abs(listed + shares.epsilon - (logits - means)),
        n_concepts=config.concept.n_concepts,
        concept_names=bundle.concept_names,
        discovered_names={one.id: one.name for one in bundle.concepts.concepts if one.head == "discovered"},
        pieces=tuple(map(bundle.tokenizer.piece, tokens.tolist())),
        reference=reference,
        reference_logits=means,
        strict=config.concept.is_strict,
    )


def _references(
    bundle: Bundle,
    branches: Sequence[np.ndarray],
    offsets: np.ndarray,
    clamps: RowClamps | None,
    guidance: float,
    reference: Reference,
) -> tuple[np.ndarray, np.ndarray]:
    """What is subtracted from the tokens' output rows, (n, D), and from their logits, (n,); see `reference_rows`.

    branches: hidden rows (n, D) of each branch. The reference of guided text is that of its combined logits.
    """
    first = branches[0]
    if reference == "raw":
        return np.zeros((len(first), bundle.config.n_embd), np.float32), np.zeros(len(first), np.float32)
    composed = [
        over_rows(
            lambda rows, at: composed_rows(bundle.params, rows, at, clamps, bundle.config, bundle.compute),
            rows,
            offsets,
        )[0]
        for rows in branches
    ]
    s = np.float32(guidance)
    whole = composed[0] if len(composed) == 1 else (1 + s) * composed[0] - s * composed[1]
    rows, means = over_rows(lambda rows: reference_rows(bundle.params, rows, reference), whole)
    return rows, means


def _in_batches(
    bundle: Bundle,
    hidden: np.ndarray,
    tokens: np.ndarray,
    subtracted: np.ndarray,
    offsets: np.ndarray,
    clamps: RowClamps | None,
) -> LogitShares:
    """Logit shares of n tokens from hidden and subtracted (n, D), tokens and offsets (n,)."""

    def share(*part: np.ndarray) -> LogitShares:
        return logit_shares(bundle.params, *part, clamps, bundle.config, bundle.compute)

    hidden = hidden.reshape(-1, bundle.config.n_embd)
    shares = LogitShares(*over_rows(share, hidden, tokens, subtracted, offsets))
    require_finite(shares.epsilon)
    return shares


def over_rows(function: Callable[..., Any], *arrays: np.ndarray) -> list[np.ndarray]:
    """`function` on batches of `_ROWS` rows of the arrays (n, …), filled up with zeros; its results joined, (n, …)."""
    n = len(arrays[0])
    pad = max(-n % _ROWS, _ROWS * (n == 0))  # at least one batch, whose shapes give K for a trace without commits
    padded = [np.pad(array, ((0, pad), *((0, 0) for _ in array.shape[1:]))) for array in arrays]
    batches = []
    for i in range(0, n + pad, _ROWS):
        result = jax.device_get(function(*(array[i : i + _ROWS] for array in padded)))
        batches.append(result if isinstance(result, tuple) else (result,))
    return [np.concatenate(parts)[:n] for parts in zip(*batches, strict=True)]
