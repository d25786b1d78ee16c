"""Generated texts at the strengths of several expected costs: what they really cost, and where the concept is found.

The measures are those of `steerling steer-eval`: the negative likelihood bound of a text under the unsteered model, in
nats a token, minus that of the text without steering, and the share of texts in which a probe finds the concept.
Prompts and conditions are also its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.infer.steer_eval.judge import Judge
from steerling_jax.infer.steer_eval.measure import generate_texts, measure
from steerling_jax.infer.steer_eval.prompts import HeldOutChunks
from steerling_jax.infer.steer_eval.text_specs import (
    AMPLIFY,
    CONCEPT,
    NOTHING,
    RANDOM,
    SUPPRESSED,
    Condition,
    SteerEvalSettings,
    TextSpec,
)
from steerling_jax.progress import Progress, no_progress

LEVELS = (0.04, 0.1, 0.25, 0.6)  # expected costs whose real costs are measured


def measure_strengths(
    bundle: Bundle,
    judge: Judge,
    held: HeldOutChunks,
    action: str,
    strengths: Mapping[int, Sequence[float]],
    settings: SteerEvalSettings,
    *,
    control: bool = False,
    progress: Progress = no_progress,
) -> list[dict[str, Any]]:
    """Figures over the concepts for the first strength of each, the second, and so on.

    strengths: of each known concept, equally many. control: also for a random direction of the same norm. Each entry
    has the mean cost in nats a token with its standard error over texts, the share of texts in which the concept is
    found (to suppress, of those in which it is without steering), and their number.
    """
    names = [CONCEPT if action == AMPLIFY else SUPPRESSED, *([RANDOM] if control else [])]
    specs = [one for c in strengths for one in _specs(judge, held, action, c, strengths[c], names, settings)]
    # No prompt may have the concepts of the panel, in which case there is nothing to measure.
    written = generate_texts(bundle, judge, specs, settings, progress=progress) if specs else []
    texts = measure(bundle, judge, written, progress) if written else []
    base = {(t.spec.concept, t.spec.sample): t.figures for t in texts if t.spec.condition.name == NOTHING}
    entries = []
    for number in range(len(next(iter(strengths.values())))):
        for name in names:
            steered = [
                t for t in texts if t.spec.condition == Condition(action, name, strengths[t.spec.concept][number])
            ]
            before = [base[t.spec.concept, t.spec.sample] for t in steered]
            costs = np.array([t.figures["nats_per_token"] - b["nats_per_token"] for t, b in zip(steered, before)])
            costs = costs[np.isfinite(costs)]  # a text that ended at once has none
            figure = "found" if action == AMPLIFY else "still_found"
            found = np.array([t.figures[figure] for t in steered])
            found = found[np.isfinite(found)]
            entries.append(
                {
                    "condition": name,
                    "cost": float(costs.mean()) if len(costs) else None,
                    "cost_error": float(costs.std(ddof=1) / np.sqrt(len(costs))) if len(costs) > 1 else None,
                    figure: float(found.mean()) if len(found) else None,
                    "found_without": float(np.mean([b["found"] for b in before])) if before else None,
                    "texts": len(steered),
                }
            )
    return entries


def _specs(
    judge: Judge,
    held: HeldOutChunks,
    action: str,
    concept: int,
    strengths: Sequence[float],
    names: Sequence[str],
    settings: SteerEvalSettings,
) -> Iterator[TextSpec]:
    draw = (concept, settings.new_tokens, (settings.seed, concept))
    if action == AMPLIFY:
        openings = held.without(*draw)
    else:
        openings = (opening for opening in held.having(*draw) if judge.finds(concept, opening.continuation))
    for sample, opening in enumerate(islice(openings, settings.samples)):
        seed = int(np.random.SeedSequence((settings.seed, concept, sample)).generate_state(1)[0])
        conditions = [(NOTHING, None), *((name, strength) for strength in dict.fromkeys(strengths) for name in names)]
        for name, strength in conditions:
            yield TextSpec(Condition(action, name, strength), concept, sample, opening, seed)


def choose_level(entries: Sequence[Mapping[str, Any]], limit: float) -> float:
    """The largest expected cost whose real cost is at most `limit` nats a token, interpolated between `LEVELS`.

    Below the first level, the real cost is taken to be proportional to the expected one; above the last, none is
    chosen. Where no text could be written, the limit itself is the level.
    """
    if any(entry["cost"] is None for entry in entries):
        return limit
    # Noise can make a larger level look cheaper; past the first that costs too much, none is allowed.
    real = np.maximum.accumulate([max(entry["cost"], 1e-3) for entry in entries])
    if real[0] >= limit:
        return float(LEVELS[0] * limit / real[0])
    if real[-1] <= limit:
        return LEVELS[-1]
    i = int(np.flatnonzero(real > limit)[0])
    share = (limit - real[i - 1]) / (real[i] - real[i - 1])
    low, high = np.log(LEVELS[i - 1]), np.log(LEVELS[i])
    return float(np.exp(low + share * (high - low)))
