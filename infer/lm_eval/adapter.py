"""A model for EleutherAI's lm-evaluation-harness: scores by the likelihood bound of a Steerling model, or the exact
likelihood of an autoregressive one; texts by decoding.

Importing this module registers the model "steerling", for `lm_eval.simple_evaluate(model="steerling", model_args={…})`.
`steerling lm-eval` runs tasks with the published settings. Source of both: the evaluation of the published package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

import steerling_jax as sj
from steerling_jax.cli.console import progress_bar
from steerling_jax.decoding.generation import Prompt, stream_many
from steerling_jax.errors import require
from steerling_jax.evaluation.exact_likelihood import exact_scores, first_ids
from steerling_jax.evaluation.likelihood import Boundary, score_pairs, split
from steerling_jax.infer.text_stream import StopMatcher

_PREFIX_CACHE_BYTES = 256 << 20
# The published evaluation replaces typographic quotes, dashes and ellipses by their ASCII forms.
_ASCII = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."})
Ids = list[int]


@dataclass(frozen=True)
class TaskSettings:
    """Settings of a task. num_fewshot: None for the task's own; the others as in `SteerlingLM`."""

    num_fewshot: int | None = None
    samples: int = 128
    cfg_scale: float = 0.0
    max_gen_toks: int | None = None
    steps: int | None = None


# `TASK_DEFAULTS` of the published package (steerling 0.2.0, configs/evaluation.py).
PUBLISHED = {
    "hellaswag": TaskSettings(num_fewshot=0, cfg_scale=1.0),
    "arc_challenge": TaskSettings(num_fewshot=0, cfg_scale=1.0),
    "winogrande": TaskSettings(num_fewshot=5, cfg_scale=1.5),
    "piqa": TaskSettings(num_fewshot=0, cfg_scale=0.5),
    "mmlu": TaskSettings(num_fewshot=5, samples=1),
    "gsm8k": TaskSettings(num_fewshot=4, max_gen_toks=256, steps=256),
}


class SteerlingLM(LM):
    """The harness' interface to a model. Raises `UserError` for invalid settings.

    model: a bundle, or what `sj.load` takes, with dtype. samples, cfg_scale: maskings and guidance of the likelihood.
    seed: of maskings and of texts. batch_size: maskings scored, or texts generated, at the same time. max_length:
    tokens of context and continuation, None for the model's context; a longer context is cut at its beginning.
    max_gen_toks: tokens to generate if the task does not set it, None for 1,024 or half of `max_length`; rounded up to
    whole blocks. steps: denoising steps of a text, None for one a token. sampling: "entropy", as published, which
    ignores the task's temperature; or "task" for the task's temperature, without a repetition penalty. boundary: which
    tokens of a continuation are scored where one spans the context's end, see `evaluation.likelihood.split`.

    An autoregressive model has no use for samples, cfg_scale and steps, and always samples as the task says.
    """

    def __init__(
        self,
        model: str | sj.Bundle | None = None,
        *,
        samples: int = 128,
        cfg_scale: float = 0.0,
        seed: int = 0,
        batch_size: int = 16,
        max_length: int | None = None,
        max_gen_toks: int | None = None,
        steps: int | None = None,
        sampling: Literal["entropy", "task"] = "entropy",
        dtype: str | None = "float32",
        boundary: Boundary = "joint",
    ):
        super().__init__()
        self.bundle = model if isinstance(model, sj.Bundle) else sj.load(model, dtype=dtype)
        self.diffusion = isinstance(self.bundle.config, sj.ModelConfig)
        context = self.bundle.config.context_length
        self.max_length = context if max_length is None else max_length
        require(
            0 < self.max_length <= context,
            f"max_length is {max_length}, but it must be from 1 to the model's context, {context}.",
        )
        require(sampling in ("entropy", "task"), f"sampling is {sampling!r}, but it must be 'entropy' or 'task'.")
        self.samples, self.cfg_scale, self.seed, self.batch_size = samples, cfg_scale, seed, batch_size
        self.max_gen_toks = min(1024, self.max_length // 2) if max_gen_toks is None else max_gen_toks
        self.steps, self.sampling = steps, sampling if self.diffusion else "task"
        self.boundary: Boundary = boundary

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The likelihood of each continuation, and whether it is the greedy one, which a diffusion model does not know:
        there it is always False."""
        pairs = [self._pair(*request.arguments) for request in requests]
        results = [(0.0, False)] * len(pairs)
        for number, value, greedy in self._scores(pairs):
            results[number] = (value, greedy)
            self.cache_hook.add_partial("loglikelihood", requests[number].arguments, results[number])
        return results

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The likelihood bound of whole texts, each token scored once.

        The first window of a long text has `max_length` tokens and no context; each further one scores half as many
        tokens, in the context of those before them. (The published evaluation scores the last `max_length` tokens
        only.)
        """
        windows = [
            (number, pair)
            for number, request in enumerate(requests)
            for pair in rolling_windows(self._encode(request.arguments[0]), self.max_length)
        ]
        totals = [0.0] * len(requests)
        for number, value, _ in self._scores([pair for _, pair in windows]):
            totals[windows[number][0]] += value
        for request, value in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.arguments, value)
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Texts, each cut before the first of the task's stop texts, without white space at the end."""
        texts = [""] * len(requests)
        prompts = (self._prompt(number, *request.arguments) for number, request in enumerate(requests))
        results = stream_many(self.bundle, prompts, rows=self.batch_size, prefix_cache_bytes=_PREFIX_CACHE_BYTES)
        with progress_bar(unit="texts") as bar:
            task = bar.add_task("writing", total=len(requests))
            for number, generation in results:
                request = requests[number]
                texts[number] = cut(generation.text, stop_texts(request.arguments[1]))
                self.cache_hook.add_partial("generate_until", request.arguments, texts[number])
                bar.advance(task)
        return texts

    def _scores(self, pairs: list[tuple[Ids, Ids]]) -> Iterator[tuple[int, float, bool]]:
        """(number of the pair, log-likelihood, whether the continuation is the greedy one), as they are done."""
        with progress_bar(unit="texts") as bar:
            task = bar.add_task("scoring", total=len(pairs))
            for scored in self._bounds(pairs) if self.diffusion else self._exact(pairs):
                yield scored
                bar.advance(task)

    def _bounds(self, pairs: list[tuple[Ids, Ids]]) -> Iterator[tuple[int, float, bool]]:
        settings = {name: getattr(self, name) for name in ("samples", "seed", "batch_size", "cfg_scale")}
        yield from ((number, value, False) for number, value in score_pairs(self.bundle, pairs, **settings))

    def _exact(self, pairs: list[tuple[Ids, Ids]]) -> Iterator[tuple[int, float, bool]]:
        require(self.cfg_scale == 0, f"cfg_scale is {self.cfg_scale}, but guidance needs a diffusion model.")
        for one in exact_scores(self.bundle, pairs, batch_size=self.batch_size):
            yield one.number, one.log_likelihood, one.greedy

    def _encode(self, text: str) -> Ids:
        return self.bundle.tokenizer.encode(text.translate(_ASCII)) if text else []

    def _pair(self, context: str, continuation: str) -> tuple[Ids, Ids]:
        """Ids of both; the context is cut at its beginning if they do not fit."""
        before, after = split(
            self.bundle, context.translate(_ASCII), continuation.translate(_ASCII), boundary=self.boundary
        )
        room = self.max_length - len(after)
        require(
            room >= 0,
            f"A continuation has {len(after)} tokens, more than the model's context of {self.max_length}: this task "
            "cannot be scored with this model.",
        )
        return before[max(0, len(before) - room) :], after

    def _prompt(self, number: int, context: str, options: Mapping[str, Any]) -> Prompt:
        """The prompt for a task's context, which is cut at its beginning if it and the text do not fit."""
        block, context_size = self.bundle.config.diff_block_size if self.diffusion else 1, self.max_length
        max_gen_toks = int(options.get("max_gen_toks", self.max_gen_toks))
        length = -(-max_gen_toks // block) * block
        require(
            length < context_size,
            f"max_gen_toks is {max_gen_toks}, which leaves no room for a prompt in a context of {context_size}: give "
            "less.",
        )
        prefix = list(self.bundle.tokenizer.prefix)
        room = context_size - length - len(prefix)
        prompt = [*prefix, *self._encode(context)[-room:]] or first_ids(self.bundle.config)
        # Stop texts of one token end decoding early, which saves steps; `cut` applies all of them to the text.
        encoded = (self._encode(stop) for stop in stop_texts(options))
        stops = tuple(ids[0] for ids in encoded if len(ids) == 1)
        config = sj.GenerationConfig(
            max_new_tokens=max_gen_toks,
            steps=self.steps,
            seed=(self.seed + number) % 2**32,
            cfg_scale=self.cfg_scale,
            stop_tokens=stops or None,
            **self._sampling(options),
        )
        return Prompt(prompt, config)

    def _sampling(self, options: Mapping[str, Any]) -> dict[str, Any]:
        if self.sampling == "entropy":
            return {}
        # Greedy unless the task samples, as the harness does with other models.
        temperature = float(options.get("temperature", 1.0)) if options.get("do_sample", False) else 0.0
        return {
            "use_entropy_sampling": False,
            "repetition_penalty": 1.0,
            "temperature": temperature,
            "top_p": float(options.get("top_p", 1.0)),
        }


register_model("steerling")(SteerlingLM)


def rolling_windows(ids: Ids, max_length: int) -> Iterator[tuple[Ids, Ids]]:
    """Pairs (context, tokens to score) of at most `max_length` tokens together, in which each token is scored once."""
    yield [], ids[:max_length]
    stride = max(1, max_length // 2)
    for start in range(max_length, len(ids), stride):
        end = min(start + stride, len(ids))
        yield ids[max(0, end - max_length) : start], ids[start:end]


def stop_texts(options: Mapping[str, Any]) -> list[str]:
    """The task's stop texts, one or several, without empty ones."""
    until = options.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]


def cut(text: str, stops: list[str]) -> str:
    """`text` up to the first stop text that is complete, without white space at the end."""
    matcher = StopMatcher(stops)
    before, stopped = matcher.push(text)
    return (before if stopped else before + matcher.flush()).rstrip()
