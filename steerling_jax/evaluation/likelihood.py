"""The likelihood of texts. Of a masked diffusion model it is a bound, an average over random maskings; of an
autoregressive model it is exact (`exact_likelihood`).

Mask m of the n tokens of a continuation at random, sum the cross-entropies of those m, and divide by m / n. The
expectation over m uniform in 1 … n is an upper bound on −log p(continuation | context).

Source: the published package's evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple

import jax
import numpy as np

from steerling_jax.bundle import Bundle, check_token_ids
from steerling_jax.errors import require
from steerling_jax.evaluation.exact_likelihood import exact_scores
from steerling_jax.evaluation.likelihood_table import LogLikelihood, LogLikelihoods
from steerling_jax.evaluation.masked_losses import masked_losses, steer_rows
from steerling_jax.models.batching import by_length, stack
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.plan import SteeringPlan
from steerling_jax.steering.resolve import Steering, plan_steering

Part = str | Sequence[int]
Boundary = Literal["joint", "published"]


class _Text(NamedTuple):
    """A context and its continuation: tokens (n,) int32, of which those from `start` on are the continuation's."""

    tokens: np.ndarray
    start: int


def log_likelihood(
    bundle: Bundle,
    context: Part,
    continuation: Part,
    samples: int = 128,
    seed: int = 0,
    batch_size: int = 16,
    cfg_scale: float = 0.0,
    boundary: Boundary = "joint",
    steering: Steering | None = None,
) -> LogLikelihood:
    """log p(continuation | context) in nats, for the whole continuation; 0.0 for an empty one.

    A diffusion model gives a lower bound. An autoregressive model gives the exact value from one pass; samples and seed
    have no effect on it.

    samples: the number of maskings; seed: of their draw, which does not depend on `batch_size`. cfg_scale: the scale of
    guidance, with logits `uncond + (scale + 1)(cond − uncond)` and the context masked in `uncond`; the result is then a
    score and not a bound. Mask ids within the context are part of the input and are not scored. boundary: which tokens
    of two texts are scored, see `split`. steering: of the model that scores, as in `generate`: its injections at masked
    positions or those of the context (`cutoff_tokens` is compared with the number of tokens that a masking leaves), its
    clamps, and suppressed tokens. Raises `UserError` for invalid values, for texts longer than the model's
    context, and where a continuation has no token to score.
    """
    return log_likelihoods(
        bundle,
        [(context, continuation)],
        samples=samples,
        seed=seed,
        batch_size=batch_size,
        cfg_scale=cfg_scale,
        boundary=boundary,
        steering=steering,
    )[0]


def log_likelihoods(
    bundle: Bundle,
    pairs: Sequence[tuple[Part, Part]],
    *,
    samples: int = 128,
    seed: int = 0,
    batch_size: int = 16,
    cfg_scale: float = 0.0,
    boundary: Boundary = "joint",
    steering: Steering | None = None,
) -> LogLikelihoods:
    """`log_likelihood` of each (context, continuation) pair, in batches: the same numbers, up to rounding."""
    encoded = [split(bundle, *pair, boundary=boundary) for pair in pairs]
    plan = None if steering is None else plan_steering(bundle, steering)
    require(
        plan is None or not plan.features,
        "Likelihoods under steering by features are not supported; steer by concepts.",
        "steering",
    )
    scores = dict(
        score_pairs(bundle, encoded, samples=samples, seed=seed, batch_size=batch_size, cfg_scale=cfg_scale, plan=plan)
    )
    return LogLikelihoods(scores[number] for number in range(len(pairs)))


def score_pairs(
    bundle: Bundle,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    samples: int,
    seed: int,
    batch_size: int,
    cfg_scale: float,
    plan: SteeringPlan | None = None,
) -> Iterator[tuple[int, LogLikelihood]]:
    """`log_likelihoods` of pairs of token ids, each as soon as it is complete: (number of the pair, value), the
    shortest texts first.

    A batch holds maskings of one or several pairs, padded to one of a few lengths (`batching.padded_length`), so that
    few programs are compiled. The maskings of every pair are drawn with the same seed, so texts of equal length have
    the same masks, and the difference between two of them (answers to the same question, for example) has less
    variance.
    """
    if not isinstance(bundle.config, ModelConfig):
        require(cfg_scale == 0, f"cfg_scale is {cfg_scale}, but guidance needs a diffusion model; leave it out.")
        for one in exact_scores(bundle, pairs, batch_size=batch_size):
            yield one.number, LogLikelihood(one.log_likelihood, one.tokens, 1, 0.0)
        return
    for name, value in (("samples", samples), ("batch_size", batch_size)):
        require(value >= 1, f"{name} is {value}, but it must be at least 1.")
    require(
        cfg_scale >= 0 and math.isfinite(cfg_scale),
        f"cfg_scale is {cfg_scale}, but it must be a finite number of at least 0.",
    )
    texts = [_text(bundle, pair, "context and continuation") for pair in pairs]
    for padded, numbers in by_length([len(text.tokens) for text in texts], bundle.config).items():
        rows = _maskings(texts, numbers, samples, seed)
        estimates: dict[int, list[float]] = {number: [] for number in numbers}
        while batch := list(islice(rows, batch_size)):
            masked = [(texts[number], mask) for number, mask in batch]
            losses = _losses(bundle, masked, batch_size, padded, cfg_scale, plan)
            for (number, mask), loss in zip(batch, losses, strict=True):
                estimates[number].append(-loss * mask.size / mask.sum())
                if len(estimates[number]) == samples:
                    yield number, _average(estimates.pop(number), mask.size)
        yield from ((number, LogLikelihood(0.0, 0, samples, 0.0)) for number in estimates)  # empty continuations


def _average(estimates: list[float], tokens: int) -> LogLikelihood:
    """The average of one estimate for each masking."""
    samples = len(estimates)
    error = float(np.std(estimates, ddof=1)) / math.sqrt(samples) if samples > 1 else math.nan
    return LogLikelihood(sum(estimates) / samples, tokens, samples, error)


def draw_masks(length: int, samples: int, seed: int) -> np.ndarray:
    """Which of `length` tokens each sample masks, (samples, length) bool.

    The numbers of masked tokens are spread evenly over 1 … length from a random start: each is uniformly distributed,
    while their average hardly varies. (The published package draws a start for every 32 samples.) Which tokens are
    masked is a random order for each sample.
    """
    start_key, order_key = jax.random.split(jax.random.key(seed))
    start = int(jax.random.randint(start_key, (), 0, length))
    counts = (start + np.arange(samples) * length // samples) % length + 1
    width = 1 << (length - 1).bit_length()  # a power of two, so that the draw is compiled for few shapes
    order = np.asarray(jax.random.uniform(order_key, (samples, width)))[:, :length].argsort(axis=1)
    return order < counts[:, None]


def _text(bundle: Bundle, pair: tuple[Sequence[int], Sequence[int]], what: str) -> _Text:
    before, after = pair
    if not len(after):
        return _Text(np.zeros(0, np.int32), 0)
    return _Text(check_token_ids([*before, *after], bundle.config, what)[0], len(before))


def split(
    bundle: Bundle, context: Part, continuation: Part, *, boundary: Boundary = "joint"
) -> tuple[list[int], list[int]]:
    """The token ids of a context, and those of its continuation, which are scored.

    Two texts are encoded together, and spaces between them belong to the continuation (published). A token may then
    span both: "unit" and "test" can merge to one token. boundary "joint": the continuation begins at the first token in
    which the joint encoding departs from that of the context alone, so that a merged token is scored. "published":
    after as many tokens as the context alone has, so that a merged token is not scored. A context of text begins with
    the ids that the model expects before every text (`Tokenizer.prefix`).

    Raises `UserError` for another boundary, and where "published" leaves no token of a continuation.
    """
    require(boundary in ("joint", "published"), f"boundary is {boundary!r}, but it must be 'joint' or 'published'.")
    if not isinstance(context, str) or not isinstance(continuation, str):
        ids = [bundle.tokenizer.encode(part) if isinstance(part, str) else part for part in (context, continuation)]
        return [int(i) for i in ids[0]], [int(i) for i in ids[1]]
    stem = context.rstrip()
    continuation, context = context[len(stem) :] + continuation, stem
    alone = list(bundle.tokenizer.encode(context)) if context else []
    joint = list(bundle.tokenizer.encode(context + continuation))
    start = len(alone)
    if boundary == "joint":
        start = next((i for i, (a, b) in enumerate(zip(alone, joint)) if a != b), min(len(alone), len(joint)))
    require(
        start < len(joint) or not continuation,
        f"The continuation {continuation!r} has no token of its own after {context[-20:]!r}: its letters are merged "
        "into the context's last token. Give boundary='joint' to score the merged token.",
    )
    return [*bundle.tokenizer.prefix, *joint[:start]], joint[start:]


def _maskings(texts: list[_Text], numbers: list[int], samples: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the text, which of its continuation's tokens are masked) for every text and sample."""
    for number in numbers:
        length = len(texts[number].tokens) - texts[number].start
        if length:
            yield from ((number, mask) for mask in draw_masks(length, samples, seed))


def _losses(
    bundle: Bundle,
    batch: list[tuple[_Text, np.ndarray]],
    rows: int,
    padded: int,
    cfg_scale: float,
    plan: SteeringPlan | None,
) -> list[float]:
    """The cross-entropies of each text and mask of a batch, summed over the masked tokens."""
    canvas, lengths = stack([text.tokens for text, _ in batch], rows, padded)
    starts, chosen = np.zeros(rows, np.int32), np.zeros((rows, padded), bool)
    for row, (text, mask) in enumerate(batch):
        starts[row] = text.start
        chosen[row, text.start : text.start + mask.size] = mask
    losses = masked_losses(
        bundle.params,
        canvas,
        lengths,
        starts,
        chosen,
        np.float32(cfg_scale),
        None if plan is None else steer_rows(plan, [mask for _, mask in batch], rows, bundle.config),
        config=bundle.config,
        compute=bundle.compute,
        guided=cfg_scale > 0,
    )
    return np.asarray(losses, np.float64)[: len(batch)].tolist()
