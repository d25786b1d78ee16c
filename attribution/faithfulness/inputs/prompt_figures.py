"""Figures of one continuation: every method's orders of importance against the values of masked inputs."""

from __future__ import annotations

import numpy as np

from steerling_jax.attribution.faithfulness.inputs.perturbation_curves import (
    Limits,
    comprehensiveness,
    limits,
    shapley,
    subsets,
    sufficiency,
)
from steerling_jax.attribution.faithfulness.inputs.perturbations import RANDOM, snapshot, soft_perturbation, visible
from steerling_jax.attribution.faithfulness.inputs.settings import InputSettings
from steerling_jax.bundle import Bundle
from steerling_jax.decoding.trace import Trace
from steerling_jax.explain.inputs.integrated_gradients import attribute_inputs
from steerling_jax.explain.inputs.perturbation import perturbed_values
from steerling_jax.explain.inputs.record import InputAttribution, Method
from steerling_jax.explain.inputs.targets import TokenLogit, TokenLogProbability

IG = "integrated gradients"
IG_OF_LOGIT = "integrated gradients of the logit (published target)"
METHODS: dict[str, Method] = {
    IG: "integrated-gradients",
    "gradient × input": "gradient-x-input",
    "leave one out": "leave-one-out",
    "embedding similarity (no attention)": "embedding-similarity",
    "recency (no model)": "recency",
}
SHAPLEY = "Shapley values (all subsets)"
_AREAS = (("comprehensiveness", comprehensiveness), ("sufficiency", sufficiency))
_BATCH_SIZE = 64
_MIN_RANGE = 1e-6  # nats between the worst and the best order; below it all orders are equal up to rounding

# "figure/method" to one value per explained token.
Figures = dict[str, list[float]]


def prompt_figures(bundle: Bundle, trace: Trace, settings: InputSettings, draw: np.random.Generator) -> Figures:
    """The figures of the explained tokens of a trace."""
    figures: Figures = {}
    attributions = _attributions(bundle, trace, settings.targets)
    explained = attributions[IG]
    for row, position in enumerate(explained.target_positions.tolist()):
        order = int(explained.target_orders[row])
        seen = visible(trace, order, position, bundle.config.diff_block_size)
        groups = np.array_split(seen, min(settings.features, len(seen)))
        if len(groups) < 2:
            continue
        values = _subset_values(bundle, trace, groups, position)
        bounds = limits(values)
        if bounds.high - bounds.low < _MIN_RANGE:
            continue
        scores = {name: a.attributions[row] for name, a in attributions.items()}
        new = _order_figures(values, bounds, groups, scores)
        new |= soft_perturbation(bundle, snapshot(trace, order), position, seen, scores, draw)
        for name, value in new.items():
            figures.setdefault(name, []).append(value)
    figures["targets whose attribution adds up/" + IG] = explained.converged.astype(float).tolist()
    return figures


def _attributions(bundle: Bundle, trace: Trace, targets: int) -> dict[str, InputAttribution]:
    """The same tokens explained by every method."""
    log_probability = TokenLogProbability()
    attributions = {
        name: attribute_inputs(bundle, trace, method=method, target=log_probability, sample=targets)
        for name, method in METHODS.items()
    }
    return attributions | {IG_OF_LOGIT: attribute_inputs(bundle, trace, target=TokenLogit(), sample=targets)}


def _subset_values(bundle: Bundle, trace: Trace, groups: list[np.ndarray], position: int) -> np.ndarray:
    """Log-probability (2^F,) float64 of the token at `position` with each subset of the groups visible."""
    present = subsets(len(groups))
    keep = np.zeros((1, len(present), len(trace.tokens)), np.float32)
    for feature, group in enumerate(groups):
        keep[0][:, group] = present[:, feature : feature + 1]
    values = perturbed_values(
        bundle, trace, keep, target=TokenLogProbability(), positions=[position], batch_size=_BATCH_SIZE
    )
    return values[0].astype(np.float64)


def _order_figures(
    values: np.ndarray, bounds: Limits, groups: list[np.ndarray], scores: dict[str, np.ndarray]
) -> dict[str, float]:
    """Areas of every method's order, normalised so that 0 is the worst of all orders and 1 the best."""
    by_group = {name: np.array([score[group].sum() for group in groups]) for name, score in scores.items()}
    by_group[SHAPLEY] = shapley(values)
    spread = bounds.high - bounds.low
    figures: dict[str, float] = {}
    for name, score in by_group.items():
        order = np.argsort(-score, kind="stable")
        for figure, area in _AREAS:
            figures[f"{figure}, normalised/{name}"] = (area(values, order) - bounds.low) / spread
            if name == IG:
                figures[f"{figure}, nats/{name}"] = area(values, order)
    for figure, _ in _AREAS:
        figures[f"{figure}, normalised/{RANDOM}"] = (bounds.mean - bounds.low) / spread
    figures["comprehensiveness, nats/best order"] = bounds.high
    figures["comprehensiveness, nats/worst order"] = bounds.low
    return figures
