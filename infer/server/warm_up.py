"""What a server compiles before it says that it is ready, so that the first requests do not wait for it.

Programs depend on how many rows a batch has (powers of two), how much room their caches have, and whether tokens are
drawn or the likeliest is taken. So made-up requests fill the decoder to every number of rows, and go from every number
to every other one. What they write does not matter. Guided requests and those with clamps have programs of their own,
compiled when they first come.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from steerling_jax.decoding.decoder import Decoder
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.request import Request
from steerling_jax.steering.config import SteeringConfig
from steerling_jax.steering.plan import InjectedDirection, SteeringPlan, prepare_steering

# How tokens are chosen: drawn, at any temperature, or the likeliest.
_CHOICES: tuple[dict[str, Any], ...] = ({}, {"use_entropy_sampling": False, "temperature": 0.0})


def warm_up(decoder: Decoder) -> Iterator[tuple[int, int]]:
    """Compiles what requests that fit in the decoder's `room` need; yields (done, total) after every step."""
    sizes = [1 << i for i in range((decoder.rows - 1).bit_length() + 1)]
    done, total = 0, len(_CHOICES) * (len(sizes) + len(path(sizes)))
    if decoder.config.concept is not None:
        both = (SteeringConfig.injection(0), SteeringConfig.injection_relu(0))
        prepare_steering(decoder.params, both, config=decoder.config, compute=decoder.compute)
    for choice in _CHOICES:
        for steps in (_fill(decoder, sizes, choice), _change(decoder, path(sizes), choice)):
            for _ in steps:
                done += 1
                yield done, total
        decoder.clear()


def path(sizes: list[int]) -> list[int]:
    """A way that goes from every size to every other one."""
    found = sizes[:1]
    for i, large in enumerate(sizes):
        for small in sizes[:i]:
            found += [large] if found[-1] == small else [small, large]
    return found + sizes[:1] if len(sizes) > 1 else found


def _fill(decoder: Decoder, sizes: list[int], choice: dict[str, Any]) -> Iterator[None]:
    """A batch of each size from nothing: its rows begin a block, have their injection changed, and end the block."""
    for size in sizes:
        tickets = [decoder.submit(_request(decoder, 2, choice)) for _ in range(min(size, decoder.rows))]
        for _ in range(2):
            decoder.advance(1)
        for ticket in tickets:
            decoder.cancel(ticket)
        yield


def _change(decoder: Decoder, sizes: list[int], choice: dict[str, Any]) -> Iterator[None]:
    """A batch that grows and shrinks."""
    tickets: list[int] = []
    for size in sizes:
        for ticket in tickets[size:]:
            decoder.cancel(ticket)
        del tickets[size:]
        more = min(size, decoder.rows) - len(tickets)
        tickets += [decoder.submit(_request(decoder, decoder.config.diff_block_size, choice)) for _ in range(more)]
        decoder.advance(1)
        yield


def _request(decoder: Decoder, passes: int, choice: dict[str, Any]) -> Request:
    """Fills the room, with so many passes a block. The prompt is read in large and in small pieces, where it may be."""
    config = decoder.config
    W = config.diff_block_size
    prompt = next(blocks * W for blocks in (10, 2, 1) if decoder.room >= 2 * blocks * W)
    blocks = (decoder.room - prompt) // W
    generation = GenerationConfig(max_new_tokens=blocks * W, steps=blocks * passes, **choice)
    nothing = np.zeros(config.n_embd, np.float32)  # is injected, until the next token is written, then until the next
    parts = tuple(InjectedDirection(nothing, 0.0, 1, cutoff, "masks") for cutoff in range(1, blocks * W))
    plan = SteeringPlan(parts, jnp.zeros(config.vocab_size), None, (), config.n_embd)
    return Request(np.zeros(prompt, np.int32), generation, 0, plan)
