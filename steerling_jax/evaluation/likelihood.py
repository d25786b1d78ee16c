"""A bound on the likelihood of a text that a masked model can give: the average over random maskings.

Mask m of a continuation's n tokens at random, score those m, divide by m / n: the expectation over m uniform in 1 … n
is a bound on −log p(continuation | context). Source: the published package's evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from steerling_jax.bundle import Bundle, check_token_ids
from steerling_jax.errors import require
from steerling_jax.models.backbone import Params
from steerling_jax.models.batching import by_length, padding_mask, stack
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import embed_tokens, run_backbone
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import lm_logits, logit_features

_ROWS = 128  # positions scored at once: their logits are (_ROWS, V)

Part = str | Sequence[int]


class _Text(NamedTuple):
    """tokens (n,) int32: the context's, then the continuation's from `start` on."""

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
) -> float:
    """The bound on log p(continuation | context) in nats, for the whole continuation; 0.0 for an empty one.

    samples: maskings drawn; seed: of the draw, which does not depend on `batch_size`. cfg_scale: guidance, logits
    `uncond + (scale + 1)(cond − uncond)` with the context masked in `uncond`; what comes out is then a score and no
    bound. Mask ids within the context are read, not scored. Raises `UserError` for bad values and for texts longer than
    the model's context.
    """
    return log_likelihoods(
        bundle, [(context, continuation)], samples=samples, seed=seed, batch_size=batch_size, cfg_scale=cfg_scale
    )[0]


def log_likelihoods(
    bundle: Bundle,
    pairs: Sequence[tuple[Part, Part]],
    *,
    samples: int = 128,
    seed: int = 0,
    batch_size: int = 16,
    cfg_scale: float = 0.0,
) -> list[float]:
    """`log_likelihood` of each (context, continuation), many in one pass: the same numbers, up to rounding."""
    found = dict(score_pairs(bundle, pairs, samples=samples, seed=seed, batch_size=batch_size, cfg_scale=cfg_scale))
    return [found[number] for number in range(len(pairs))]


def score_pairs(
    bundle: Bundle, pairs: Sequence[tuple[Part, Part]], *, samples: int, seed: int, batch_size: int, cfg_scale: float
) -> Iterator[tuple[int, float]]:
    """`log_likelihoods` as they are found, (number of the pair, value), the shortest texts first.

    A batch holds maskings of one or of many pairs, padded to one of a few lengths (`batching.padded_length`), each with
    one program. Every pair is drawn with the same seed, so that texts of equal length are masked alike: what is
    compared, answers to one question say, differs by less noise.
    """
    for name, value in (("samples", samples), ("batch_size", batch_size)):
        require(value >= 1, f"{name} is {value}, but it must be at least 1.")
    require(
        cfg_scale >= 0 and math.isfinite(cfg_scale), f"cfg_scale is {cfg_scale}, but it must be a number from 0 on."
    )
    texts = [_text(bundle, pair, "context and continuation") for pair in pairs]
    for padded, numbers in by_length([len(text.tokens) for text in texts], bundle.config).items():
        rows = _maskings(texts, numbers, samples, seed)
        totals, left = dict.fromkeys(numbers, 0.0), dict.fromkeys(numbers, samples)
        while batch := list(islice(rows, batch_size)):
            losses = _losses(bundle, [(texts[number], mask) for number, mask in batch], batch_size, padded, cfg_scale)
            for (number, mask), loss in zip(batch, losses, strict=True):
                totals[number] += loss * mask.size / mask.sum()
                left[number] -= 1
                if not left[number]:
                    yield number, -totals.pop(number) / samples
        yield from ((number, 0.0) for number in totals)  # nothing to score


def draw_masks(length: int, samples: int, seed: int) -> np.ndarray:
    """Which of `length` tokens each sample masks, (samples, length) bool.

    Counts are spread evenly over 1 … length from a random start, so that each is uniform while their average hardly
    varies (published: a start for every 32 samples); which tokens is a random order for each sample.
    """
    start_key, order_key = jax.random.split(jax.random.key(seed))
    start = int(jax.random.randint(start_key, (), 0, length))
    counts = (start + np.arange(samples) * length // samples) % length + 1
    width = 1 << (length - 1).bit_length()  # few shapes, so that drawing is compiled a few times only
    order = np.asarray(jax.random.uniform(order_key, (samples, width)))[:, :length].argsort(axis=1)
    return order < counts[:, None]


def _text(bundle: Bundle, pair: tuple[Part, Part], what: str) -> _Text:
    before, after = split(bundle, *pair)
    if not after:
        return _Text(np.zeros(0, np.int32), 0)
    return _Text(check_token_ids(before + after, bundle.config, what)[0], len(before))


def split(bundle: Bundle, context: Part, continuation: Part) -> tuple[list[int], list[int]]:
    """Ids of both. Texts are encoded together, spaces at the seam going to the continuation (published)."""
    if not isinstance(context, str) or not isinstance(continuation, str):
        ids = [bundle.tokenizer.encode(part) if isinstance(part, str) else part for part in (context, continuation)]
        return [int(i) for i in ids[0]], [int(i) for i in ids[1]]
    stem = context.rstrip()
    continuation, context = context[len(stem) :] + continuation, stem
    before = list(bundle.tokenizer.encode(context)) if context else []
    return before, list(bundle.tokenizer.encode(context + continuation))[len(before) :]


def _maskings(texts: list[_Text], numbers: list[int], samples: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the text, which of its continuation's tokens are masked), sample by sample."""
    for number in numbers:
        length = len(texts[number].tokens) - texts[number].start
        if length:
            yield from ((number, mask) for mask in draw_masks(length, samples, seed))


def _losses(
    bundle: Bundle, batch: list[tuple[_Text, np.ndarray]], rows: int, padded: int, cfg_scale: float
) -> list[float]:
    """Cross-entropies, summed over the masked tokens, of each text and mask of a batch."""
    canvas, lengths = stack([text.tokens for text, _ in batch], rows, padded)
    starts, chosen = np.zeros(rows, np.int32), np.zeros((rows, padded), bool)
    for row, (text, mask) in enumerate(batch):
        starts[row] = text.start
        chosen[row, text.start : text.start + mask.size] = mask
    losses = _masked_losses(
        bundle.params,
        canvas,
        lengths,
        starts,
        chosen,
        np.float32(cfg_scale),
        config=bundle.config,
        compute=bundle.compute,
        guided=cfg_scale > 0,
    )
    return np.asarray(losses, np.float64)[: len(batch)].tolist()


@partial(jax.jit, static_argnames=("config", "compute", "guided"))
def _masked_losses(
    params: Params,
    canvas: jax.Array,
    lengths: jax.Array,
    starts: jax.Array,
    chosen: jax.Array,
    cfg_scale: jax.Array,
    *,
    config: ModelConfig,
    compute: Compute,
    guided: bool,
) -> jax.Array:
    """Cross-entropies (B,) summed over the chosen, masked positions (B, T) of a canvas (B, T).

    lengths (B,): where padding begins; starts (B,): where the continuation begins.
    """
    B, T = canvas.shape
    tokens = jnp.where(chosen, config.mask_token_id, canvas)
    mask = padding_mask(lengths, T, config.diff_block_size)
    if guided:
        in_context = jnp.arange(T)[None, :] < starts[:, None]
        tokens = jnp.concatenate([tokens, jnp.where(in_context, config.mask_token_id, tokens)])
        mask = jnp.concatenate([mask, mask])
    x = embed_tokens(params, tokens, compute)
    hidden = run_backbone(params, x, config=config, compute=compute, attention=mask).hidden
    passes = hidden.reshape(-1, B * T, hidden.shape[-1])  # with the context, and without it where guided
    count = jnp.sum(chosen)
    index = jnp.nonzero(chosen.reshape(-1), size=-(-B * T // _ROWS) * _ROWS, fill_value=0)[0]

    def score(number: jax.Array, losses: jax.Array) -> jax.Array:
        """Adds the losses of one slice of the chosen positions."""
        at = jax.lax.dynamic_slice_in_dim(index, number * _ROWS, _ROWS)
        cond, *uncond = (
            lm_logits(params, logit_features(params, rows[at], config, compute), compute) for rows in passes
        )
        logits = uncond[0] + (cfg_scale + 1) * (cond - uncond[0]) if guided else cond
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, canvas.reshape(-1)[at])
        real = number * _ROWS + jnp.arange(_ROWS) < count
        return losses.at[at // T].add(jnp.where(real, nats, 0.0))

    return jax.lax.fori_loop(0, (count + _ROWS - 1) // _ROWS, score, jnp.zeros(B))
