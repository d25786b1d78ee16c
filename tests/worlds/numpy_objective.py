"""The objective of pre-training once more, in plain NumPy and float64, written from its formulas.

Source of the formulas: docs/design/training.md and the docstrings of `steerling_jax.objectives`. The hidden states are
given, since the backbone has tests of its own. Derivatives are finite differences: a function that stops a gradient
takes the value twice, once as it moves and once as it was.

Legend: B sequences, T positions, M masked positions, D width, V vocabulary, C concepts, S chunks, K labels of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.objectives.pretraining import ObjectiveConfig


class Values(NamedTuple):
    """What the losses are functions of: hidden states (B, T, D), the output projection (V, D), and the tables (C, D) by
    which each head scores its concepts (keys) and that it sums (embeddings)."""

    hidden: np.ndarray
    output: np.ndarray
    known_keys: np.ndarray
    known_embeddings: np.ndarray
    discovered_keys: np.ndarray
    discovered_embeddings: np.ndarray


def values_of(hidden: Any, params: Mapping[str, Any]) -> Values:
    """The values of a model with tied embeddings and a factorised discovered head, for its hidden states (B, T, D)."""
    known = {name: np.asarray(table["weight"], np.float64) for name, table in params["known_head"].items()}
    discovered = {name: np.asarray(table["weight"], np.float64) for name, table in params["unknown_head"].items()}
    return Values(
        np.asarray(hidden, np.float64),
        np.asarray(params["tok_emb"]["weight"], np.float64),
        known["concept_predictor"],
        known["concept_embedding"],
        discovered["predictor_up"] @ discovered["predictor_down"],
        discovered["embedding_coef"] @ discovered["embedding_basis"].T,
    )


def positions_with_rows(noisy: np.ndarray, mask: int, share: float) -> list[tuple[int, int]]:
    """(sequence, position) of the masked tokens of noisy (B, T), the first `share` · T of each sequence."""
    room = int(noisy.shape[1] * share)
    return [(b, int(t)) for b, row in enumerate(noisy) for t in np.flatnonzero(row == mask)[:room]]


def losses(
    now: Values,
    fixed: Values,
    drawn: Mapping[str, np.ndarray],
    objective: ObjectiveConfig,
    progress: float,
    config: ModelConfig,
) -> dict[str, float]:
    """All terms of the objective, and their weighted sum as "loss".

    fixed: equal to `now`, and read wherever the objective stops a gradient. drawn: the batch and the random draws of a
    step, under the names of `ObjectiveConfig.draw`.
    """
    concept = config.concept
    assert concept is not None
    rows = positions_with_rows(drawn["noisy"], config.mask_token_id, objective.rows)
    b, t = np.array(rows).T
    chunk, level = drawn["chunk_index"][b, t], drawn["levels"][b, t // config.diff_block_size]
    hidden, still = now.hidden[b, t], fixed.hidden[b, t]

    known = _features(hidden, now.known_keys, now.known_embeddings, concept.n_concepts, concept.topk_known_features)
    # The discovered head's losses do not train the backbone.
    discovered = _features(
        still, now.discovered_keys, now.discovered_embeddings, concept.n_unknown_concepts, concept.unknown_topk
    )
    labelled = _label_features(now.known_embeddings, drawn["chunk_labels"], b, chunk)

    composed = hidden.copy()  # with epsilon: k̂ + û + epsilon is the hidden state
    for row in range(len(rows)):
        if drawn["drop_epsilon"][b[row], t[row]]:
            k = labelled[row] if drawn["use_labels"] and chunk[row] >= 0 else known[row]
            u = hidden[row] - labelled[row] if drawn["use_residual"] else discovered[row]
            k = k * (not drawn["drop_known"][b[row], t[row]])
            u = u * (not drawn["drop_discovered"][b[row], t[row]])
            composed[row] = k + u
    nats = _cross_entropy(composed @ now.output.T, drawn["tokens"][b, t])

    # What the stopped gradients leave as constants.
    known_still = _features(
        still, fixed.known_keys, fixed.known_embeddings, concept.n_concepts, concept.topk_known_features
    )
    discovered_still = _features(
        still, fixed.discovered_keys, fixed.discovered_embeddings, concept.n_unknown_concepts, concept.unknown_topk
    )
    labelled_still = _label_features(fixed.known_embeddings, drawn["chunk_labels"], b, chunk)

    warm = min(progress / objective.concept_warmup, 1.0)  # the share of the gradient that reaches the backbone
    activation = _sigmoid(warm * hidden + (1 - warm) * still, now.known_keys[: concept.n_concepts])
    terms = {
        "diffusion": float(np.mean(nats)),
        "bound": float(np.sum(nats / level) / np.sum(1 / level)),
        "presence": _presence(activation, b, chunk, drawn["chunk_labels"]),
        "residual": float(np.mean((discovered - (still - labelled_still)) ** 2)),
        "independence": _independence(known_still, discovered),
        "epsilon_independence": _independence(still - known_still - discovered_still, discovered),
    }
    token_term = terms["diffusion"] if objective.token_weight == "one" else terms["bound"]
    terms["loss"] = (
        token_term
        + objective.concept_weight * terms["presence"]
        + objective.residual_weight * terms["residual"]
        + objective.independence_weight * terms["independence"]
        + objective.epsilon_independence_weight * terms["epsilon_independence"]
    )
    return terms


def _sigmoid(hidden: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The activations (M, C) of all concepts; logits are limited to ±15."""
    return 1 / (1 + np.exp(-np.clip(hidden @ keys.T, -15, 15)))


def _features(
    hidden: np.ndarray, keys: np.ndarray, embeddings: np.ndarray, count: int | None, selected: int | None
) -> np.ndarray:
    """The sum of the embeddings of each row's `selected` most active concepts, weighted by their activations, (M, D).

    The tables have padding rows after the first `count`.
    """
    activation = _sigmoid(hidden, keys[:count])
    features = np.zeros((len(hidden), embeddings.shape[1]))
    for row, weights in enumerate(activation):
        for c in np.argsort(-weights)[:selected]:
            features[row] += weights[c] * embeddings[c]
    return features


def _label_features(embeddings: np.ndarray, labels: np.ndarray, sequence: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """The sum of the embeddings of the labels of each row's chunk, (M, D); zeros outside chunks. labels (B, S, K)."""
    features = np.zeros((len(chunk), embeddings.shape[1]))
    for row, (b, s) in enumerate(zip(sequence, chunk)):
        if s >= 0:
            for c in set(labels[b, s].tolist()) - {-1}:
                features[row] += embeddings[c]
    return features


def _cross_entropy(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """−log p(target), (M,), for logits (M, V)."""
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(target)), target]


def _presence(activation: np.ndarray, sequence: np.ndarray, chunk: np.ndarray, labels: np.ndarray) -> float:
    """Binary cross-entropy of `P_c = 1 − Π_t (1 − k_ct)`, t over a chunk's masked tokens, summed over concepts and
    averaged over the chunks that have a masked token."""
    nats = []
    for b, s in sorted({(b, s) for b, s in zip(sequence.tolist(), chunk.tolist()) if s >= 0}):
        inside = activation[(sequence == b) & (chunk == s)]
        present = 1 - np.prod(1 - inside, axis=0)
        positive = np.isin(np.arange(activation.shape[1]), labels[b, s])
        nats.append(-np.sum(np.log(np.where(positive, present, 1 - present))))
    return float(np.mean(nats))


def _independence(phi: np.ndarray, psi: np.ndarray) -> float:
    """`‖ΨᵀΦ‖²_F / (D² (M − 1))` of features (M, D), each centred over the rows."""
    M, D = phi.shape
    cross = (psi - psi.mean(axis=0)).T @ (phi - phi.mean(axis=0))
    return float(np.sum(cross**2) / (D**2 * (M - 1)))
