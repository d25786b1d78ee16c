"""The texts of all tabs: how far each is written, and what was computed about it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np

from steerling_jax.attribution.explorer.jobs import JobKey
from steerling_jax.autoencoders.autoencoder import Autoencoder
from steerling_jax.bundle import Bundle
from steerling_jax.decoding.characters import text_runs
from steerling_jax.decoding.generation import Prompt, request_of, stopped_generation
from steerling_jax.decoding.request import Request
from steerling_jax.decoding.text_ids import TextIds
from steerling_jax.decoding.trace import Commit, Trace
from steerling_jax.decoding.trace_record import Origin, TraceRecord, record_of
from steerling_jax.errors import require
from steerling_jax.infer.server.engine import EngineRequest
from steerling_jax.infer.steer_eval.random_control import random_control
from steerling_jax.steering.features import FeatureSteering
from steerling_jax.steering.plan import SteeringPlan
from steerling_jax.steering.resolve import plan_steering

MOST_TEXTS = 64  # the least recently used ones are forgotten beyond it
ENDED = ("done", "stopped", "failed")


@dataclass(eq=False)
class Text:
    """A text that is written, or a given one.

    prompt: token ids, settings with their seed, and steering. stop: texts that end it. random: whether it is steered
    in a random direction, of the size of its steering. request: what the decoder takes;
    None for a given text, whose trace is `given` once it was read. state: "queued", "running", "done", "stopped" or
    "failed". sessions: ids of the tabs that follow it. error: why it failed, for people. results: what was computed
    about it, by job.
    """

    id: str
    prompt: Prompt
    stop: tuple[str, ...] = ()
    random: bool = False
    request: Request | None = None
    given: Trace | None = None
    state: str = "queued"
    commits: list[Commit] = field(default_factory=list)
    sessions: set[str] = field(default_factory=set)
    engine_request: EngineRequest | None = None
    error: str | None = None
    seconds: float = 0.0
    results: dict[JobKey, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def written(self) -> int:
        """Tokens written so far."""
        return sum(len(commit.positions) for commit in self.commits)

    def canvas(self, mask: int, length: int) -> np.ndarray:
        """The ids (P + length,) int32 so far, with masks where nothing is written."""
        prompt = np.asarray(self.prompt.text_or_ids, np.int32)
        canvas = np.concatenate([prompt, np.full(length, mask, np.int32)])
        for commit in self.commits:
            canvas[list(commit.positions)] = commit.token_ids
        return canvas

    def span(self, start: int, end: int) -> list[int]:
        """The written positions in [start, end), from left to right."""
        return sorted(p for commit in self.commits for p in commit.positions if start <= p < end)


def text_id(
    fingerprint: str, prompt: Prompt, stop: tuple[str, ...], continuation: list[int] | None, random: bool
) -> str:
    """The id of a text: the same request to the same model, with its seed, is the same text."""
    content = repr((fingerprint, list(prompt.text_or_ids), prompt.config, prompt.steering, stop, continuation, random))
    return "t_" + hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()[:16]


class TextStore:
    """Texts by id, the least recently used first."""

    def __init__(self, forget: Callable[[Text], None]):
        """forget: called with a text that is removed."""
        self._texts: OrderedDict[str, Text] = OrderedDict()
        self._forget = forget

    def get(self, id: str) -> Text | None:
        """A text, which is thereby used."""
        if id in self._texts:
            self._texts.move_to_end(id)
        return self._texts.get(id)

    def add(self, text: Text) -> None:
        """Adds a text in place of the least recently used one that is not being written."""
        self._texts[text.id] = text
        ended = [one for one in self._texts.values() if one.ended]
        for one in ended[: max(len(self._texts) - MOST_TEXTS, 0)]:
            del self._texts[one.id]
            self._forget(one)

    def __iter__(self):
        return iter(list(self._texts.values()))


@dataclass(frozen=True)
class Model:
    """The model of the server with what every answer needs of it. autoencoders: of its blocks, whose features are in
    the bundle's catalogue."""

    bundle: Bundle
    origin: Origin
    autoencoders: tuple[Autoencoder, ...] = ()

    @cached_property
    def mask(self) -> int:
        return TextIds.of(self.bundle.config).mask

    def request(self, text: Text) -> Request:
        """What the decoder takes to write a text. Raises `UserError` for steering that the model cannot do."""
        bundle, prompt = self.bundle, text.prompt
        request = request_of(bundle, prompt, record_hidden=True)
        if not text.random:
            return request
        prompt = dataclasses.replace(prompt, steering=self._random_plan(prompt, request.seed))
        return dataclasses.replace(request_of(bundle, prompt, record_hidden=True), seed=request.seed)

    def _random_plan(self, prompt: Prompt, seed: int) -> SteeringPlan:
        bundle = self.bundle
        plan = plan_steering(bundle, prompt.steering)
        return random_control(plan, jax.random.key(seed), params=bundle.params, compute=bundle.compute)

    def record(self, text: Text) -> TraceRecord:
        """The record of a text as far as it is written. Raises `UserError` if nothing is."""
        if text.given is not None:
            decode = self.bundle.tokenizer.decode
            before, after = text.given.prompt, text.given.tokens[text.given.prompt_length :]
            return TraceRecord(text.given, self.origin, decode(before.tolist()), decode(after.tolist()))
        require(text.request is not None, "The text is not written yet.")
        assert text.request is not None
        generation = stopped_generation(self.bundle, text.request, text.commits)
        whole = None if text.engine_request is None else text.engine_request.trace
        # The rows of a text that was stopped, or ended by a stop text, are computed again where they are needed.
        if whole is not None and whole.hidden is not None and whole.commits == generation.trace.commits:
            trace = dataclasses.replace(generation.trace, hidden=whole.hidden)
            generation = dataclasses.replace(generation, trace=trace)
        record = record_of(self.bundle, self.origin, text.prompt, generation)
        if not text.random:
            return record
        # A feature's random direction is in the record. That of a concept is in the trace's plan alone: configurations,
        # from which a reader of the file would make a plan, are those of the concepts.
        features: tuple[FeatureSteering, ...] = ()
        if any(isinstance(one, FeatureSteering) for one in record.steering):
            features = self._random_plan(text.prompt, text.request.seed).features
        size = "; ".join(one.describe() for one in record.steering)
        policies = {**record.policies, "random_direction": f"of seed {text.request.seed}, of the size of: {size}"}
        return dataclasses.replace(record, steering=features, policies=policies)

    def characters(self, text: Text) -> list[list[Any]]:
        """The runs of a text so far that make whole characters, as JSON: `[start, end, text, complete]`."""
        config, tokenizer = self.bundle.config, self.bundle.tokenizer
        if text.given is not None:
            canvas = text.given.tokens
        else:
            length = text.written if self.mask < 0 else text.prompt.config.canvas_length(config)
            canvas = text.canvas(self.mask, length)
        return [list(run) for run in text_runs(tokenizer, canvas.tolist(), {self.mask})]
