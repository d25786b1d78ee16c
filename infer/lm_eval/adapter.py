"""A Steerling model for EleutherAI's lm-evaluation-harness: scores by the likelihood bound, texts by decoding.

Importing this registers the model "steerling", for `lm_eval.simple_evaluate(model="steerling", model_args={…})`.
`steerling lm-eval` runs tasks with the published settings. Source of both: the published package's evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

import steerling_jax as sj
from steerling_jax.cli.console import progress
from steerling_jax.decoding.generation import Prompt, generate_many
from steerling_jax.errors import require
from steerling_jax.evaluation.likelihood import score_pairs, split
from steerling_jax.infer.text_stream import StopTexts

_PREFIX_BYTES = 256 << 20
# The published evaluation reads typographic quotes, dashes and dots as their ASCII forms.
_ASCII = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."})
Ids = list[int]


@dataclass(frozen=True)
class TaskSettings:
    """How a task is run. num_fewshot: None for what the task says; the others as in `SteerlingLM`."""

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
    """model: what `sj.load` takes, as does dtype, or a bundle.

    samples, cfg_scale: of the likelihood. max_gen_toks: where the task does not say, None for 1,024 or half of
    `max_length`; rounded up to whole blocks. steps: None for one a token. max_length: of context and continuation, None
    for the model's context; a longer context loses its beginning. sampling: "entropy" as published, whatever
    temperature the task asks for; "task" for the task's temperature, with no repetition penalty. seed: of maskings and
    of texts. batch_size: maskings scored, or texts written, at once.
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
    ):
        super().__init__()
        self.bundle = model if isinstance(model, sj.Bundle) else sj.load(model, dtype=dtype)
        context = self.bundle.config.block_size
        self.max_length = context if max_length is None else max_length
        require(
            0 < self.max_length <= context,
            f"max_length is {max_length}, but it must be from 1 to the model's context, {context}.",
        )
        require(sampling in ("entropy", "task"), f"sampling is {sampling!r}, but it must be 'entropy' or 'task'.")
        self.samples, self.cfg_scale, self.seed, self.batch_size = samples, cfg_scale, seed, batch_size
        self.max_gen_toks = min(1024, self.max_length // 2) if max_gen_toks is None else max_gen_toks
        self.steps, self.sampling = steps, sampling

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The likelihood bound of each continuation. Whether it is the greedy one is not known: always False."""
        pairs = [self._pair(*request.arguments) for request in requests]
        found = [(0.0, False)] * len(pairs)
        for number, value in self._scores(pairs, "scoring"):
            found[number] = (value, False)
            self.cache_hook.add_partial("loglikelihood", requests[number].arguments, found[number])
        return found

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The likelihood bound of whole texts, each token scored once.

        The first window of a long text is `max_length` tokens after nothing; each further one scores half as many,
        after the tokens before them. (The published evaluation scores the last `max_length` tokens only.)
        """
        windows = [
            (number, pair)
            for number, request in enumerate(requests)
            for pair in rolling_windows(self._encode(request.arguments[0]), self.max_length)
        ]
        found = [0.0] * len(requests)
        for number, value in self._scores([pair for _, pair in windows], "scoring"):
            found[windows[number][0]] += value
        for request, value in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.arguments, value)
        return found

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Texts, each cut before the first of the task's stop texts, without white space at the end."""
        found = [""] * len(requests)
        prompts = (self._prompt(number, *request.arguments) for number, request in enumerate(requests))
        many = generate_many(self.bundle, prompts, rows=self.batch_size, prefix_cache_bytes=_PREFIX_BYTES)
        with progress(unit="texts") as bar:
            task = bar.add_task("writing", total=len(requests))
            for number, generation in many:
                request = requests[number]
                found[number] = cut(generation.text, stop_texts(request.arguments[1]))
                self.cache_hook.add_partial("generate_until", request.arguments, found[number])
                bar.advance(task)
        return found

    def _scores(self, pairs: list[tuple[Ids, Ids]], label: str) -> Iterator[tuple[int, float]]:
        with progress(unit="texts") as bar:
            task = bar.add_task(label, total=len(pairs))
            for scored in score_pairs(
                self.bundle,
                pairs,
                samples=self.samples,
                seed=self.seed,
                batch_size=self.batch_size,
                cfg_scale=self.cfg_scale,
            ):
                yield scored
                bar.advance(task)

    def _encode(self, text: str) -> Ids:
        return self.bundle.tokenizer.encode(text.translate(_ASCII)) if text else []

    def _pair(self, context: str, continuation: str) -> tuple[Ids, Ids]:
        """Ids of both, the context's beginning cut off where they do not fit."""
        before, after = split(self.bundle, context.translate(_ASCII), continuation.translate(_ASCII))
        room = self.max_length - len(after)
        require(
            room >= 0,
            f"A continuation has {len(after)} tokens, more than the model's context of {self.max_length}: this task "
            "cannot be scored with this model.",
        )
        return before[max(0, len(before) - room) :], after

    def _prompt(self, number: int, context: str, options: Mapping[str, Any]) -> Prompt:
        """What to write after `context`; its beginning is cut off where text and context do not fit."""
        block, context_size = self.bundle.config.diff_block_size, self.max_length
        asked = int(options.get("max_gen_toks", self.max_gen_toks))
        wanted = -(-asked // block) * block
        require(
            wanted < context_size,
            f"max_gen_toks is {asked}, which leaves no room for a prompt in a context of {context_size}: give less.",
        )
        prompt = self._encode(context)[-(context_size - wanted) :] or [self.bundle.config.bos_token_id]
        encoded = (self._encode(stop) for stop in stop_texts(options))
        stops = tuple(ids[0] for ids in encoded if len(ids) == 1)  # they end a text early; all of them cut it
        config = sj.GenerationConfig(
            max_new_tokens=wanted,
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
        temperature = float(options.get("temperature", 1.0)) if options.get("do_sample", False) else 0.0
        return {
            "use_entropy_sampling": False, "repetition_penalty": 1.0, "temperature": temperature,
            "top_p": float(options.get("top_p", 1.0)),
        }  # fmt: skip


register_model("steerling")(SteerlingLM)


def rolling_windows(ids: Ids, most: int) -> Iterator[tuple[Ids, Ids]]:
    """(context, tokens to score) of at most `most` tokens together, each token once."""
    yield [], ids[:most]
    stride = max(1, most // 2)
    for start in range(most, len(ids), stride):
        end = min(start + stride, len(ids))
        yield ids[max(0, end - most) : start], ids[start:end]


def stop_texts(options: Mapping[str, Any]) -> list[str]:
    until = options.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]


def cut(text: str, stops: list[str]) -> str:
    """`text` up to the stop text that is complete first."""
    watch = StopTexts(stops)
    before, found = watch.push(text)
    return (before if found else before + watch.rest()).rstrip()
