"""Does steering do what it says? The texts of `jobs.py`, written, judged and read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.concepts.lift import set_log_probability
from steerling_jax.decoding.generation import Generation, Prompt, generate_many, text_ids
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.evaluation.likelihood import log_likelihood
from steerling_jax.evaluation.text_metrics import distinct, repeated
from steerling_jax.infer.steer_eval.jobs import NOTHING, SteerEvalSettings, TextSpec
from steerling_jax.infer.steer_eval.judge import Judge
from steerling_jax.progress import Progress, no_progress

MASKINGS = 16  # of each text, for its likelihood
# Every figure, and what it says.
FIGURES = {
    "lifted_gain": "log-probability of the concept's lifted tokens, nats more than with nothing done",
    "found": "share of texts in which the probe finds the concept",
    "score_gain": "the probe's score of the concept, log-odds more than with nothing done",
    "still_found": "share found, of those found with nothing done",
    "own_change": "change of the scores of the prompt's own concepts, unrelated ones only",
    "others_change": "size of the change of the scores of all unrelated concepts",
    "nats_per_token": "likelihood bound of the text for the unsteered model",
    "repeated_3": "share of 3-grams that occur more than once in the text",
    "distinct_1": "different tokens over all",
    "distinct_2": "different 2-grams over all",
}

Write = Callable[[Bundle, Iterable[Prompt]], Iterator[tuple[int, Generation]]]
_with_hidden = partial(generate_many, record_hidden=True)


@dataclass(frozen=True)
class Written:
    """ids of a text; lifted: mean over its positions of the log-probability, as each was written, that the token is one
    of the concept's lifted ones."""

    job: TextSpec
    ids: tuple[int, ...]
    lifted: float


@dataclass(frozen=True)
class Text:
    """figures: those of `FIGURES`, NaN where there is none."""

    job: TextSpec
    ids: tuple[int, ...]
    figures: Mapping[str, float]


def write_texts(
    bundle: Bundle,
    judge: Judge,
    jobs: Sequence[TextSpec],
    settings: SteerEvalSettings,
    *,
    write: Write = _with_hidden,
    progress: Progress = no_progress,
) -> list[Written]:
    """The jobs' texts, in their order."""
    suppression: dict[int, np.ndarray] = {}

    def prompts() -> Iterator[Prompt]:
        for number, job in enumerate(jobs):
            plan = job.plan(bundle)
            suppression[number] = np.zeros(bundle.config.vocab_size) if plan is None else np.asarray(plan.suppression)
            generation = GenerationConfig(max_new_tokens=settings.new_tokens, seed=job.seed)
            yield Prompt(job.prompt(bundle.config, settings.new_tokens), generation, plan)

    found: dict[int, Written] = {}
    for number, made in write(bundle, prompts()):
        lifted = judge.lifted[judge.column(jobs[number].concept)].tokens
        ids = text_ids(made.tokens[made.trace.prompt_length :], bundle.config)
        mean = _mean_log_probability(bundle, made, lifted, suppression.pop(number))
        found[number] = Written(jobs[number], tuple(ids), mean)
        progress("writing", len(found), len(jobs))
    return [found[i] for i in range(len(jobs))]


def _mean_log_probability(bundle: Bundle, made: Generation, tokens: np.ndarray, suppression: np.ndarray) -> float:
    """Of drawing one of `tokens`, over the positions, each as it was when it was written."""
    hidden = made.trace.hidden
    assert hidden is not None, "a trace with hidden rows"
    members = np.zeros(bundle.config.vocab_size, bool)
    members[tokens] = True
    length = len(made.tokens) - made.trace.prompt_length
    rows = np.pad(hidden, ((0, length - len(hidden)), (0, 0)))  # one program serves texts that ended early too
    found = set_log_probability(
        bundle.params, rows, members, suppression.astype(np.float32), config=bundle.config, compute=bundle.compute
    )
    return float(np.mean(np.asarray(found)[: len(hidden)]))


def measure(bundle: Bundle, judge: Judge, texts: Sequence[Written], progress: Progress = no_progress) -> list[Text]:
    """The texts with their figures; what changed is measured from the text of the same sample with nothing done."""
    scores = judge.score(judge.bags([text.ids for text in texts]))
    base = {_sample(t): i for i, t in enumerate(texts) if t.job.condition.name == NOTHING}
    measured = []
    for i, text in enumerate(texts):
        j = base[_sample(text)]
        figures = _judged(judge, text, scores[i], scores[j]) | {"lifted_gain": text.lifted - texts[j].lifted}
        measured.append(Text(text.job, text.ids, figures | _quality(bundle, text)))
        progress("reading", i + 1, len(texts))
    return measured


def _sample(text: Written) -> tuple[str, int, int]:
    return text.job.condition.arm, text.job.concept, text.job.sample


def _judged(judge: Judge, text: Written, score: np.ndarray, before: np.ndarray) -> dict[str, float]:
    """Scores (k,) of a text and of its twin with nothing done, as figures."""
    c = judge.column(text.job.concept)
    others = judge.unrelated[c]
    own = others & np.isin(judge.concepts, text.job.opening.own)
    found, was_found = score[c] > judge.threshold[c], before[c] > judge.threshold[c]
    return {
        "found": float(found),
        "still_found": float(found) if was_found else math.nan,
        "score_gain": float(score[c] - before[c]),
        "own_change": _mean((score - before)[own]),
        "others_change": _mean(np.abs(score - before)[others]),
    }


def _quality(bundle: Bundle, text: Written) -> dict[str, float]:
    """The text as the unsteered model reads it after the bare opening, and its repetition."""
    ids = list(text.ids)
    nats = -log_likelihood(bundle, text.job.opening.ids, ids, samples=MASKINGS) / len(ids) if ids else math.nan
    counts = {"repeated_3": repeated(ids, 3), "distinct_1": distinct(ids, 1), "distinct_2": distinct(ids, 2)}
    return {"nats_per_token": nats} | {name: math.nan if v is None else v for name, v in counts.items()}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan
