"""Compiles decoding programs before the server is ready, so that the first requests do not wait for compilation.

XLA compiles a program for every shape: for the number of rows of a batch (powers of two), the size of their caches, and
for sampling and greedy decoding. Dummy requests therefore fill the decoder to every number of rows, and then change
between every two numbers; their output is dropped. Requests with guidance or clamps have programs of their own, which
are compiled when the first one arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from steerling_jax.decoding.decoder import Decoder
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.request import Request
from steerling_jax.decoding.token_loop import PIECES
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.config import SteeringConfig
from steerling_jax.steering.plan import InjectedDirection, SteeringPlan, prepare_steering

# Sampling, at any temperature, and greedy decoding; an autoregressive model also samples with a nucleus of its own.
_SAMPLING: tuple[dict[str, Any], ...] = ({}, {"use_entropy_sampling": False, "temperature": 0.0})
_NUCLEUS: dict[str, Any] = {"top_p": 0.9}


def warm_up(decoder: Decoder, *, greedy: bool = True, record_hidden: bool = False) -> Iterator[tuple[int, int]]:
    """Compiles the programs of requests that fit in the decoder's `room`; yields (done, total) after every step.

    greedy: also those of greedy decoding and, for an autoregressive model, of a nucleus. record_hidden: those of
    requests that record hidden rows.
    """
    sizes = [1 << i for i in range((decoder.rows - 1).bit_length() + 1)]
    samplings = _SAMPLING if isinstance(decoder.config, ModelConfig) else (*_SAMPLING, _NUCLEUS)
    samplings = samplings if greedy else _SAMPLING[:1]
    make = partial(_dummy_request, decoder, record_hidden=record_hidden)
    done, total = 0, len(samplings) * (len(sizes) + len(path(sizes)))
    config = decoder.config
    if isinstance(config, ModelConfig) and config.concept is not None:
        # The programs that prepare steering, with an injection and with suppression.
        both = (SteeringConfig.injection(0), SteeringConfig.injection_relu(0))
        prepare_steering(decoder.params, both, config=config, compute=decoder.compute)
    for sampling in samplings:
        for steps in (_fill(decoder, sizes, sampling, make), _change(decoder, path(sizes), sampling, make)):
            for _ in steps:
                done += 1
                yield done, total
        decoder.clear()


def path(sizes: list[int]) -> list[int]:
    """A sequence of the sizes in which every one is followed by every other one at some point, in both directions."""
    visited = sizes[:1]
    for i, large in enumerate(sizes):
        for small in sizes[:i]:
            visited += [large] if visited[-1] == small else [small, large]
    return visited + sizes[:1] if len(sizes) > 1 else visited


def _fill(decoder: Decoder, sizes: list[int], sampling: dict[str, Any], make: Callable[..., Request]) -> Iterator[None]:
    """Starts a batch of each size from an empty decoder: its rows begin a block, have their injection changed, and
    finish the block."""
    for size in sizes:
        tickets = [decoder.submit(make(2, sampling)) for _ in range(min(size, decoder.rows))]
        for _ in range(2):
            decoder.advance(1)
        for ticket in tickets:
            decoder.cancel(ticket)
        yield


def _change(
    decoder: Decoder, sizes: list[int], sampling: dict[str, Any], make: Callable[..., Request]
) -> Iterator[None]:
    """Grows and shrinks one batch: moving rows between batches of two sizes is a program for each pair."""
    tickets: list[int] = []
    for size in sizes:
        for ticket in tickets[size:]:
            decoder.cancel(ticket)
        del tickets[size:]
        more = min(size, decoder.rows) - len(tickets)
        passes = decoder.config.diff_block_size if isinstance(decoder.config, ModelConfig) else 1
        tickets += [decoder.submit(make(passes, sampling)) for _ in range(more)]
        decoder.advance(1)
        yield


def _dummy_request(decoder: Decoder, passes: int, sampling: dict[str, Any], *, record_hidden: bool) -> Request:
    """A request that fills the room, with `passes` denoising steps a block."""
    config = decoder.config
    if not isinstance(config, ModelConfig):
        return _dummy_token_request(decoder.room, sampling, record_hidden)
    W = config.diff_block_size
    # 10 blocks, where there is room for them, are read in a large piece of 8 and a small one, which are two programs.
    prompt = next(blocks * W for blocks in (10, 2, 1) if decoder.room >= 2 * blocks * W)
    blocks = (decoder.room - prompt) // W
    generation = GenerationConfig(max_new_tokens=blocks * W, steps=blocks * passes, **sampling)
    # A zero vector, injected with a cutoff after every token: the injection tables change in the middle of a block too.
    zero = np.zeros(config.n_embd, np.float32)
    parts = tuple(InjectedDirection(zero, 0.0, 1, cutoff, "masks") for cutoff in range(1, blocks * W))
    plan = SteeringPlan(parts, jnp.zeros(config.vocab_size), None, (), config.n_embd)
    return Request(np.zeros(prompt, np.int32), generation, 0, plan, record_hidden=record_hidden)


def _dummy_token_request(room: int, sampling: dict[str, Any], record_hidden: bool) -> Request:
    """A request to an autoregressive model that fills the room. Its prompt is read in pieces of every length."""
    prompt = min(sum(PIECES) + 1, max(room - 2, 1))
    generation = GenerationConfig(max_new_tokens=room - prompt, **sampling)
    return Request(np.zeros(prompt, np.int32), generation, 0, record_hidden=record_hidden)
