"""The exact log-likelihood of texts under an autoregressive model: one pass over context and continuation.

Legend: B rows, T padded positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from steerling_jax.bundle import Bundle, check_token_ids
from steerling_jax.errors import UserError, require
from steerling_jax.evaluation.row_sums import sum_by_row
from steerling_jax.models.backbone import Backbone, Params
from steerling_jax.models.batching import by_length, stack
from steerling_jax.models.families import AnyConfig
from steerling_jax.models.steerling.config import ModelConfig


class ExactScore(NamedTuple):
    """number: of the pair. log_likelihood: in nats, of the whole continuation. tokens: of the continuation. greedy:
    whether each of them is the most likely one."""

    number: int
    log_likelihood: float
    tokens: int
    greedy: bool


def exact_scores(
    bundle: Bundle, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_size: int
) -> Iterator[ExactScore]:
    """The scores of (context, continuation) pairs of token ids, the shortest first; 0 for an empty continuation.

    A continuation without a context begins after the model's first token of a text (`bos_token_id`), or else after the
    one that ends a text. Texts are processed in batches, padded to one of a few lengths so that few programs are
    compiled; padding comes after all tokens, where causal attention does not see it. Raises `UserError` for invalid
    ids, texts longer than the context, and an empty context in a model that has neither token.
    """
    require(batch_size >= 1, f"batch_size is {batch_size}, but it must be at least 1.")
    contexts = [_context(bundle, *pair) for pair in pairs]
    texts = [
        check_token_ids([*before, *after], bundle.config, "context and continuation")[0] for before, after in contexts
    ]
    yield from (ExactScore(number, 0.0, 0, True) for number, (_, after) in enumerate(contexts) if not after)
    scored = [number for number, (_, after) in enumerate(contexts) if after]
    for padded, places in by_length([len(texts[number]) for number in scored], bundle.config).items():
        for first in range(0, len(places), batch_size):
            numbers = [scored[place] for place in places[first : first + batch_size]]
            tokens, lengths = stack([texts[number] for number in numbers], batch_size, padded)
            starts = np.full(batch_size, padded, np.int32)  # of unused rows: nothing is scored
            starts[: len(numbers)] = [len(contexts[number][0]) for number in numbers]
            sums = np.asarray(row_sums(bundle.params, tokens, lengths, starts, backbone=bundle.backbone), np.float64)
            for number, (nats, misses) in zip(numbers, sums, strict=False):
                yield ExactScore(number, -float(nats), len(contexts[number][1]), bool(misses == 0))


def _context(bundle: Bundle, before: Sequence[int], after: Sequence[int]) -> tuple[list[int], list[int]]:
    """Ids of a context that is not empty, and of its continuation."""
    before, after, config = list(before), list(after), bundle.config
    if before or not after:
        return before or after or [0], after
    if after[0] == config.bos_token_id:  # the tokenizer begins every text with it, and nothing predicts it
        return after[:1], after[1:]
    return first_ids(config), after


def first_ids(config: AnyConfig) -> list[int]:
    """The id after which a text without a context begins, as a list: `bos_token_id`, or the first id that ends a text.

    Raises `UserError` for a model without such an id.
    """
    ends = () if isinstance(config, ModelConfig) else config.eos_token_ids
    first = next((i for i in (config.bos_token_id, *ends) if i is not None), None)
    if first is None:
        raise UserError(
            "The context is empty, and this model has no token that begins a text (bos_token_id) or ends one "
            "(eos_token_id); give a context, or set one of them in the config."
        )
    return [first]


@partial(jax.jit, static_argnames=("backbone",))
def row_sums(
    params: Params, tokens: jax.Array, lengths: jax.Array, starts: jax.Array, *, backbone: Backbone
) -> jax.Array:
    """Of tokens (B, T) from `starts` (B,) on and before `lengths` (B,): (B, 2), cross-entropies in nats and numbers of
    tokens that are not the most likely."""
    B, T = tokens.shape
    hidden = backbone.run(params, backbone.embed(params, tokens), lengths=lengths).hidden.reshape(B * T, -1)
    at = jnp.arange(T)[None, :]
    chosen = (at >= starts[:, None]) & (at < lengths[:, None])
    targets = tokens.reshape(-1)

    def score(at: jax.Array) -> jax.Array:
        logits = backbone.logits(params, hidden[at - 1])  # the position before predicts the token
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets[at])
        return jnp.stack([nats, (jnp.argmax(logits, axis=-1) != targets[at]).astype(nats.dtype)], axis=1)

    return sum_by_row(chosen, score, 2)
