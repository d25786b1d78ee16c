"""Texts steered towards a label by its built-in concept, by the best feature, by the difference of means, by random
directions and by prompts, with the prompts, the judge and the figures of `steerling steer-eval`.

Block and strength are chosen on the first prompts of each concept, and measured on the others. Damage is how much less
likely a text is under the unsteered model than the text that is written without steering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from one_roof_scores import Reading, choose_dose, differences_of_means

from steerling_jax.bundle import Bundle
from steerling_jax.infer.steer_eval.judge import Judge, train_judge
from steerling_jax.infer.steer_eval.measure import generate_texts, measure
from steerling_jax.infer.steer_eval.prompts import HeldOutChunks
from steerling_jax.infer.steer_eval.random_control import random_control
from steerling_jax.infer.steer_eval.text_specs import (
    AMPLIFY,
    NOTHING,
    PROMPT_WORDS,
    Condition,
    SteerEvalSettings,
    TextSpec,
)
from steerling_jax.io.autoencoders.load import load_autoencoders
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.steering.config import SteeringConfig
from steerling_jax.steering.features import FeatureSteering
from steerling_jax.steering.plan import SteeringPlan, prepare_steering

CONCEPTS, TUNING, MEASURED, NEW_TOKENS = 8, 3, 6, 32
LOGITS = (1.0, 2.0, 4.0, 8.0)  # strengths of built-in concepts
LENGTHS = (0.25, 0.5, 1.0, 2.0)  # of a direction, as multiples of the mean length of the block's rows
BLOCKS = (1, 3)  # the first one after which built-in concepts are injected, and the last one
CONCEPT, FEATURE, MEANS = "built-in concept", "feature", "difference of means"
KINDS = (CONCEPT, FEATURE, MEANS)


@dataclass(frozen=True)
class PlannedSpec(TextSpec):
    """A text with its plan of steering."""

    steering: SteeringPlan | None = None

    def plan(self, bundle: Bundle) -> SteeringPlan | None:
        return self.steering


@dataclass(frozen=True)
class Dose:
    """A kind of steering with its strength; block: None for a built-in concept."""

    kind: str
    strength: float
    block: int | None = None

    @property
    def name(self) -> str:
        return self.kind if self.block is None else f"{self.kind} of block {self.block}"


class Directions:
    """The directions of each kind for each label, and the plans that they make."""

    def __init__(self, bundle: Bundle, train: Reading, found: Mapping[str, Any], folder: Path):
        self._bundle, self._labels, self._chosen = bundle, found["labels"], found["chosen"]
        self._autoencoders = {one.layer: one for one in load_autoencoders(folder)}
        self._lengths = train.means["norm"].mean(axis=0)
        positive = train.positive[:, self._labels]
        self._means = {block: differences_of_means(train.means[f"block {block}"], positive) for block in BLOCKS}

    def plan(self, label: int, dose: Dose, random: jax.Array | None = None) -> SteeringPlan:
        """The plan for a label; random: a key, for a random direction of the same length."""
        bundle = self._bundle
        if dose.block is None:
            one: Any = SteeringConfig((label,), mai_lm_target=dose.strength)
        else:
            place = self._labels.index(label)
            feature, direction = 0, self._means[dose.block][place]
            if dose.kind == FEATURE:
                feature = self._chosen[f"features {dose.block}"][place]
                direction = np.asarray(self._autoencoders[dose.block].weights.W_dec[feature])
            unit = direction / np.linalg.norm(direction)
            length = dose.strength * float(self._lengths[dose.block])
            one = FeatureSteering(feature, length, dose.block, tuple(map(float, unit)), "generated")
        plan = prepare_steering(bundle.params, one, config=bundle.config, compute=bundle.compute)
        return plan if random is None else random_control(plan, random, params=bundle.params, compute=bundle.compute)


@dataclass(frozen=True)
class Arm:
    """A condition. random: a random direction as long as the dose's. before: what precedes the prompt, "words" or a
    "description"."""

    name: str
    dose: Dose | None = None
    random: bool = False
    before: str = ""

    @property
    def condition(self) -> Condition:
        return Condition(AMPLIFY, self.name, None if self.dose is None else self.dose.strength)


class Texts:
    """Writes and measures texts of all labels under several conditions."""

    def __init__(self, bundle: Bundle, store: CorpusStore, judge: Judge, directions: Directions, labels: Sequence[int]):
        self._bundle, self._judge, self._directions = bundle, judge, directions
        held = HeldOutChunks.read(store, bundle.concepts.known)
        self._openings = {
            label: list(islice(held.without(label, NEW_TOKENS, (0, label)), TUNING + MEASURED)) for label in labels
        }
        described = {one["id"]: f"{one['name']}. {one['description']}".strip() for one in store.concepts}
        self._before: dict[str, dict[int, tuple[int, ...]]] = {
            "": dict.fromkeys(labels, ()),
            "words": {i: tuple(judge.lifted[judge.column(i)].tokens[:PROMPT_WORDS].tolist()) for i in labels},
            "description": {label: tuple(bundle.tokenizer.encode(described[label])) for label in labels},
        }

    def measure(self, arms: Sequence[Arm], samples: range) -> list[dict[str, Any]]:
        """The figures of each arm; the first one must be without steering.

        found: the share of the texts of each label in which the judge finds it. damage: their mean cost, nats a token.
        """
        specs = [self._spec(arm, label, sample) for label in self._openings for sample in samples for arm in arms
                 if sample < len(self._openings[label])]  # fmt: skip
        settings = SteerEvalSettings((), len(samples), NEW_TOKENS, 0)
        texts = measure(self._bundle, self._judge, generate_texts(self._bundle, self._judge, specs, settings))
        plain = {(one.spec.concept, one.spec.sample): one for one in texts if one.spec.condition.name == NOTHING}
        figures = []
        for number, arm in enumerate(arms):
            own = texts[number :: len(arms)]
            found: dict[int, list[float]] = {label: [] for label in self._openings}
            damage: dict[int, list[float]] = {label: [] for label in self._openings}
            repeated = []
            for text in own:
                base = plain[text.spec.concept, text.spec.sample].figures["nats_per_token"]
                found[text.spec.concept].append(text.figures["found"])
                damage[text.spec.concept].append(text.figures["nats_per_token"] - base)
                repeated.append(text.figures["repeated_3"])
            figures.append({
                "name": arm.name, "strength": arm.condition.strength, "found": list(found.values()),
                "damage": list(damage.values()), "repeated": float(np.nanmean(repeated)), "texts": len(own),
            })  # fmt: skip
        return figures

    def _spec(self, arm: Arm, label: int, sample: int) -> PlannedSpec:
        seed = int(np.random.SeedSequence((0, label, sample)).generate_state(1)[0])
        key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1) if arm.random else None
        plan = None if arm.dose is None else self._directions.plan(label, arm.dose, key)
        opening = self._openings[label][sample]
        return PlannedSpec(arm.condition, label, sample, opening, seed, self._before[arm.before][label], plan)


def steering(
    bundle: Bundle, store: CorpusStore, train: Reading, found: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Chooses a dose of each kind on some prompts, and measures it on others beside its controls."""
    judge = train_judge(store, bundle.concepts.known, [], NEW_TOKENS)
    labels = [label for label in judge.choose(CONCEPTS) if label in found["labels"]]
    texts = Texts(bundle, store, judge, Directions(bundle, train, found, folder), labels)
    doses = [Dose(CONCEPT, strength) for strength in LOGITS]
    doses += [Dose(kind, strength, block) for kind in (FEATURE, MEANS) for block in BLOCKS for strength in LENGTHS]
    nothing = Arm(NOTHING)
    tuning = texts.measure([nothing, *(Arm(dose.name, dose) for dose in doses)], range(TUNING))
    arms = [nothing, Arm("prompt: description", before="description"), Arm("prompt: typical words", before="words")]
    for kind in KINDS:
        own = [i for i, dose in enumerate(doses) if dose.kind == kind]
        dose = doses[own[choose_dose([tuning[1 + i] for i in own])]]
        arms.append(Arm(dose.name, dose))
        if kind != MEANS:
            arms.append(Arm(f"random direction, as the {kind}", dose, random=True))
    names = {one["id"]: one["name"] for one in store.concepts}
    measured = texts.measure(arms, range(TUNING, TUNING + MEASURED))
    return {"labels": [names[label] for label in labels], "tuning": tuning, "arms": measured}
