"""Autoregressive decoding as a plain loop: the whole text through the model again for each token, without a cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import steerling_jax as sj
from steerling_jax.decoding.sampling import position_key
from steerling_jax.models.edits import LayerEdit


@partial(jax.jit, static_argnames=("backbone",))
def _logits(params, tokens, edits, *, backbone):
    hidden = backbone.run(params, backbone.embed(params, tokens), edits=edits).hidden
    return backbone.logits(params, hidden)


def continue_plainly(
    bundle: sj.Bundle,
    prompt: Sequence[int],
    count: int,
    *,
    length: int,
    edits: Sequence[LayerEdit] = (),
    seed: int = 0,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    penalty: float = 1.0,
) -> tuple[list[int], list[float]]:
    """`count` tokens after the prompt, and their raw logits. length: to which texts are padded with zeros at the end,
    which a causal model does not see, so that one program computes all."""
    text, logits = list(prompt), []
    generated = jnp.asarray(np.arange(length)[None] >= len(prompt))
    placed = tuple(dataclasses.replace(edit, where=generated if edit.generated_only else None) for edit in edits)
    for _ in range(count):
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(text)] = text
        raw = np.asarray(_logits(bundle.params, padded, placed, backbone=bundle.backbone))[0, len(text) - 1]
        scores = raw.astype(np.float64)
        for token in set(text):
            scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
        if temperature == 0:
            token = int(np.argmax(scores))
        else:
            token = _draw(scores / temperature, top_k, top_p, seed, len(text))
        logits.append(float(raw[token]))
        text.append(token)
    return text[len(prompt) :], logits


def _draw(scores: np.ndarray, top_k: int | None, top_p: float, seed: int, position: int) -> int:
    """The Gumbel draw among the k most likely tokens, and of these those whose preceding mass is at most top_p."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[: top_k or len(scores)]
    weights = np.exp(scores[order] - scores.max())
    before = np.concatenate([[0.0], np.cumsum(weights / weights.sum())[:-1]])
    allowed = [i for i, mass in zip(order, before) if mass <= top_p]
    noise = np.asarray(jax.random.gumbel(position_key(seed, position), (len(scores),)))
    return max(allowed, key=lambda i: scores[i] + noise[i])
