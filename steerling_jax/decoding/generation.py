"""`generate` for people: a loaded model and text or ids in, text, tokens and the trace out."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from steerling_jax.bundle import Bundle, encode
from steerling_jax.decoding.decoder import Decoder, Request
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.policies import Policies
from steerling_jax.decoding.request import BlockDone, Committed
from steerling_jax.decoding.trace import Trace
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.plan import Steering, prepare_steering

_DEFAULT = GenerationConfig()


@dataclass(frozen=True)
class Generation:
    """text: what was written. tokens: prompt and canvas, (P + max_new_tokens,) int32. generated_tokens: of how many
    ids the text is made. seed: the one that was used, also where none was asked for."""

    text: str
    tokens: np.ndarray
    generated_tokens: int
    trace: Trace
    seed: int


@dataclass(frozen=True)
class Prompt:
    """One of many: what `generate` takes."""

    text_or_ids: str | Sequence[int]
    config: GenerationConfig = _DEFAULT
    steering: Steering | None = None
    policies: Policies | None = None


def generate(
    bundle: Bundle,
    text_or_ids: str | Sequence[int],
    config: GenerationConfig = _DEFAULT,
    steering: Steering | None = None,
    *,
    policies: Policies | None = None,
    drafts: int = 1,
    record_hidden: bool = True,
) -> Generation:
    """Continues a text (or token ids).

    policies: how a step decides, in place of what `config` means (`decoding/policies.py`). drafts: canvases read in
    a pass; more than 1 gives the same text in fewer passes. record_hidden: keep the committed positions' hidden rows,
    for attribution. Raises `UserError` where model, prompt and settings do not agree.
    """
    *_, last = stream(
        bundle, text_or_ids, config, steering, policies=policies, drafts=drafts, record_hidden=record_hidden
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
) -> Iterator[BlockDone | Committed | Generation]:
    """The same, with a `BlockDone` after each block; the `Generation` comes last.

    steps: also tell what was committed (`Committed`) after so many passes; with 1, every commit as it happens.
    """
    prompt = Prompt(text_or_ids, config, steering, policies)
    decoder = Decoder(bundle.params, config=bundle.config, compute=bundle.compute, rows=1)
    request = request_of(bundle, prompt, drafts=drafts, record_hidden=record_hidden)
    decoder.submit(request)
    while decoder.busy:
        for _, event in decoder.advance(steps):
            yield generation_of(bundle, request, event) if isinstance(event, Trace) else event


def generate_many(
    bundle: Bundle,
    prompts: Iterable[Prompt],
    *,
    rows: int = 8,
    drafts: int = 1,
    record_hidden: bool = False,
    prefix_cache_bytes: int = 0,
) -> Iterator[tuple[int, Generation]]:
    """Continues many texts, up to `rows` at once: (number of the prompt, generation), as they are done.

    Each text is what `generate` alone would write. Prompts are taken from the iterable as rows become free.
    prefix_cache_bytes: memory for what prompts have in common at their beginning. Raises `UserError` for a prompt or
    settings that do not fit the model.
    """
    decoder = Decoder(
        bundle.params, config=bundle.config, compute=bundle.compute, rows=rows, prefix_cache_bytes=prefix_cache_bytes
    )
    coming = enumerate(prompts)
    known: dict[int, tuple[int, Request]] = {}
    while True:
        while len(known) < rows and (item := next(coming, None)) is not None:
            number, prompt = item
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
    plan = prepare_steering(bundle.params, prompt.steering, config=bundle.config, compute=bundle.compute)
    return Request(ids, prompt.config, seed, plan, prompt.policies or Policies(), drafts, record_hidden)


def generation_of(bundle: Bundle, request: Request, trace: Trace) -> Generation:
    """A request's trace with its text."""
    stop = request.generation.stop_tokens or ()
    ids = text_ids(trace.tokens[trace.prompt_length :], bundle.config, stop)
    return Generation(bundle.tokenizer.decode(ids), trace.tokens, len(ids), trace, request.seed)


def text_ids(canvas: Sequence[int] | np.ndarray, config: ModelConfig, stop_tokens: Sequence[int] = ()) -> list[int]:
    """Ids that become text: masks and eos dropped, cut at the first stop or end-of-turn id."""
    kept: list[int] = []
    for i in map(int, canvas):
        if i in (config.mask_token_id, config.eos_token_id):
            continue
        if i in stop_tokens or i == config.eot_id:
            break
        kept.append(i)
    return kept
