"""The published generation algorithm in a few lines: no cache, the whole canvas at every step.

Source: `generate_full` of the published package. The policies are those of this package, called on
the logits of the whole canvas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.policies import Policies, StepView
from steerling_jax.decoding.trace import Commit
from steerling_jax.decoding.window import steering_edits
from steerling_jax.models.compute import Compute
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.heads import Clamps
from steerling_jax.models.steerling.model import compiled_forward
from steerling_jax.steering.plan import SteeringPlan, prepare_steering


def reference_decode(
    params,
    prompt: np.ndarray,
    config: ModelConfig,
    generation: GenerationConfig,
    seed: int,
    steering=None,
    policies: Policies | None = None,
    edits: Sequence[LayerEdit] = (),
) -> tuple[np.ndarray, list[Commit]]:
    """The final canvas (P + max_new_tokens,) and the commits."""
    P, W, mask = len(prompt), config.diff_block_size, config.mask_token_id
    plan = prepare_steering(params, steering, config=config, compute=Compute())
    banned = np.isin(np.arange(config.vocab_size), [config.eos_token_id, mask, config.pad_token_id])
    canvas = np.concatenate([prompt, np.full(generation.max_new_tokens, mask)]).astype(np.int32)
    blocks = generation.max_new_tokens // W
    steps = (generation.steps or generation.max_new_tokens) // blocks
    policy: Any = (policies or Policies()).completed(generation, W, blocks, config.eot_id)
    commits: list[Commit] = []

    for block in range(blocks):
        begin = P + block * W
        for step in range(steps):
            written = sum(len(commit.positions) for commit in commits)
            raw = canvas_logits(params, canvas, P, written, plan, config, generation.cfg_scale, edits)
            masked = begin + np.flatnonzero(canvas[begin : begin + W] == mask)
            if len(masked) == 0:
                continue
            view = StepView(
                jnp.asarray(raw[masked]) - plan.suppression[None, :],
                jnp.ones(len(masked), bool),
                jnp.asarray(masked),
                jnp.asarray(np.bincount(canvas, minlength=config.vocab_size)),
                jnp.asarray(step),
                jnp.uint32(seed),
                jnp.zeros(len(masked), jnp.int32),
            )
            logits = jnp.where(jnp.asarray(banned)[None, :], -jnp.inf, policy.penalty(view))
            view = dataclasses.replace(view, logits=logits)
            order, count = np.asarray(policy.order(view)), min(int(policy.schedule(view)), len(masked))
            if count == 0:
                continue
            picked = (len(masked) - 1 - np.argsort(-order[::-1], kind="stable"))[:count]  # of ties, the later position
            positions = masked[picked]
            tokens = np.asarray(policy.choice(view.at(jnp.asarray(picked)))).tolist()
            if config.eot_id in tokens:
                tokens = tokens[: tokens.index(config.eot_id) + 1]
                positions = positions[: len(tokens)]
            canvas[positions] = tokens
            targets = tuple(float(raw[p, t]) for p, t in zip(positions, tokens))
            commits.append(Commit(block * steps + step, tuple(map(int, positions)), tuple(tokens), targets))
            if tokens[-1] == config.eot_id:
                canvas[positions[-1] + 1 :] = config.eos_token_id
                return canvas, commits
        if np.isin(canvas[P : begin + W], generation.stop_tokens or ()).any():
            break
    return canvas, commits


def canvas_logits(
    params,
    canvas: np.ndarray,
    P: int,
    written: int,
    plan: SteeringPlan,
    config: ModelConfig,
    guidance: float = 0.0,
    edits: Sequence[LayerEdit] = (),
) -> np.ndarray:
    """The logits (T, V) of a canvas (T,) whose first P tokens are the prompt and of whose others `written` are set."""
    mask, at = config.mask_token_id, np.arange(len(canvas))

    def logits_of(tokens: np.ndarray) -> np.ndarray:
        tables = [jnp.asarray(table)[None] for table in plan.tables(written, config.n_layers)]
        steered = steering_edits(tokens[None], (at < P)[None], mask, *tables)
        after_prompt = jnp.asarray(at >= P)[None]
        own = [dataclasses.replace(e, where=after_prompt if e.generated_only else None) for e in edits]
        clamps: dict = {}
        if (clamped := plan.clamps) is not None:
            start, end = clamped.offsets or (0, len(tokens))
            where = jnp.asarray((at >= P + start) & (at < P + end))
            for name, values in (("known_clamps", clamped.known), ("discovered_clamps", clamped.discovered)):
                if values:
                    clamps[name] = Clamps(jnp.array(list(values)), jnp.array(list(values.values())), where)
            clamps["epsilon"] = clamped.epsilon
        out = compiled_forward(
            params, jnp.asarray(tokens)[None], config=config, compute=Compute(), edits=(*steered, *own), **clamps
        )
        return np.asarray(out.logits[0])

    raw = logits_of(canvas)
    if guidance > 0:
        other = logits_of(np.where(at < P, mask, canvas))
        raw = other + (guidance + 1) * (raw - other)
    return raw
