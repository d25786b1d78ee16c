"""The trace of a given text, so that text from any source can be explained like generated text.

A diffusion model commits tokens in any order, so there is no single state in which a token of a given text was chosen.
The state used here is that of left-to-right decoding with one token per step: all tokens before a position are
committed, and the position itself and all later ones are masked. The canvas ends where the text ends.

Legend: n tokens, D width, V vocabulary.
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
from steerling_jax.models.backbone import Params
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.backbone import lm_logits
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.decompose import logit_features

_ROWS = 64  # positions per call, which has logits (_ROWS, V) in memory


def given_trace(bundle: Bundle, prompt: str | Sequence[int], continuation: str | Sequence[int]) -> Trace:
    """The trace of `continuation` after `prompt` as if decoded from left to right, with hidden rows and logits.

    Raises `UserError` for an empty text, a text longer than the model's context, and a continuation that contains the
    mask token.
    """
    config = bundle.config
    before = encode(bundle, prompt, "The prompt")
    after = encode(bundle, continuation, "The continuation")
    P, T = len(before), len(before) + len(after)
    require(config.block_size >= T, f"The text has {T} tokens, more than the model's context of {config.block_size}.")
    require(
        config.mask_token_id not in after,
        f"The continuation contains the mask token, id {config.mask_token_id}; remove it.",
    )
    tokens = np.concatenate([before, after])
    commits = [Commit(step, (P + step,), (int(token),), (0.0,)) for step, token in enumerate(after)]
    trace = Trace(before, tokens, tuple(commits), config.mask_token_id, passes=len(commits))
    hidden = hidden_rows(bundle, trace)
    logits = np.concatenate(
        [_logits(bundle, hidden[i : i + _ROWS], after[i : i + _ROWS]) for i in range(0, len(after), _ROWS)]
    )
    complete = (commit._replace(target_logits=(float(logit),)) for commit, logit in zip(commits, logits, strict=True))
    return dataclasses.replace(trace, commits=tuple(complete), hidden=hidden)


def _logits(bundle: Bundle, hidden: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Logits (n,) float32 of tokens (n,) for hidden rows (n, D), with n at most `_ROWS`."""
    pad = _ROWS - len(tokens)
    logits = _token_logits(
        bundle.params,
        np.pad(hidden, ((0, pad), (0, 0))),
        np.pad(tokens, (0, pad)),
        config=bundle.config,
        compute=bundle.compute,
    )
    return np.asarray(logits)[: len(tokens)]


@partial(jax.jit, static_argnames=("config", "compute"))
def _token_logits(
    params: Params, hidden: jax.Array, tokens: jax.Array, *, config: ModelConfig, compute: Compute
) -> jax.Array:
    features = logit_features(params, hidden.astype(compute.dtype), config, compute)
    logits = lm_logits(params, features, compute).astype(jnp.float32)
    return jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0]
