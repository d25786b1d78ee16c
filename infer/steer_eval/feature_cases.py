"""Steering by a feature that a contrast of texts finds, beside other directions of the same length, a built-in concept
and a prompt.

Layer and strength are chosen on one half of the prompts and measured on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.errors import require
from steerling_jax.infer.steer_eval.case_arms import ArmFigures, Arms, CaseSettings, Treatment, choose, push
from steerling_jax.infer.steer_eval.case_candidates import (
    Candidate,
    ConceptCandidate,
    concept_plan,
    find_candidates,
    find_concept,
)
from steerling_jax.infer.steer_eval.case_judges import script_judge, word_judge
from steerling_jax.progress import Progress

RANDOM_DIRECTIONS = 3


@dataclass(frozen=True)
class CaseTexts:
    """positive, negative: texts of the two kinds; the negative ones are also the neutral ones. prompts: to continue.

    script: judge texts by the letters of this script; None for their words. concept: the name of the built-in concept
    to compare with; None for the one that the contrast finds.
    """

    positive: Sequence[str]
    negative: Sequence[str]
    prompts: Sequence[str]
    script: str | None = None
    concept: str | None = None


@dataclass(frozen=True)
class SteeringCase:
    """candidates: of each layer. concept: the built-in one; None in a model without known concepts.

    judge: its name; judge_auc: on texts that it was not fitted to. tuning: every condition on the first half of the
    prompts. chosen: the candidate and strength. concept_strength: that of the concept. arms: on the second half.
    """

    candidates: list[Candidate]
    concept: ConceptCandidate | None
    judge: str
    judge_auc: float
    tuning: list[ArmFigures]
    chosen: tuple[Candidate, float]
    concept_strength: float | None
    arms: list[ArmFigures]


def run_case(
    bundle: Bundle,
    autoencoders: Sequence[Autoencoder],
    texts: CaseTexts,
    settings: CaseSettings,
    progress: Progress,
) -> SteeringCase:
    """Finds, chooses and measures. Raises `UserError` for too few texts, and as `find_candidates`, `find_concept` and
    `script_judge` do."""
    positive, negative, prompts = texts.positive, texts.negative, texts.prompts
    for name, group in (("positive", positive), ("negative", negative), ("prompts", prompts)):
        require(len(group) >= 4, f"There are {len(group)} texts in the file of --{name}; give at least 4.", name)
    judge = word_judge(positive, negative) if texts.script is None else script_judge(texts.script, positive, negative)
    concept = find_concept(bundle, positive, negative, texts.concept, progress)
    candidates = find_candidates(bundle, autoencoders, positive, negative, progress)
    order = np.random.default_rng(settings.seed).permutation(len(prompts))
    half = len(order) // 2
    first = [prompts[int(i)] for i in order[:half]]
    second = [prompts[int(i)] for i in order[half:]]
    arms = Arms(bundle, judge, negative, settings)
    sign, n_layers = -1.0 if settings.suppress else 1.0, bundle.backbone.n_layers

    def pushed(vector: np.ndarray, layer: int) -> Treatment:
        return Treatment((push(vector, layer, n_layers),))

    pairs = [(one, strength) for one in candidates for strength in settings.strengths]
    concept_pairs = [] if concept is None else [(concept, strength) for strength in settings.concept_strengths]
    total, stage = len(pairs) + len(concept_pairs), "choosing layer and strength"
    nothing, by_feature, by_concept = arms.measure("nothing", first), [], []
    for one, strength in pairs:
        progress(stage, len(by_feature), total)
        treatment = pushed(sign * strength * one.direction, one.layer)
        by_feature.append(arms.measure("feature", first, [treatment], one.layer, strength))
    for built_in, strength in concept_pairs:
        progress(stage, len(pairs) + len(by_concept), total)
        treatment = Treatment(plan=concept_plan(bundle, built_in.concept, strength, settings.suppress))
        by_concept.append(arms.measure("built-in concept", first, [treatment], None, strength))
    progress(stage, total, total)

    chosen = pairs[choose(by_feature, settings)]
    one, strength = chosen
    length = float(np.linalg.norm(one.direction)) * strength
    normal = np.asarray(jax.random.normal(jax.random.key(settings.seed), (RANDOM_DIRECTIONS, len(one.direction))))
    randoms = [pushed(length * row / np.linalg.norm(row), one.layer) for row in normal]
    measured = [
        arms.measure("nothing", second),
        arms.measure("feature", second, [pushed(sign * strength * one.direction, one.layer)], one.layer, strength),
        arms.measure("random directions", second, randoms, one.layer, strength),
        arms.measure("difference of means", second, [pushed(sign * strength * one.means, one.layer)], one.layer,
                     strength),
    ]  # fmt: skip
    concept_strength = None
    if concept is not None:
        concept_strength = settings.concept_strengths[choose(by_concept, settings)]
        treatment = Treatment(plan=concept_plan(bundle, concept.concept, concept_strength, settings.suppress))
        measured.append(arms.measure("built-in concept", second, [treatment], None, concept_strength))
    before = (negative if settings.suppress else positive)[0]
    measured.append(arms.measure("prompt", [f"{before}\n\n{text}" for text in second]))
    tuning = [nothing, *by_feature, *by_concept]
    return SteeringCase(candidates, concept, judge.name, judge.auc, tuning, chosen, concept_strength, measured)
