"""`generate` for people: a loaded model and text or ids in, text, tokens and the trace out."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast, overload

import numpy as np

from steerling_jax.bundle import Bundle, encode
from steerling_jax.decoding.decoder import Request, decoder_of
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.policies import Policies
from steerling_jax.decoding.request import BlockDone, Committed
from steerling_jax.decoding.tables import Table, Tabular, counted, quoted
from steerling_jax.decoding.text_ids import TextIds, text_ids
from steerling_jax.decoding.trace import Commit, Trace
from steerling_jax.errors import require
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.resolve import Steering, plan_steering

_DEFAULT = GenerationConfig()
Text = str | Sequence[int] | np.ndarray


@dataclass(frozen=True, repr=False)
class Generation(Tabular):
    """text: what was written. tokens: prompt and canvas, (P + canvas length,) int32; the canvas has whole blocks. Of an
    autoregressive model they are prompt and text, with the id that ended it. generated_tokens: of how many ids the text
    is made, at most max_new_tokens. seed: the one that was used, also where none was given. Prints as its text and a
    table of commits; `to_dataframe` gives all commits."""

    text: str
    tokens: np.ndarray
    generated_tokens: int
    trace: Trace
    seed: int

    def table(self) -> Table:
        """The trace's table, under the text."""
        title = f"{counted(self.generated_tokens, 'token')}, seed {self.seed}: {quoted(self.text, 120)}"
        return Table(title, self.trace.table().columns)


@dataclass(frozen=True)
class Prompt:
    """One of many: what `generate` takes."""

    text_or_ids: str | Sequence[int]
    config: GenerationConfig = _DEFAULT
    steering: Steering | None = None
    policies: Policies | None = None
    edits: tuple[LayerEdit, ...] = ()


def generate(
    bundle: Bundle,
    text_or_ids: str | Sequence[int],
    config: GenerationConfig = _DEFAULT,
    steering: Steering | None = None,
    *,
    policies: Policies | None = None,
    drafts: int = 1,
    record_hidden: bool = True,
    edits: Sequence[LayerEdit] = (),
) -> Generation:
    """Continues a text (or token ids).

    policies: how a step decides, in place of what `config` means (`decoding/policies.py`). drafts: canvases read in
    a pass; more than 1 gives the same text in fewer passes. record_hidden: keep the committed positions' hidden rows,
    for attribution. edits: changes to the outputs of layers (`models.edits.LayerEdit`) in every pass, at all positions
    or at those after the prompt only. Raises `UserError` where model, prompt and settings do not agree.

    Example:
        >>> text = sj.generate(bundle, "Snow is", sj.GenerationConfig(max_new_tokens=32, temperature=0.0)).text
    """
    *_, last = stream(
        bundle,
        text_or_ids,
        config,
        steering,
        policies=policies,
        drafts=drafts,
        record_hidden=record_hidden,
        edits=edits,
    )
    assert isinstance(last, Generation)
    return last


def stream(
    bundle: Bundle,
    text_or_ids: str | Sequence[int],
    config: GenerationConfig = _DEFAULT,
    steering: Steering | None = None,
    *,
    policies: Policies | None = None,
    drafts: int = 1,
    record_hidden: bool = True,
    steps: int | None = None,
    edits: Sequence[LayerEdit] = (),
) -> Iterator[BlockDone | Committed | Generation]:
    """The same, with a `BlockDone` after each block; the `Generation` comes last. The text of an autoregressive model
    is one block.

    steps: also report what was committed (`Committed`) after so many passes; with 1, every commit as it happens.
    """
    prompt = Prompt(text_or_ids, config, steering, policies, tuple(edits))
    decoder = decoder_of(bundle, rows=1)
    request = request_of(bundle, prompt, drafts=drafts, record_hidden=record_hidden)
    decoder.submit(request)
    while decoder.busy:
        for _, event in decoder.advance(steps):
            yield generation_of(bundle, request, event) if isinstance(event, Trace) else event


@overload
def generate_many(
    bundle: Bundle,
    prompts: Iterable[Prompt],
    *,
    rows: int = 8,
    drafts: int = 1,
    record_hidden: bool | None = None,
    prefix_cache_bytes: int = 0,
) -> Iterator[tuple[int, Generation]]: ...
@overload
def generate_many(
    bundle: Bundle,
    prompts: Sequence[Text],
    config: GenerationConfig = _DEFAULT,
    steering: Steering | None = None,
    *,
    seeds: Sequence[int] | None = None,
    policies: Policies | None = None,
    edits: Sequence[LayerEdit] = (),
    rows: int = 8,
    drafts: int = 1,
    record_hidden: bool | None = None,
    prefix_cache_bytes: int = 0,
) -> Generations: ...
def generate_many(
    bundle: Bundle,
    prompts: Iterable[Prompt] | Sequence[Text],
    config: GenerationConfig = _DEFAULT,
    steering: Steering | None = None,
    *,
    seeds: Sequence[int] | None = None,
    policies: Policies | None = None,
    edits: Sequence[LayerEdit] = (),
    rows: int = 8,
    drafts: int = 1,
    record_hidden: bool | None = None,
    prefix_cache_bytes: int = 0,
) -> Generations | Iterator[tuple[int, Generation]]:
    """Continues many texts (or sequences of token ids), up to `rows` at once; returns a list in the order of `prompts`.

    Each text is what `generate` alone would write, with the same settings for all.

    Args:
        seeds: one for each text, in place of the configuration's, which all texts share.
        edits: changes to the outputs of layers, as in `generate`.
        record_hidden: keep the committed positions' hidden rows, for attribution; None keeps them for texts.
        prefix_cache_bytes: memory for what prompts have in common at their beginning.

    `Prompt`s, each with settings of its own, are continued by `stream_many`, whose iterator is returned.
    Raises `UserError` for texts or settings that do not fit the model.

    Example:
        >>> config = sj.GenerationConfig(max_new_tokens=16)
        >>> made = sj.generate_many(bundle, ["Connect to"] * 3, config, seeds=range(3))
        >>> [len(one.text) > 0 for one in made]
        [True, True, True]
    """
    require(not isinstance(prompts, str), "prompts is one text; give a list of texts.", "prompts")
    options: dict[str, Any] = {"rows": rows, "drafts": drafts, "prefix_cache_bytes": prefix_cache_bytes}
    texts = list(prompts) if isinstance(prompts, Sequence | np.ndarray) else None
    if texts is None or any(isinstance(one, Prompt) for one in texts):
        own = (config is _DEFAULT, steering is None, seeds is None, policies is None, not edits)
        require(all(own), "Prompts have settings of their own; leave out config, steering, seeds, policies and edits.")
        return stream_many(bundle, cast(Iterable[Prompt], prompts), record_hidden=bool(record_hidden), **options)
    require(
        all(isinstance(one, str) or np.ndim(cast(Any, one)) == 1 for one in texts),
        "prompts must be a list of texts or of sequences of token ids.",
        "prompts",
    )
    numbers = [config.seed] * len(texts) if seeds is None else list(seeds)
    require(
        len(numbers) == len(texts), f"There are {len(numbers)} seeds for {len(texts)} texts; give one each.", "seeds"
    )
    # Steering is planned once for all texts.
    plan = plan_steering(bundle, steering)
    each = [
        Prompt(cast(Any, text), dataclasses.replace(config, seed=seed), plan, policies, tuple(edits))
        for text, seed in zip(texts, numbers)
    ]
    done = dict(stream_many(bundle, each, record_hidden=record_hidden is not False, **options))
    return Generations(done[number] for number in range(len(each)))


class Generations(Tabular, list[Generation]):
    """Generations as a list, which prints as a table with a row for each."""

    def table(self) -> Table:
        columns = {
            "seed": [one.seed for one in self],
            "tokens": [one.generated_tokens for one in self],
            "text": [one.text for one in self],
        }
        return Table(counted(len(self), "generation"), columns)


def stream_many(
    bundle: Bundle,
    prompts: Iterable[Prompt],
    *,
    rows: int = 8,
    drafts: int = 1,
    record_hidden: bool = False,
    prefix_cache_bytes: int = 0,
) -> Iterator[tuple[int, Generation]]:
    """Continues many texts, up to `rows` at once: (number of the prompt, generation), each as soon as it is complete.

    Each text is what `generate` alone would write. Prompts are taken from the iterable as rows become free.
    prefix_cache_bytes: memory for what prompts have in common at their beginning. Raises `UserError` for a prompt or
    settings that do not fit the model.
    """
    decoder = decoder_of(bundle, rows=rows, prefix_cache_bytes=prefix_cache_bytes)
    coming = enumerate(prompts)
    known: dict[int, tuple[int, Request]] = {}
    while True:
        while len(known) < rows and (item := next(coming, None)) is not None:
            number, prompt = item
            require(
                isinstance(prompt, Prompt),
                f"prompts contains {prompt!r:.60}; give Prompts, or a list of texts to generate_many.",
                "prompts",
            )
            request = request_of(bundle, prompt, drafts=drafts, record_hidden=record_hidden)
            known[decoder.submit(request)] = (number, request)
        if not known:
            return
        for ticket, event in decoder.advance():
            if isinstance(event, Trace):
                number, request = known.pop(ticket)
                yield number, generation_of(bundle, request, event)


def request_of(bundle: Bundle, prompt: Prompt, *, drafts: int = 1, record_hidden: bool = False) -> Request:
    """What the decoder takes: ids, a seed, a steering plan. Raises `UserError` for bad values."""
    ids = encode(bundle, prompt.text_or_ids, "The prompt")
    seed = secrets.randbits(32) if prompt.config.seed is None else prompt.config.seed
    policies = prompt.policies or Policies()
    plan = plan_steering(bundle, prompt.steering)
    edits = (*(one.edit() for one in plan.features), *prompt.edits)
    labels = tuple(one.describe() for one in plan.features)
    # Without concepts, features are all that steers.
    by_concepts = plan if isinstance(bundle.config, ModelConfig) else None
    config = effective_config(bundle, prompt.config, len(ids))
    return Request(ids, config, seed, by_concepts, policies, drafts, record_hidden, edits, labels)


def effective_config(bundle: Bundle, config: GenerationConfig, prompt_length: int) -> GenerationConfig:
    """The settings as this model takes them: with the defaults of its kind in the fields that were not given."""
    if isinstance(bundle.config, ModelConfig):
        return config
    return config.plain(bundle.config.context_length, prompt_length)


def generation_of(bundle: Bundle, request: Request, trace: Trace) -> Generation:
    """A request's trace with its text."""
    stop = request.generation.stop_tokens or ()
    ids = text_ids(trace.tokens[trace.prompt_length :], bundle.config, stop)[: request.generation.max_new_tokens]
    text = bundle.tokenizer.decode(ids)
    return Generation(text, trace.tokens, len(ids), trace.with_pieces(bundle.tokenizer), request.seed)


def stopped_generation(bundle: Bundle, request: Request, commits: Sequence[Commit]) -> Generation:
    """The generation of a request that was stopped: its commits so far, on a canvas that keeps its masks.

    Its trace can be checked, recorded and explained as that of a whole text. Hidden rows are computed again where they
    are needed. Raises `UserError` if nothing was written.
    """
    require(len(commits) > 0, "The text was stopped before its first token; there is nothing to explain.")
    prompt, mask = np.asarray(request.prompt, np.int32), TextIds.of(bundle.config).mask
    length = sum(len(commit.positions) for commit in commits)
    if isinstance(bundle.config, ModelConfig):
        length = request.generation.canvas_length(bundle.config)
    trace = Trace(
        prompt,
        np.concatenate([prompt, np.full(length, mask, np.int32)]),
        tuple(commits),
        mask,
        plan=request.steering,
        guidance=request.generation.cfg_scale,
        passes=len(commits),
        edits=request.edits,
        edit_labels=request.edit_labels,
    )
    return generation_of(bundle, request, dataclasses.replace(trace, tokens=trace.committed))
