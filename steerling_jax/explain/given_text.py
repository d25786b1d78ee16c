"""The trace of a given text, so that text from any source can be explained like generated text.

A diffusion model commits tokens in any order, so there is no single state in which a token of a given text was chosen.
The state used here is that of left-to-right decoding with one token per step: all tokens before a position are
committed, and the position itself and all later ones are masked. The canvas ends where the text ends. An autoregressive
model reads every text in this way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from steerling_jax.bundle import Bundle, encode
from steerling_jax.decoding.text_ids import TextIds
from steerling_jax.decoding.trace import Commit, Trace
from steerling_jax.errors import require
from steerling_jax.explain.committed_logits import committed_logits
from steerling_jax.explain.hidden_rows import hidden_rows
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.resolve import Steering, plan_steering


def given_trace(
    bundle: Bundle,
    prompt: str | Sequence[int],
    continuation: str | Sequence[int],
    steering: Steering | None = None,
) -> Trace:
    """The trace of a text of yours, `continuation` after `prompt`, as if decoded from left to right.

    Everything that explains a generated text takes it: `concept_contributions`, `rank_chunk`, `attribute_inputs`.
    steering: how the model is steered while it reads. Raises `UserError` for an empty text, a text longer than the
    model's context, and a continuation that contains the mask token.

    Example:
        >>> trace = sj.given_trace(bundle, "The zip function returns", " an iterator of tuples.")
        >>> shares = sj.concept_contributions(bundle, trace)
        >>> shares.pieces
        (' an', ' iterator', ' of', ' tuples', '.')
    """
    config = bundle.config
    before = encode(bundle, prompt, "The prompt")
    after = encode(bundle, continuation, "The continuation", prefix=False)
    P, T, mask = len(before), len(before) + len(after), TextIds.of(config).mask
    most = config.context_length
    require(most >= T, f"The text has {T} tokens, more than the model's context of {most}.")
    require(mask not in after, f"The continuation contains the mask token, id {mask}; remove it.")
    tokens = np.concatenate([before, after])
    commits = [Commit(step, (P + step,), (int(token),), (0.0,)) for step, token in enumerate(after)]
    plan = None if steering is None else plan_steering(bundle, steering)
    features = () if plan is None else plan.features
    trace = Trace(
        before,
        tokens,
        tuple(commits),
        mask,
        plan=plan if isinstance(config, ModelConfig) else None,
        passes=len(commits),
        edits=tuple(one.edit() for one in features),
        edit_labels=tuple(one.describe() for one in features),
    )
    trace = dataclasses.replace(trace, hidden=hidden_rows(bundle, trace))
    logits = committed_logits(bundle, trace)
    complete = (commit._replace(target_logits=(float(logit),)) for commit, logit in zip(commits, logits, strict=True))
    return dataclasses.replace(trace, commits=tuple(complete)).with_pieces(bundle.tokenizer)
