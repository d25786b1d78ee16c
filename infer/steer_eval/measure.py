"""Generates the texts of the steering evaluation and measures them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.concepts.lift import set_log_probability
from steerling_jax.decoding.generation import Generation, Prompt, stream_many
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.text_ids import text_ids
from steerling_jax.evaluation.likelihood import log_likelihood
from steerling_jax.evaluation.text_metrics import distinct, repeated
from steerling_jax.infer.steer_eval.judge import Judge
from steerling_jax.infer.steer_eval.text_specs import NOTHING, SteerEvalSettings, TextSpec
from steerling_jax.progress import Progress, no_progress

MASKINGS = 16  # of each text, for its likelihood
# Each figure with its description.
FIGURES = {
    "lifted_gain": "log-probability of the concept's lifted tokens, minus that without steering, in nats",
    "found": "share of texts in which the probe finds the concept",
    "score_gain": "the probe's score of the concept, minus that without steering, in log-odds",
    "still_found": "share found, of those found without steering",
    "own_change": "mean change of the scores of the prompt's own concepts, without related ones",
    "others_change": "mean absolute change of the scores of all unrelated concepts",
    "nats_per_token": "negative likelihood bound of the text under the unsteered model",
    "repeated_3": "share of 3-grams that occur more than once in the text",
    "distinct_1": "different tokens, as a share of all",
    "distinct_2": "different 2-grams, as a share of all",
}

GenerateMany = Callable[[Bundle, Iterable[Prompt]], Iterator[tuple[int, Generation]]]
_generate_with_hidden = partial(stream_many, record_hidden=True)


@dataclass(frozen=True)
class GeneratedText:
    """A text before it is measured. lifted: the log-probability that a token is one of the concept's lifted ones, at
    the step at which it was committed, averaged over the positions."""

    spec: TextSpec
    ids: tuple[int, ...]
    lifted: float


@dataclass(frozen=True)
class MeasuredText:
    """A text with its `FIGURES`; NaN where a figure is not defined."""

    spec: TextSpec
    ids: tuple[int, ...]
    figures: Mapping[str, float]


def generate_texts(
    bundle: Bundle,
    judge: Judge,
    specs: Sequence[TextSpec],
    settings: SteerEvalSettings,
    *,
    generate: GenerateMany = _generate_with_hidden,
    progress: Progress = no_progress,
) -> list[GeneratedText]:
    """The texts of `specs`, in their order, each of at most `settings.new_tokens` tokens."""
    suppression: dict[int, np.ndarray] = {}

    def prompts() -> Iterator[Prompt]:
        for number, spec in enumerate(specs):
            plan = spec.plan(bundle)
            suppression[number] = np.zeros(bundle.config.vocab_size) if plan is None else np.asarray(plan.suppression)
            config = GenerationConfig(max_new_tokens=settings.new_tokens, seed=spec.seed)
            yield Prompt(spec.prompt(bundle.config, config.canvas_length(bundle.config)), config, plan)

    texts: dict[int, GeneratedText] = {}
    for number, generation in generate(bundle, prompts()):
        lifted = judge.lifted[judge.column(specs[number].concept)].tokens
        ids = text_ids(generation.tokens[generation.trace.prompt_length :], bundle.config)[: settings.new_tokens]
        mean = _mean_log_probability(bundle, generation, lifted, suppression.pop(number), settings.new_tokens)
        texts[number] = GeneratedText(specs[number], tuple(ids), mean)
        progress("writing", len(texts), len(specs))
    return [texts[i] for i in range(len(specs))]


def _mean_log_probability(
    bundle: Bundle, generation: Generation, tokens: np.ndarray, suppression: np.ndarray, new_tokens: int
) -> float:
    """Mean over the first `new_tokens` positions of the log-probability of `tokens` together, at the step that
    committed the position."""
    hidden = generation.trace.hidden
    assert hidden is not None, "a trace with hidden rows"
    members = np.zeros(bundle.config.vocab_size, bool)
    members[tokens] = True
    length = len(generation.tokens) - generation.trace.prompt_length
    # Padded to the canvas, so that texts that ended early do not need a compiled program each.
    rows = np.pad(hidden, ((0, length - len(hidden)), (0, 0)))
    values = set_log_probability(
        bundle.params, rows, members, suppression.astype(np.float32), config=bundle.config, compute=bundle.compute
    )
    inside = [position < generation.trace.prompt_length + new_tokens for _, position, *_ in generation.trace.flat()]
    return float(np.mean(np.asarray(values)[: len(hidden)][inside]))


def measure(
    bundle: Bundle, judge: Judge, texts: Sequence[GeneratedText], progress: Progress = no_progress
) -> list[MeasuredText]:
    """The texts with their figures. Changes are relative to the unsteered text of the same sample."""
    scores = judge.score(judge.bags([text.ids for text in texts]))
    base = {_sample(t): i for i, t in enumerate(texts) if t.spec.condition.name == NOTHING}
    measured = []
    for i, text in enumerate(texts):
        j = base[_sample(text)]
        figures = _score_figures(judge, text, scores[i], scores[j]) | {"lifted_gain": text.lifted - texts[j].lifted}
        measured.append(MeasuredText(text.spec, text.ids, figures | _quality_figures(bundle, text)))
        progress("reading", i + 1, len(texts))
    return measured


def _sample(text: GeneratedText) -> tuple[str, int, int]:
    return text.spec.condition.arm, text.spec.concept, text.spec.sample


def _score_figures(judge: Judge, text: GeneratedText, score: np.ndarray, before: np.ndarray) -> dict[str, float]:
    """Figures from the probe's scores (k,) of a text and of the unsteered text of its sample."""
    c = judge.column(text.spec.concept)
    others = judge.unrelated[c]
    own = others & np.isin(judge.concepts, text.spec.opening.own)
    found, was_found = score[c] > judge.threshold[c], before[c] > judge.threshold[c]
    return {
        "found": float(found),
        "still_found": float(found) if was_found else math.nan,
        "score_gain": float(score[c] - before[c]),
        "own_change": _mean((score - before)[own]),
        "others_change": _mean(np.abs(score - before)[others]),
    }


def _quality_figures(bundle: Bundle, text: GeneratedText) -> dict[str, float]:
    """The text's likelihood under the unsteered model, after the opening alone, and its repetition."""
    ids = list(text.ids)
    nats = -log_likelihood(bundle, text.spec.opening.ids, ids, samples=MASKINGS) / len(ids) if ids else math.nan
    counts = {"repeated_3": repeated(ids, 3), "distinct_1": distinct(ids, 1), "distinct_2": distinct(ids, 2)}
    return {"nats_per_token": nats} | {name: math.nan if v is None else v for name, v in counts.items()}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan
