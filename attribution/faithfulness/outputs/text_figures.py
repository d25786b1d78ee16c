"""The figures of one text: attribution, evidence in the training data, and baselines without attribution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from steerling_jax.attribution.faithfulness.outputs.text_sets import ScoredText
from steerling_jax.attribution.index.evidence import Score
from steerling_jax.bundle import Bundle
from steerling_jax.explain.contributions import concept_contributions
from steerling_jax.explain.inputs.integrated_gradients import attribute_inputs
from steerling_jax.explain.inputs.targets import TokenLogProbability
from steerling_jax.explain.ranking import rank_chunk

TARGETS = 4  # tokens of a text whose inputs are explained
ATTRIBUTION = (
    "net share, known",
    "net share, discovered",
    "net share, epsilon",
    "largest share of a known concept",
    "inputs: share of the prompt",
    "inputs: effective number over visible",
)
BASELINES = ("mean logit of what was written", "nats a token", "repeated 3-grams")

# For tokens [start, end) of a text: each score's best value in the training data, and its threshold.
EvidenceValues = Callable[[np.ndarray, int, int], dict[Score, tuple[float, float]]]


def text_figures(bundle: Bundle, text: ScoredText, evidence: EvidenceValues | None) -> dict[str, float]:
    """The figures of `ATTRIBUTION`, of evidence if there is an index, and of `BASELINES`."""
    trace = text.generation.trace
    shares = concept_contributions(bundle, trace)
    ranking = rank_chunk(shares, trace.prompt_length, len(trace.tokens))
    known = [abs(share.contribution) for share in ranking if share.type == "known"]
    inputs = attribute_inputs(bundle, trace, target=TokenLogProbability(), sample=TARGETS, nodes=8)
    mass = np.abs(inputs.attributions)
    mass = mass / np.maximum(mass.sum(axis=1, keepdims=True), 1e-12)
    # exp(entropy) is the number of inputs over which the attribution would be spread evenly.
    entropy = -np.sum(mass * np.log(np.maximum(mass, 1e-12)), axis=1)
    visible = np.maximum((mass > 0).sum(axis=1), 1)
    values = (
        *ranking.net_shares,
        max(known, default=0.0),
        float(mass[:, : trace.prompt_length].sum(axis=1).mean()),
        float(np.mean(np.exp(entropy) / visible)),
    )
    figures: dict[str, float] = dict(zip(ATTRIBUTION, values, strict=True))
    if evidence is not None:
        figures |= evidence_figures(evidence, trace.tokens, trace.prompt_length)
    baselines = (float(np.mean(shares.target_logits)), text.nats, text.repeated)
    return figures | dict(zip(BASELINES, baselines, strict=True))


def evidence_figures(evidence: EvidenceValues, tokens: np.ndarray, start: int) -> dict[str, float]:
    """Each score's best value for tokens from `start` on, and whether it is above the threshold."""
    figures: dict[str, float] = {}
    for score, (value, threshold) in evidence(tokens, start, len(tokens)).items():
        figures |= {
            f"evidence: best {score}": value,
            f"evidence: {score} above its threshold": float(value > threshold),
        }
    return figures
