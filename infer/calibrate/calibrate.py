"""Calibration of a model's steering: for each concept the strength that costs about the limit.

1. *Curves*: the expected cost of each concept at eight strengths, on held-out texts (`evaluation.steering_cost`).
2. *Levels*: for a panel of known concepts, texts generated at the strengths of four expected costs, with what they
   really cost. The expected cost that really costs the limit is the level for all concepts.
3. *Result*: the strengths of that level, and what they cost and do on other prompts, beside random directions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.concepts.catalogue import Catalogue
from steerling_jax.concepts.concept import Head
from steerling_jax.infer.calibrate.check import LEVELS, choose_level, measure_strengths
from steerling_jax.infer.calibrate.curves import canvases_with, cost_curve, neutral_canvases, strength_at
from steerling_jax.infer.steer_eval.judge import Judge
from steerling_jax.infer.steer_eval.prompts import HeldOutChunks
from steerling_jax.infer.steer_eval.text_specs import AMPLIFY, SUPPRESS, SteerEvalSettings
from steerling_jax.progress import Progress, no_progress

ACTIONS = (AMPLIFY, SUPPRESS)
# The result of a unit of the measurement, computed unless an earlier run has it: (name of the unit, compute) -> result.
Remember = Callable[[str, Callable[[], Any]], Any]


@dataclass(frozen=True)
class CalibrationSettings:
    """limit: nats a token that steering may cost. panel: known concepts on which texts are generated. samples: prompts
    for each. canvases: held-out texts for the expected cost. new_tokens: length of a text."""

    limit: float = 0.3
    panel: int = 16
    samples: int = 4
    canvases: int = 16
    new_tokens: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Calibration:
    """strengths: by action, (head, id) to strength. levels: by action, the expected cost that was chosen. tried,
    measured: by action, figures of the levels that were tried and of the result, see `check.measure_strengths`."""

    strengths: dict[str, dict[tuple[Head, int], float]]
    levels: dict[str, float]
    tried: dict[str, list[dict[str, Any]]]
    measured: dict[str, list[dict[str, Any]]]
    panel: list[int]


def calibrate(
    bundle: Bundle,
    judge: Judge,
    held: HeldOutChunks,
    concepts: Sequence[tuple[Head, int]],
    settings: CalibrationSettings,
    *,
    remember: Remember,
    progress: Progress = no_progress,
) -> Calibration:
    """Measures the strengths of `concepts`. The panel is chosen by the judge among the known ones.

    Raises `UserError` for a corpus without a concept that the judge can measure.
    """
    panel = judge.choose(settings.panel)
    panel_concepts: list[tuple[Head, int]] = [("known", concept) for concept in panel]
    every = list(dict.fromkeys([*concepts, *panel_concepts]))
    curves = _curves(bundle, held, every, settings, remember, progress)
    result = Calibration({}, {}, {}, {}, panel)
    for action in ACTIONS:
        texts = SteerEvalSettings((), settings.samples, settings.new_tokens, settings.seed)
        tried = {c: [strength_at(action, curves[action]["known", c], level) for level in LEVELS] for c in panel}
        result.tried[action] = remember(
            f"levels {action}",
            lambda a=action, s=tried, t=texts: measure_strengths(bundle, judge, held, a, s, t, progress=progress),
        )
        level = choose_level(result.tried[action], settings.limit)
        strengths = {one: float(f"{strength_at(action, curves[action][one], level):.3g}") for one in every}
        if action == SUPPRESS:
            # A discovered concept is measured on texts that hardly have it, where removing it costs nothing.
            most = float(np.median([strength for (head, _), strength in strengths.items() if head == "known"]))
            strengths = {one: min(value, most) if one[0] == "discovered" else value for one, value in strengths.items()}
        # Other prompts and seeds than those on which the level was chosen.
        fresh = dataclasses.replace(texts, seed=settings.seed + 1)
        chosen = {c: [strengths["known", c]] for c in panel}
        result.measured[action] = remember(
            f"result {action} {settings.limit}",
            lambda a=action, s=chosen, t=fresh: measure_strengths(
                bundle, judge, held, a, s, t, control=True, progress=progress
            ),
        )
        result.levels[action] = level
        result.strengths[action] = {one: strengths[one] for one in concepts}
    return result


def _curves(
    bundle: Bundle,
    held: HeldOutChunks,
    concepts: Sequence[tuple[Head, int]],
    settings: CalibrationSettings,
    remember: Remember,
    progress: Progress,
) -> dict[str, dict[tuple[Head, int], list[float]]]:
    """By action, the expected costs of each concept: to suppress a known concept on texts that have it, else on texts
    of any kind."""
    count, length, seed = settings.canvases, settings.new_tokens, settings.seed
    neutral = neutral_canvases(bundle, held, count, length, seed)
    curves: dict[str, dict[tuple[Head, int], list[float]]] = {action: {} for action in ACTIONS}
    for number, (head, concept) in enumerate(concepts, start=1):
        for action in ACTIONS:

            def compute(action: str = action, head: Head = head, concept: int = concept) -> list[float]:
                own = None
                if action == SUPPRESS and head == "known":
                    own = canvases_with(bundle, held, concept, count, length, seed)
                return cost_curve(bundle, neutral if own is None else own, action, head, concept)

            curves[action][head, concept] = remember(f"curve {action} {head} {concept}", compute)
        progress("expected costs", number, len(concepts))
    return curves


def calibrated_catalogue(catalogue: Catalogue, calibration: Calibration) -> Catalogue:
    """The catalogue with the strengths of each concept. A concept without an entry gets one with its number as name."""
    entries = {(one.head, one.id): one for one in catalogue.concepts}
    for action, strengths in calibration.strengths.items():
        for (head, concept), strength in strengths.items():
            entry = entries.get((head, concept)) or catalogue.get(concept, head)
            entries[head, concept] = dataclasses.replace(entry, **{action: strength})
    return dataclasses.replace(catalogue, concepts=tuple(entries.values()))


def median_strengths(calibration: Calibration) -> dict[str, float]:
    """By action the median over the known concepts, for steering by several concepts together."""
    return {
        action: float(f"{np.median([s for (head, _), s in strengths.items() if head == 'known']):.3g}")
        for action, strengths in calibration.strengths.items()
    }
