"""The texts of the steering evaluation: conditions, prompts, seeds and steering.

There are two arms. *Amplify*: prompts without the concept, continued without steering, without steering and with
another seed (how much texts differ by chance), after the concept's description, after its lifted tokens, with its
direction injected, and with a random direction of equal norm. *Suppress*: prompts that end in the middle of a chunk
with the concept, in whose original continuation the probe finds it, continued without steering, with another seed, with
the preset that unlearns the concept, and with random vectors of equal norms.

A sample has the same prompt and seed under all conditions except "another seed", so that conditions are compared in
pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import jax
import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.errors import UserError
from steerling_jax.infer.steer_eval.judge import Judge
from steerling_jax.infer.steer_eval.prompts import WITHOUT_TOKENS, HeldOutChunks, Opening
from steerling_jax.infer.steer_eval.random_control import random_control
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.config import SteeringConfig
from steerling_jax.steering.plan import SteeringPlan, prepare_steering
from steerling_jax.steering.resolve import suppression
from steerling_jax.steering.strengths import PRESET_STRENGTHS, default_strength
from steerling_jax.tokenizer import IdsOnlyTokenizer, Tokenizer

AMPLIFY, SUPPRESS = "amplify", "suppress"
NOTHING, AGAIN = "nothing", "nothing, another seed"
DESCRIBED, WORDS = "prompt: description", "prompt: lifted words"
CONCEPT, RANDOM, SUPPRESSED = "concept", "random direction", "suppressed"
# At the strength that a name alone has for this concept and model, see `steering.strengths`.
OWN, OWN_RANDOM = "concept, its own strength", "random direction, that strength"
PROMPT_WORDS = 8  # lifted tokens put before a prompt
# Folded into a text's seed for the random direction. Sampling folds in positions, which are smaller, so that the two
# random streams are different.
_DIRECTION_STREAM = 2**31 - 1


@dataclass(frozen=True)
class SteerEvalSettings:
    """strengths: of the injection, in logits of its best-aligned token. samples: prompts for each concept and arm.
    suppress_strengths: of suppression, beside the published preset. own: also at each concept's own strengths."""

    strengths: tuple[float, ...]
    samples: int
    new_tokens: int
    seed: int
    suppress_strengths: tuple[float, ...] = ()
    own: bool = False


class Condition(NamedTuple):
    """How texts are generated. strength: of an injection; None where there is none, or only one."""

    arm: str
    name: str
    strength: float | None = None


@dataclass(frozen=True)
class TextSpec:
    """A text to generate. seed: of sampling and of the random direction. before: ids to put before the opening."""

    condition: Condition
    concept: int
    sample: int
    opening: Opening
    seed: int
    before: tuple[int, ...] = ()

    def prompt(self, config: ModelConfig, canvas: int) -> list[int]:
        """The opening, with `before` as a chunk in front of it (cut where the context has no room for it).

        canvas: positions to fill after it.
        """
        ids = list(self.opening.ids)
        before = self.before[: max(config.block_size - canvas - len(ids) - 1, 0)]
        if not before:
            return ids
        start = int(ids[0] == config.bos_token_id)
        return [*ids[:start], *before, config.endofchunk_token_id, *ids[start:]]

    def plan(self, bundle: Bundle) -> SteeringPlan | None:
        """The steering of the text; a sample's random direction is the same at every strength."""
        arm, name, strength = self.condition
        if name not in (CONCEPT, SUPPRESSED, RANDOM, OWN, OWN_RANDOM):
            return None
        if name in (OWN, OWN_RANDOM):
            strength = default_strength(bundle, arm, (self.concept,))
        steering = (
            suppression((self.concept,), (self.concept,), PRESET_STRENGTHS[SUPPRESS] if strength is None else strength)
            if arm == SUPPRESS
            else SteeringConfig((self.concept,), mai_lm_target=strength or 0.0)
        )
        plan = prepare_steering(bundle.params, steering, config=bundle.config, compute=bundle.compute)
        if name not in (RANDOM, OWN_RANDOM):
            return plan
        key = jax.random.fold_in(jax.random.key(self.seed), _DIRECTION_STREAM)
        return random_control(plan, key, params=bundle.params, compute=bundle.compute)


def make_text_specs(
    tokenizer: Tokenizer,
    held: HeldOutChunks,
    judge: Judge,
    chosen: Sequence[int],
    descriptions: Mapping[int, str],
    settings: SteerEvalSettings,
) -> list[TextSpec]:
    """All texts to generate. chosen: concept ids. descriptions: by concept id.

    The condition with descriptions is left out for tokenizers without text. Raises `UserError` where no concept can be
    amplified.
    """
    specs = [
        spec for concept in chosen for spec in _specs(tokenizer, held, judge, concept, descriptions[concept], settings)
    ]
    if not any(spec.condition.arm == AMPLIFY for spec in specs):
        name = next(entry["name"] for entry in held.store.concepts if entry["id"] == chosen[0])
        raise UserError(
            f"No held-out document without {name!r} has {WITHOUT_TOKENS + settings.new_tokens} tokens for a prompt and "
            "its continuation: name other --concepts, use fewer --max-new-tokens, or make a larger corpus."
        )
    return specs


def _specs(
    tokenizer: Tokenizer, held: HeldOutChunks, judge: Judge, concept: int, description: str, settings: SteerEvalSettings
) -> Iterator[TextSpec]:
    words = tuple(judge.lifted[judge.column(concept)].tokens[:PROMPT_WORDS].tolist())
    unsteered = [(NOTHING, ()), (AGAIN, ()), (WORDS, words)]
    if not isinstance(tokenizer, IdsOnlyTokenizer):
        unsteered.append((DESCRIBED, tuple(tokenizer.encode(description))))
    amplify = [(Condition(AMPLIFY, name), before) for name, before in unsteered]
    amplify += [(Condition(AMPLIFY, name, s), ()) for name in (CONCEPT, RANDOM) for s in settings.strengths]
    suppress = [(Condition(SUPPRESS, name), ()) for name in (NOTHING, AGAIN, SUPPRESSED, RANDOM)]
    suppress += [(Condition(SUPPRESS, SUPPRESSED, s), ()) for s in settings.suppress_strengths]
    if settings.own:
        for arm, conditions in ((AMPLIFY, amplify), (SUPPRESS, suppress)):
            conditions += [(Condition(arm, name), ()) for name in (OWN, OWN_RANDOM)]
    draw = (concept, settings.new_tokens, (settings.seed, concept))
    present = (opening for opening in held.having(*draw) if judge.finds(concept, opening.continuation))
    for openings, conditions in ((held.without(*draw), amplify), (present, suppress)):
        for sample, opening in enumerate(islice(openings, settings.samples)):
            for condition, before in conditions:
                numbers = (settings.seed, concept, sample, int(condition.name == AGAIN))
                seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
                yield TextSpec(condition, concept, sample, opening, seed, before)
