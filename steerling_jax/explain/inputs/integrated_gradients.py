"""Input attribution: how much each canvas token contributed to a committed token, by integrated gradients.

Integrated gradients (Sundararajan et al., 2017, https://arxiv.org/abs/1703.01365) of a target f at embeddings x with
the baseline x₀ are, for position t,

    a_t = (x_t − x₀_t) · ∫₀¹ ∂f/∂x_t (x₀ + α (x − x₀)) dα.

Here x are the embeddings of the exact canvas (the snapshot) on which the token was committed, and x₀ is the mask
embedding at every position: a canvas without information, and one that the model is trained on. The sum of all a_t is
f(x) − f(x₀) (completeness), so the difference between the two, the completeness error, measures how well the quadrature
approximates the integral.

An autoregressive model has no mask. Its snapshot is the text before the token, and x₀ is the mean of all tokens'
embeddings, which favours no token. docs/design/attribution.md compares it with zero embeddings.

Legend: n explained targets, T canvas positions, S positions of a cut canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.trace import Trace
from steerling_jax.errors import UserError, require
from steerling_jax.explain.inputs import baselines
from steerling_jax.explain.inputs.commits import Case, choose_cases
from steerling_jax.explain.inputs.record import (
    DEFAULT_TOLERANCE,
    SELECTION_TOLERANCE,
    InputAttribution,
    Method,
    Tolerance,
)
from steerling_jax.explain.inputs.snapshots import CASES, SnapshotPasses
from steerling_jax.explain.inputs.targets import TOKEN_LOGIT, AttributionTarget, reads_selection
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.progress import Progress, no_progress

Rule = Literal["gauss-legendre", "right-riemann"]

_FIRST_NODES = 8
_METHODS = ("integrated-gradients", "gradient-x-input", "leave-one-out", "embedding-similarity", "recency")


def attribute_inputs(
    bundle: Bundle,
    trace: Trace,
    *,
    method: Method = "integrated-gradients",
    target: AttributionTarget | Sequence[AttributionTarget] = TOKEN_LOGIT,
    span: tuple[int, int] | None = None,
    positions: Sequence[int] | None = None,
    sample: int | None = None,
    nodes: int | None = None,
    rule: Rule = "gauss-legendre",
    tolerance: Tolerance | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> InputAttribution:
    """Attributes each committed token's logit, or another target, to the tokens of its snapshot.

    method: "integrated-gradients", or one of the methods it is compared with (`explain.inputs.baselines`).
    target: one target for all commits, or a list with one target per entry of `positions`.
    span, positions: explain the commits at positions [start, end), or at these positions (repeats allowed). sample: of
    the selected commits, explain this many, evenly spaced in the order of commitment. Default: all commits.
    nodes: gradients along each path. None starts with 8 and doubles the number for targets outside the `tolerance`, up
    to its `most_nodes`; the result says which targets did not converge. A given number is used as it is.
    tolerance: None for 1 % or 0.01 logits with at most 64 nodes, or 16 for the logits of a strict model, where more
    nodes do not make the error smaller.
    rule: Gauss–Legendre nodes need far fewer passes than the right-Riemann sum of the published package.
    batch_size: rows of one pass, which determines the memory needed; the number of nodes does not.
    progress: called as (stage, done, total) before the first target and then after every `batch_size` of them. An
    exception that it raises cancels the work, and nothing of it stays.

    A steered text is explained with the same injection, a guided one by its guided logits. Raises `UserError` for
    invalid arguments, a trace of another model and weights that are not finite.
    """
    if method not in _METHODS:
        raise UserError(f"method is {method!r}, but it must be one of {', '.join(map(repr, _METHODS))}.")
    cases_per_row, progress = CASES if progress is None else 1, progress or no_progress
    cases = choose_cases(bundle, trace, target, span, positions, sample)
    if tolerance is None:
        selected = all(reads_selection(case.target, bundle.config) for case in cases)
        tolerance = SELECTION_TOLERANCE if selected else DEFAULT_TOLERANCE
    attempts = node_counts(nodes, tolerance)
    quadrature(attempts[0], rule)  # validates nodes and rule before the model runs
    require(
        isinstance(bundle.config, ModelConfig) or method != "embedding-similarity",
        "embedding-similarity compares tokens with the mask, which this model lacks; choose another method.",
    )
    passes = SnapshotPasses(bundle, trace, cases, batch_size, cases_per_row)
    n, T = len(cases), len(trace.tokens)
    # Both ends of each path in one request: pattern 0 keeps nothing of the snapshot, pattern 1 all of it.
    keep = np.broadcast_to(np.asarray([0.0, 1.0], np.float32)[None, :, None], (n, 2, T))
    baseline, path = passes.values(np.arange(n), keep).T
    if method == "integrated-gradients":
        attributions, used = _integrate(passes, path - baseline, attempts, rule, tolerance, progress)
    elif method == "gradient-x-input":
        # One right-Riemann node is the gradient at the snapshot itself times (x − x₀).
        attributions, used = _integrate(passes, path - baseline, [1], "right-riemann", tolerance, progress)
    else:
        attributions, used = _without_gradients(passes, method, path, progress), np.zeros(n, np.int32)
    error = attributions.sum(axis=1) - (path - baseline)
    return InputAttribution(
        trace.with_pieces(bundle.tokenizer),
        attributions,
        *_columns(cases),
        path_logits=path,
        baseline_logits=baseline,
        completeness_error=error,
        nodes=used,
        converged=tolerance.allows(error, path - baseline),
        method=method,
        targets=tuple(case.target for case in cases),
        tolerance=tolerance,
    )


def quadrature(nodes: int, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights (nodes,) float32 of a quadrature rule on [0, 1].

    Raises `UserError` for fewer than one node and for an unknown rule.
    """
    require(nodes >= 1, f"nodes is {nodes}, but it must be at least 1.")
    if rule == "right-riemann":
        return np.arange(1, nodes + 1, dtype=np.float32) / nodes, np.full(nodes, 1 / nodes, np.float32)
    if rule != "gauss-legendre":
        raise UserError(f"rule is {rule!r}, but it must be 'gauss-legendre' or 'right-riemann'.")
    # Exact for polynomials up to degree 2·nodes − 1, while the Riemann sum has an error of order 1/nodes: for the same
    # completeness error it needs far fewer gradient passes. NumPy's rule is for [−1, 1], so it is moved to [0, 1].
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return ((points + 1) / 2).astype(np.float32), (weights / 2).astype(np.float32)


def node_counts(nodes: int | None, tolerance: Tolerance) -> list[int]:
    """Numbers of nodes to try in turn: the given one, or 8, 16, … up to `most_nodes`."""
    if nodes is not None:
        return [nodes]
    counts = [min(_FIRST_NODES, tolerance.most_nodes)]
    while counts[-1] < tolerance.most_nodes:
        counts.append(min(2 * counts[-1], tolerance.most_nodes))
    return counts


def _integrate(
    passes: SnapshotPasses,
    difference: np.ndarray,
    attempts: list[int],
    rule: Rule,
    tolerance: Tolerance,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Attributions (n, T) and the number of gradient passes of each target (n,) int32.

    Targets outside the tolerance are repeated with the next number of nodes.
    """
    n = len(difference)
    attributions, used = np.zeros((n, len(passes.trace.tokens)), np.float32), np.zeros(n, np.int32)
    remaining = np.arange(n)
    for nodes in attempts:
        done, total = 0, len(remaining)
        # Gauss–Legendre nodes are not nested: the points of n nodes are not among those of 2n. A repeated target
        # therefore starts again at 0, and `used` counts the passes of every attempt.
        attributions[remaining] = 0.0
        progress(f"{nodes} nodes", 0, total)
        for numbers, values in passes.gradients(remaining, *quadrature(nodes, rule)):
            attributions[numbers, : values.shape[1]] = values  # positions behind the cut stay 0
            done += len(numbers)
            progress(f"{nodes} nodes", done, total)
        used[remaining] += nodes
        error = attributions[remaining].sum(axis=1) - difference[remaining]
        remaining = remaining[~tolerance.allows(error, difference[remaining])]
        if not len(remaining):
            break
    return attributions, used


def _without_gradients(passes: SnapshotPasses, method: Method, path: np.ndarray, progress: Progress) -> np.ndarray:
    """Attributions (n, T) of a method that handles one target at a time."""
    attributions = np.zeros((len(path), len(passes.trace.tokens)), np.float32)
    progress(method, 0, len(path))
    for number, value in enumerate(path):
        if method == "leave-one-out":
            attributions[number] = baselines.leave_one_out(passes, number, float(value))
        elif method == "recency":
            attributions[number] = baselines.recency(passes, number)
        else:
            attributions[number] = baselines.embedding_similarity(passes, number)
        progress(method, number + 1, len(path))
    return attributions


def _columns(cases: list[Case]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Positions, token ids and orders (n,) int32, and recorded logits (n,) float32."""
    orders, _, positions, token_ids, logits, _ = zip(*cases, strict=True)
    positions, token_ids, orders = (np.asarray(values, np.int32) for values in (positions, token_ids, orders))
    return positions, token_ids, orders, np.asarray(logits, np.float32)
