"""Effects of concepts on committed tokens: the contribution to the logit beside what removing the concept changes.

There are three removals, each applied to the pass that committed the token:
- "frozen": the concept's activation is set to 0 in its head, and everything else in `composed` stays. The logit falls
  by exactly the contribution; the log-probability also depends on how the logits of other tokens change.
- "published": the same clamp with the published package's rule for epsilon. For a known concept the epsilon correction
  is switched off. For a discovered one epsilon compensates what was removed, so nothing changes in a model with the
  correction.
- "pass": the concept's direction is projected out of the hidden states of all positions after every layer from
  `first_layer` on. This also removes what the concept does through other positions.

Legend: n committed tokens, J concepts, p pairs of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.concepts.concept import Head
from steerling_jax.concepts.heads import check_concepts
from steerling_jax.decoding.trace import Trace
from steerling_jax.errors import UserError, require
from steerling_jax.explain.contributions import Contributions
from steerling_jax.explain.hidden_rows import hidden_rows
from steerling_jax.explain.removal import removed_in_head, removed_in_pass

REMOVALS = ("frozen", "published", "pass")


@dataclass(frozen=True)
class ConceptEffects:
    """Effects of p pairs of a committed token and a concept, ordered by token, as NumPy arrays.

    orders (p,) int32: the commit's index in the trace; positions, concept_ids (p,) int32.
    direct (p,) float32: the concept's contribution to the token's logit, 0 where the concept is not listed.
    logit, log_probability, centred_logit: for each removal, by how much the value fell when the concept was removed,
    (p,) float32; the last is the logit minus the mean of all tokens' logits.
    """

    head: Head
    orders: np.ndarray
    positions: np.ndarray
    concept_ids: np.ndarray
    direct: np.ndarray
    logit: dict[str, np.ndarray]
    log_probability: dict[str, np.ndarray]
    centred_logit: dict[str, np.ndarray] = field(default_factory=dict)

    def predicted_by(self, shares: Contributions) -> ConceptEffects:
        """The same effects beside the contributions `shares` of the same trace, with another reference."""
        return replace(self, direct=_direct(shares, self.orders, self.concept_ids, self.head))

    def summed(self, spans: Sequence[tuple[int, int]]) -> list[ConceptEffects]:
        """For each half-open span of positions, the sums over its tokens, with one pair per concept."""
        return [self._sum((self.positions >= start) & (self.positions < end)) for start, end in spans]

    def _sum(self, inside: np.ndarray) -> ConceptEffects:
        """The sums by concept over the pairs `inside` (p,) bool, at the span's first position and order."""
        ids, index = np.unique(self.concept_ids[inside], return_inverse=True)

        def total(values: np.ndarray) -> np.ndarray:
            return np.bincount(index, values[inside], len(ids)).astype(np.float32)

        first = np.full(len(ids), self.positions[inside].min(initial=2**31 - 1), np.int32)
        return ConceptEffects(
            self.head,
            np.full(len(ids), self.orders[inside].min(initial=2**31 - 1), np.int32),
            first,
            ids.astype(np.int32),
            total(self.direct),
            {name: total(v) for name, v in self.logit.items()},
            {name: total(v) for name, v in self.log_probability.items()},
            {name: total(v) for name, v in self.centred_logit.items()},
        )


def concept_effects(
    bundle: Bundle,
    trace: Trace,
    shares: Contributions,
    concepts: Sequence[int],
    *,
    head: Head = "known",
    start: int = 0,
    end: int | None = None,
    first_layer: int | None = None,
) -> ConceptEffects:
    """Effects of the concepts with the ids `concepts` on every token committed at positions [start, end).

    shares: `concept_contributions` of the same trace, with any reference. first_layer: the first layer, counted from 1,
    of the removal "pass"; by default half of the layers, as in steering. Injection of steered text stays. Raises
    `UserError` for ids that the head does not have, an empty selection, and text generated with clamped concepts or
    guidance.
    """
    config = bundle.config
    check_concepts(config, head, concepts)
    layer = config.n_layers // 2 if first_layer is None else first_layer
    if not 0 <= layer <= config.n_layers:
        raise UserError(f"first_layer is {layer}, but the layers are 1 to {config.n_layers}.")
    inside = (shares.positions >= start) & (shares.positions < (len(trace.tokens) if end is None else end))
    tokens = np.flatnonzero(inside)
    require(
        trace.clamps is None,
        "Effects cannot be measured in text generated with clamped concepts; give a trace without clamps.",
    )
    require(
        trace.guidance == 0,
        "Effects cannot be measured in guided text, whose logits combine two passes; give a trace without guidance.",
    )
    if not len(tokens) or not len(concepts):
        raise UserError(
            f"No token is committed in [{start}, {end}), or no concept is given; no effect can be measured."
        )
    orders = np.repeat(tokens, len(concepts)).astype(np.int32)
    ids = np.tile(np.asarray(concepts, np.int32), len(tokens))
    in_head = removed_in_head(bundle, hidden_rows(bundle, trace)[orders], shares.token_ids[orders], ids, head)
    in_pass = removed_in_pass(bundle, trace, shares, orders, ids, head, layer)
    scores = dict(zip(REMOVALS, (in_head[:, 1], in_head[:, 2], in_pass), strict=True))
    drop = {name: in_head[:, 0] - values for name, values in scores.items()}
    return ConceptEffects(
        head,
        orders,
        shares.positions[orders],
        ids,
        _direct(shares, orders, ids, head),
        *({name: values[:, quantity] for name, values in drop.items()} for quantity in range(3)),
    )


def _direct(shares: Contributions, orders: np.ndarray, ids: np.ndarray, head: Head) -> np.ndarray:
    """Contributions (p,) float32 of the pairs, 0 for concepts that are not listed."""
    listed, values = (
        (shares.known_ids, shares.known_contributions)
        if head == "known"
        else (shares.discovered_ids, shares.discovered_contributions)
    )
    return np.where(listed[orders] == ids[:, None], values[orders], 0.0).sum(axis=1).astype(np.float32)
