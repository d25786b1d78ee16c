"""What the calls of `steerling sae cover` covered: the kept examples, and the arms at the same number of calls.

Legend: J missing targets, n calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from steerling_jax.attribution.sae.call_log import Call, CallLog
from steerling_jax.evaluation.target_coverage import (
    chance_of_coverage,
    coverage_difference,
    covered_in_order,
    natural_coverage,
)
from steerling_jax.explain.features.example_requests import FeatureDescription

TARGETS, OTHERS, PLAIN, NATURAL = "targets", "other features", "no feature", "natural texts"


def covered_by(calls: Sequence[Call]) -> Counter[int]:
    """In how many kept texts each target fires, whichever was requested."""
    return Counter(feature for call in calls if call.outcome == "kept" for feature in call.fires)


def examples(calls: Sequence[Call], descriptions: Mapping[int, FeatureDescription]) -> list[dict[str, Any]]:
    """The rows of examples.jsonl."""
    return [
        {
            "text": call.text,
            "feature": call.feature,
            "name": descriptions[call.feature].name or None,
            "latent": call.fires[call.feature],
            "fires": sorted(call.fires),
            "call": call.number,
        }
        for call in calls
        if call.outcome == "kept" and call.feature is not None
    ]


def fires_by_call(calls: Sequence[Call], targets: Sequence[int]) -> np.ndarray:
    """(n, J) bool: the targets that fire in each call's text; none in copies, repetitions and unusable outputs."""
    rows = [[feature in call.fires for feature in targets] for call in calls]
    valid = [call.outcome in ("kept", "silent") for call in calls]
    return np.array(rows, bool).reshape(len(calls), len(targets)) & np.array(valid, bool)[:, None]


def synthesis_figures(
    log: CallLog, missing: Mapping[int, int], descriptions: Mapping[int, FeatureDescription], pool: np.ndarray | None,
    budget: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """What the calls covered, by arm, beside texts drawn from a pool, (texts, J) bool, for JSON."""
    features = list(missing)
    calls = log.of_arm(TARGETS)
    kept, requested = covered_by(calls), Counter(call.feature for call in calls)
    hits = Counter(call.feature for call in calls if call.outcome == "kept")
    keys = jax.random.split(jax.random.key(seed), 4)
    ours = np.asarray(fires_by_call(calls, features).any(axis=0))
    arms, differences = {}, {}
    for key, arm in zip(keys, (TARGETS, OTHERS, PLAIN), strict=False):
        own = log.of_arm(arm)[: len(calls)]
        if arm != TARGETS and len(own) < len(calls):
            continue
        fires = fires_by_call(own, features)
        curve = covered_in_order(fires)
        outcomes = Counter(call.outcome for call in own)
        arms[arm] = {"calls": len(own), "outcomes": dict(sorted(outcomes.items())), "covered": int(curve[-1]),
                     "curve": curve.tolist()}  # fmt: skip
        if arm != TARGETS:
            differences[arm] = coverage_difference(ours, np.asarray(fires.any(axis=0)), key)._asdict()
    figures: dict[str, Any] = {
        "budget": budget,
        "calls": len(calls),
        "kept": sum(call.outcome == "kept" for call in calls),
        "covered": sum(kept[one] >= number for one, number in missing.items()),
        "features": [
            {
                "feature": one,
                "name": descriptions[one].name or None,
                "needed": number,
                "calls": requested[one],
                "hits": hits[one],
                "kept": kept[one],
                "covered": kept[one] >= number,
            }
            for one, number in missing.items()
        ],
        "arms": arms,
    }
    if pool is not None:
        curve = natural_coverage(pool, len(calls), keys[3])
        figures["natural"] = {"texts": len(pool), "covered": float(curve.mean[-1]), "low": float(curve.low[-1]),
                              "high": float(curve.high[-1]), "curve": curve.mean.tolist(),
                              "in_pool": int(pool.any(axis=0).sum())}  # fmt: skip
        chance = chance_of_coverage(pool, len(calls))
        differences[NATURAL] = coverage_difference(ours, chance, keys[3])._asdict()
    figures["differences"] = differences
    return figures
