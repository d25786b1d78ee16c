"""Every text that the steering evaluation asks for: the conditions, and what is done under each.

Two arms. Amplify: prompts that lack the concept, continued with nothing done, with nothing done and another seed (how
much texts differ by chance), after the concept's description, after its lifted words, with its direction injected, and
with a random direction of equal norm. Suppress: prompts up to the middle of chunks that have the concept, and in whose
own continuation the probe finds it, continued with nothing done, with another seed, with the preset that unlearns, and
with a random vector of equal norms in its place.

A sample has the same prompt and seed under all conditions (but "another seed").
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
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.config import SteeringConfig
from steerling_jax.steering.controls import random_control
from steerling_jax.steering.plan import SteeringPlan, prepare_steering
from steerling_jax.tokenizer import IdsOnlyTokenizer, Tokenizer

AMPLIFY, SUPPRESS = "amplify", "suppress"
NOTHING, AGAIN = "nothing", "nothing, another seed"
DESCRIBED, WORDS = "prompt: description", "prompt: lifted words"
CONCEPT, RANDOM, SUPPRESSED = "concept", "random direction", "suppressed"
PROMPT_WORDS = 8  # lifted tokens put before a prompt
_DIRECTION = 2**31 - 1  # folded into a seed for the random direction; draws fold in positions, which are smaller


@dataclass(frozen=True)
class SteerEvalSettings:
    """strengths: of the injection, in logits of its best-aligned token. samples: prompts a concept, in each arm."""

    strengths: tuple[float, ...]
    samples: int
    new_tokens: int
    seed: int


class Condition(NamedTuple):
    arm: str
    name: str
    strength: float | None = None


@dataclass(frozen=True)
class TextSpec:
    """A text to write. seed: of the draws and of the random direction. before: ids to put before the opening."""

    condition: Condition
    concept: int
    sample: int
    opening: Opening
    seed: int
    before: tuple[int, ...] = ()

    def prompt(self, config: ModelConfig, new_tokens: int) -> list[int]:
        """The opening, after what is put before it as a chunk of its own (cut where the context has no room)."""
        ids = list(self.opening.ids)
        before = self.before[: max(config.block_size - new_tokens - len(ids) - 1, 0)]
        if not before:
            return ids
        start = int(ids[0] == config.bos_token_id)
        return [*ids[:start], *before, config.endofchunk_token_id, *ids[start:]]

    def plan(self, bundle: Bundle) -> SteeringPlan | None:
        """How the text is steered; a sample's random direction is the same at every strength."""
        arm, name, strength = self.condition
        if name not in (CONCEPT, SUPPRESSED, RANDOM):
            return None
        steering = (
            SteeringConfig.injection_relu(self.concept)
            if arm == SUPPRESS
            else SteeringConfig((self.concept,), mai_lm_target=strength or 0.0)
        )
        plan = prepare_steering(bundle.params, steering, config=bundle.config, compute=bundle.compute)
        if name != RANDOM:
            return plan
        key = jax.random.fold_in(jax.random.key(self.seed), _DIRECTION)
        return random_control(plan, key, params=bundle.params, compute=bundle.compute)


def jobs_of(
    tokenizer: Tokenizer,
    held: HeldOutChunks,
    judge: Judge,
    chosen: Sequence[int],
    descriptions: Mapping[int, str],
    settings: SteerEvalSettings,
) -> list[TextSpec]:
    """Every text to write. descriptions: of the concepts, by id; left out where the tokenizer cannot read text. Raises
    `UserError` where no concept can be amplified."""
    jobs = [
        job for concept in chosen for job in _jobs(tokenizer, held, judge, concept, descriptions[concept], settings)
    ]
    if not any(job.condition.arm == AMPLIFY for job in jobs):
        name = next(entry["name"] for entry in held.store.concepts if entry["id"] == chosen[0])
        raise UserError(
            f"No held-out document without {name!r} has {WITHOUT_TOKENS + settings.new_tokens} tokens, to begin a text "
            "with: name other --concepts, give fewer --max-new-tokens, or make a larger corpus."
        )
    return jobs


def _jobs(
    tokenizer: Tokenizer, held: HeldOutChunks, judge: Judge, concept: int, description: str, settings: SteerEvalSettings
) -> Iterator[TextSpec]:
    words = tuple(judge.lifted[judge.column(concept)].tokens[:PROMPT_WORDS].tolist())
    unsteered = [(NOTHING, ()), (AGAIN, ()), (WORDS, words)]
    if not isinstance(tokenizer, IdsOnlyTokenizer):
        unsteered.append((DESCRIBED, tuple(tokenizer.encode(description))))
    amplify = [(Condition(AMPLIFY, name), before) for name, before in unsteered]
    amplify += [(Condition(AMPLIFY, name, s), ()) for name in (CONCEPT, RANDOM) for s in settings.strengths]
    suppress = [(Condition(SUPPRESS, name), ()) for name in (NOTHING, AGAIN, SUPPRESSED, RANDOM)]
    draw = (concept, settings.new_tokens, (settings.seed, concept))
    present = (opening for opening in held.having(*draw) if judge.finds(concept, opening.goes_on))
    for openings, tasks in ((held.without(*draw), amplify), (present, suppress)):
        for sample, opening in enumerate(islice(openings, settings.samples)):
            for condition, before in tasks:
                numbers = (settings.seed, concept, sample, int(condition.name == AGAIN))
                seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
                yield TextSpec(condition, concept, sample, opening, seed, before)
