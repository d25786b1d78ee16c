"""Texts written under one condition of a steering case, and their figures.

Legend: D width, L layers, n prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.generation import generate_many
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.evaluation.intervals import Estimate, bootstrap
from steerling_jax.evaluation.text_metrics import repeated
from steerling_jax.evaluation.words import words_of
from steerling_jax.infer.steer_eval.case_judges import CaseJudge
from steerling_jax.infer.steer_eval.neutral_loss import neutral_loss
from steerling_jax.models.edits import LayerEdit
from steerling_jax.steering.plan import SteeringPlan

BROKEN = 0.5  # a text more of whose 3-grams are repeated is broken
NEUTRAL = 24  # negative texts whose loss is measured


@dataclass(frozen=True)
class CaseSettings:
    """strengths: multiples of the feature's usual latent. suppress: the texts should be less like the positive ones.

    limit: the most nats a token of damage that a chosen condition has. seed: of texts, halves and random directions.
    concept_strengths: of a built-in concept, in logits.
    """

    strengths: tuple[float, ...]
    new_tokens: int
    suppress: bool
    limit: float
    seed: int
    concept_strengths: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)


class ArmFigures(NamedTuple):
    """Texts written under one condition. found: the share that the judge takes for positive, over prompts.

    damage: nats a token that the steering adds to the loss of neutral texts. repeated: the mean share of repeated
    3-grams. failures: texts without the effect, or broken ones.
    """

    name: str
    layer: int | None
    strength: float | None
    found: Estimate
    damage: float
    repeated: float
    failures: int
    texts: list[str]


class Treatment(NamedTuple):
    """How a text is steered: by changes to the outputs of blocks, or by a plan of concepts."""

    edits: tuple[LayerEdit, ...] = ()
    plan: SteeringPlan | None = None


class Arms:
    """Writes and judges texts with the same seeds under every condition, and measures the damage on neutral texts."""

    def __init__(self, bundle: Bundle, judge: CaseJudge, neutral: Sequence[str], settings: CaseSettings) -> None:
        self._bundle, self._judge, self._settings = bundle, judge, settings
        self._neutral = neutral[:NEUTRAL]
        self._before = neutral_loss(bundle, self._neutral, Treatment().edits, settings.seed)

    def measure(
        self,
        name: str,
        prompts: Sequence[str],
        treatments: Sequence[Treatment] = (Treatment(),),
        layer: int | None = None,
        strength: float | None = None,
    ) -> ArmFigures:
        """The figures of a condition; several treatments are used in turn, for all prompts each."""
        settings = self._settings
        written, damage = [], []
        for one in treatments:
            written.append(self._write(prompts, one))
            loss = neutral_loss(self._bundle, self._neutral, one.edits, settings.seed, one.plan)
            damage.append(loss - self._before)
        positive = np.stack([self._judge.positive(texts) for texts in written])
        loops = np.array([[repeated(words_of(text), 3) or 0.0 for text in texts] for texts in written])
        failed = int(np.sum((positive == settings.suppress) | (loops > BROKEN)))
        shares = positive.mean(axis=0)
        found = bootstrap(lambda at: float(shares[at].mean()), len(shares), jax.random.key(settings.seed))
        texts = [text for one in written for text in one]
        return ArmFigures(name, layer, strength, found, float(np.mean(damage)), float(loops.mean()), failed, texts)

    def _write(self, prompts: Sequence[str], treatment: Treatment) -> list[str]:
        seeds = [self._settings.seed + i for i in range(len(prompts))]
        config = GenerationConfig(max_new_tokens=self._settings.new_tokens)
        texts = generate_many(self._bundle, list(prompts), config, treatment.plan, seeds=seeds, edits=treatment.edits,
                              record_hidden=False)  # fmt: skip
        return [one.text for one in texts]


def push(vector: np.ndarray, layer: int, n_layers: int) -> LayerEdit:
    """The edit that adds a vector (D,) to the output of a block at every position.

    It names all layers, so that edits of different blocks share the decoder's programs.
    """
    return LayerEdit(push=jnp.asarray(vector)[None, None, None, :], layers=jnp.arange(n_layers) == layer)


def choose(tuning: Sequence[ArmFigures], settings: CaseSettings) -> int:
    """The condition with the largest effect among those within the limit of damage, or the one with the least damage;
    the weaker strength among equals."""
    sign = -1.0 if settings.suppress else 1.0
    within = [i for i, one in enumerate(tuning) if one.damage <= settings.limit]
    if not within:
        return int(np.argmin([one.damage for one in tuning]))
    return max(within, key=lambda i: (sign * tuning[i].found.mean, -(tuning[i].strength or 0.0), -i))
