"""A trace of a text that was there already, so that it can be explained like one that was generated.

A diffusion model writes in any order, so a given text has no one state in which a token was chosen. The state taken
here is the one of a writer from left to right, one token a step: all that stands before a token is written, the token
and all that follows are masks. The canvas ends where the text ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle, encode
from steerling_jax.decoding.trace import Commit, Trace
from steerling_jax.errors import require
from steerling_jax.explain.contributions import hidden_rows
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import Params
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import lm_logits, logit_features

_ROWS = 64  # positions whose logits (_ROWS, V) are held at once


def given_trace(bundle: Bundle, prompt: str | Sequence[int], continuation: str | Sequence[int]) -> Trace:
    """The trace of `continuation` after `prompt`, as if written from left to right, with its hidden rows.

    Raises `UserError` for an empty text, and for one that is longer than the model's context.
    """
    config = bundle.config
    before = encode(bundle, prompt, "The prompt")
    after = encode(bundle, continuation, "The continuation")
    P, T = len(before), len(before) + len(after)
    require(config.block_size >= T, f"The text has {T} tokens, more than the model's context of {config.block_size}.")
    require(
        config.mask_token_id not in after,
        f"The continuation holds the mask, id {config.mask_token_id}, which is no token of a text; leave it out.",
    )
    tokens = np.concatenate([before, after])
    commits = [Commit(step, (P + step,), (int(token),), (0.0,)) for step, token in enumerate(after)]
    trace = Trace(before, tokens, tuple(commits), config.mask_token_id, passes=len(commits))
    hidden = hidden_rows(bundle, trace)
    logits = np.concatenate(
        [_logits(bundle, hidden[i : i + _ROWS], after[i : i + _ROWS]) for i in range(0, len(after), _ROWS)]
    )
    logged = (commit._replace(target_logits=(float(logit),)) for commit, logit in zip(commits, logits, strict=True))
    return dataclasses.replace(trace, commits=tuple(logged), hidden=hidden)


def _logits(bundle: Bundle, hidden: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """hidden (n, D) and tokens (n,) to the tokens' logits (n,) float32, n at most _ROWS."""
    pad = _ROWS - len(tokens)
    found = _token_logits(
        bundle.params,
        np.pad(hidden, ((0, pad), (0, 0))),
        np.pad(tokens, (0, pad)),
        config=bundle.config,
        compute=bundle.compute,
    )
    return np.asarray(found)[: len(tokens)]


@partial(jax.jit, static_argnames=("config", "compute"))
def _token_logits(
    params: Params, hidden: jax.Array, tokens: jax.Array, *, config: ModelConfig, compute: Compute
) -> jax.Array:
    features = logit_features(params, hidden.astype(compute.dtype), config, compute)
    logits = lm_logits(params, features, compute).astype(jnp.float32)
    return jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
