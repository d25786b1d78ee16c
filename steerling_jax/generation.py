"""`generate` for people: a loaded model and text or ids in, text, tokens and the trace out."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from steerling_jax.config import ModelConfig
from steerling_jax.decoding import BlockDone, decode
from steerling_jax.generation_config import GenerationConfig, SteeringConfig
from steerling_jax.inference import encode
from steerling_jax.trace import Trace

if TYPE_CHECKING:
    from steerling_jax.api import Bundle

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


def generate(
    bundle: Bundle,
    text_or_ids: str | Sequence[int],
    config: GenerationConfig = _DEFAULT,
    steering: SteeringConfig | None = None,
    *,
    record_hidden: bool = True,
) -> Generation:
    """Continues a text (or token ids). record_hidden: keep the committed positions' hidden rows, for attribution.

    Raises `UserError` where model, prompt and settings do not agree.
    """
    *_, last = stream(bundle, text_or_ids, config, steering, record_hidden=record_hidden)
    assert isinstance(last, Generation)
    return last


def stream(
    bundle: Bundle,
    text_or_ids: str | Sequence[int],
    config: GenerationConfig = _DEFAULT,
    steering: SteeringConfig | None = None,
    *,
    record_hidden: bool = True,
) -> Iterator[BlockDone | Generation]:
    """The same, with a `BlockDone` after each block; the `Generation` comes last."""
    prompt = encode(bundle, text_or_ids, "The prompt")
    seed = secrets.randbits(32) if config.seed is None else config.seed
    events = decode(
        bundle.params, prompt, config=bundle.config, compute=bundle.compute, generation=config, seed=seed,
        steering=steering, record_hidden=record_hidden,
    )  # fmt: skip
    for event in events:
        if isinstance(event, BlockDone):
            yield event
        else:
            ids = text_ids(event.tokens[event.prompt_length :], bundle.config, config.stop_tokens or ())
            yield Generation(bundle.tokenizer.decode(ids), event.tokens, len(ids), event, seed)


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
