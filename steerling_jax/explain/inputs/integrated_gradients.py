"""Which input tokens made each committed token: integrated gradients on the canvas that generation saw.

For each target, the embeddings of its exact snapshot are reached from the mask embedding on a straight line, and the
gradient of the target along the line is averaged. The sum of the attributions is then the difference of the target
between the two ends; how far it is off, the completeness error, says how exact the average is.

Legend: n explained targets, T canvas positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.trace import Trace
from steerling_jax.errors import UserError, require
from steerling_jax.explain.inputs import baselines as input_baselines
from steerling_jax.explain.inputs.record import DEFAULT_TOLERANCE, InputAttribution, Method, Tolerance
from steerling_jax.explain.inputs.snapshots import Case, SnapshotPasses, choose_cases
from steerling_jax.explain.inputs.targets import TOKEN_LOGIT, AttributionTarget
from steerling_jax.progress import Progress

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
    tolerance: Tolerance = DEFAULT_TOLERANCE,
    batch_size: int = 8,
    tell: Progress | None = None,
) -> InputAttribution:
    """What each token of the snapshot added to each committed token's logit, or to another target.

    method: "integrated-gradients", or what it is compared with (`input_baselines`).
    target: one for all commits, or as many as `positions`.
    span, positions, sample: the commits at positions [start, end), or at these positions, repeats allowed; of these,
    so many, evenly spaced in the order of commitment. Default all.
    nodes: gradients along each line. None takes 8, and doubles that for the targets outside the `tolerance`, up to its
    `most_nodes`; the record says which are still outside. A number is taken as it is.
    rule: Gauss–Legendre nodes need far fewer passes than the published right-Riemann sum.
    batch_size: rows of a pass, which sets the memory needed; the nodes do not. tell(stage, done, total) hears of
    progress.
    A steered text is explained with the same injection, a guided one by its guided logits. Raises `UserError` for bad
    values, a trace of another model and weights that are not finite.
    """
    if method not in _METHODS:
        raise UserError(f"method is {method!r}, but it must be one of {', '.join(map(repr, _METHODS))}.")
    ladder = _ladder(nodes, tolerance)
    quadrature(ladder[0], rule)
    cases = choose_cases(bundle, trace, target, span, positions, sample)
    passes = SnapshotPasses(bundle, trace, cases, batch_size)
    n, T = len(cases), len(trace.tokens)
    keep = np.broadcast_to(np.asarray([0.0, 1.0], np.float32)[None, :, None], (n, 2, T))
    baseline, path = passes.values(np.arange(n), keep).T
    if method == "integrated-gradients":
        found, used = _integrate(passes, path - baseline, ladder, rule, tolerance, tell)
    elif method == "gradient-x-input":
        found, used = _integrate(passes, path - baseline, [1], "right-riemann", tolerance, tell)
    else:
        found, used = _without_gradients(passes, method, path, tell), np.zeros(n, np.int32)
    error = found.sum(axis=1) - (path - baseline)
    return InputAttribution(
        trace,
        found,
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
    """Points and weights (nodes,) float32 of a rule on [0, 1]."""
    require(nodes >= 1, f"nodes is {nodes}, but it must be at least 1.")
    if rule == "right-riemann":
        return np.arange(1, nodes + 1, dtype=np.float32) / nodes, np.full(nodes, 1 / nodes, np.float32)
    if rule != "gauss-legendre":
        raise UserError(f"rule is {rule!r}, but it must be 'gauss-legendre' or 'right-riemann'.")
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return ((points + 1) / 2).astype(np.float32), (weights / 2).astype(np.float32)


def _ladder(nodes: int | None, tolerance: Tolerance) -> list[int]:
    """Numbers of nodes to try, one after the other."""
    if nodes is not None:
        return [nodes]
    ladder = [min(_FIRST_NODES, tolerance.most_nodes)]
    while ladder[-1] < tolerance.most_nodes:
        ladder.append(min(2 * ladder[-1], tolerance.most_nodes))
    return ladder


def _integrate(
    passes: SnapshotPasses,
    difference: np.ndarray,
    ladder: list[int],
    rule: Rule,
    tolerance: Tolerance,
    tell: Progress | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Attributions (n, T) and the gradient passes taken for each (n,): more nodes for those still outside."""
    n = len(difference)
    found, used, todo = np.zeros((n, len(passes.trace.tokens)), np.float32), np.zeros(n, np.int32), np.arange(n)
    for nodes in ladder:
        done, of = 0, len(todo)
        found[todo] = 0.0
        for some, values in passes.gradients(todo, *quadrature(nodes, rule)):
            found[some, : values.shape[1]] = values
            done += len(some)
            if tell is not None:
                tell(f"{nodes} nodes", done, of)
        used[todo] += nodes
        error = found[todo].sum(axis=1) - difference[todo]
        todo = todo[~tolerance.allows(error, difference[todo])]
        if not len(todo):
            break
    return found, used


def _without_gradients(passes: SnapshotPasses, method: Method, path: np.ndarray, tell: Progress | None) -> np.ndarray:
    """Attributions (n, T) of a method that takes one target after the other."""
    found = np.zeros((len(path), len(passes.trace.tokens)), np.float32)
    for number, value in enumerate(path):
        if method == "leave-one-out":
            found[number] = input_baselines.leave_one_out(passes, number, float(value))
        elif method == "recency":
            found[number] = input_baselines.recency(passes, number)
        else:
            found[number] = input_baselines.embedding_similarity(passes, number)
        if tell is not None:
            tell(method, number + 1, len(path))
    return found


def _columns(cases: list[Case]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Positions, token ids and orders (n,) int32, and recorded logits (n,) float32."""
    orders, _, positions, tokens, logits, _ = zip(*cases, strict=True)
    where, what, when = (np.asarray(values, np.int32) for values in (positions, tokens, orders))
    return where, what, when, np.asarray(logits, np.float32)
