"""The published generation algorithm in a few lines: no cache, the whole canvas every step. Slow and plain.

Source: `generate_full` of the published package. Sampling is ours (keyed by position), through
`steerling_jax.sampling`.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from steerling_jax.backbone import Injection
from steerling_jax.config import Compute, ModelConfig
from steerling_jax.generation_config import GenerationConfig, SteeringConfig
from steerling_jax.inference import compiled_forward
from steerling_jax.sampling import Adjustment, choice_of, confidence, position_key
from steerling_jax.steering import prepare_steering
from steerling_jax.trace import Commit


def reference_decode(
    params, prompt: np.ndarray, config: ModelConfig, generation: GenerationConfig, seed: int,
    steering: SteeringConfig | None = None,
) -> tuple[np.ndarray, list[Commit]]:  # fmt: skip
    """The final canvas (P + max_new_tokens,) and the commits."""
    P, W, mask = len(prompt), config.diff_block_size, config.mask_token_id
    plan = prepare_steering(params, steering, config=config, compute=Compute())
    choose = choice_of(generation)
    banned = np.isin(np.arange(config.vocab_size), [config.eos_token_id, mask, config.pad_token_id])
    adjust = Adjustment(plan.suppression, jnp.float32(generation.repetition_penalty), jnp.asarray(banned))
    canvas = np.concatenate([prompt, np.full(generation.max_new_tokens, mask)]).astype(np.int32)
    blocks = generation.max_new_tokens // W
    steps = (generation.steps or generation.max_new_tokens) // blocks
    commits: list[Commit] = []

    def logits_of(tokens: np.ndarray, alpha: float) -> np.ndarray:
        injection = None
        if plan.direction is not None:
            direction = jnp.where(jnp.asarray(tokens == mask)[None, :, None], plan.direction[None, None, :], 0.0)
            injection = Injection(direction, jnp.full(1, alpha), jnp.asarray(plan.layer))
        out = compiled_forward(params, jnp.asarray(tokens)[None], config=config, compute=Compute(), injection=injection)
        return np.asarray(out.logits[0])

    for block in range(blocks):
        begin = P + block * W
        for step in range(steps):
            alpha = plan.alpha_after(generation.max_new_tokens - int((canvas == mask).sum()))
            raw = logits_of(canvas, alpha)
            if generation.cfg_scale > 0:
                hidden_prompt = np.where(np.arange(len(canvas)) < P, mask, canvas)
                other = logits_of(hidden_prompt, alpha)
                raw = other + (generation.cfg_scale + 1) * (raw - other)
            masked = begin + np.flatnonzero(canvas[begin : begin + W] == mask)
            count = min(W // steps + (step < W % steps), len(masked))
            if count == 0:
                continue
            on_canvas = jnp.asarray(np.bincount(canvas, minlength=config.vocab_size) > 0)
            logits = adjust(jnp.asarray(raw[masked]), on_canvas)
            sure = np.asarray(confidence(logits))
            picked = (len(masked) - 1 - np.argsort(-sure[::-1], kind="stable"))[:count]  # of ties, the later position
            positions = masked[picked]
            tokens = [int(choose(position_key(seed, p), logits[i])) for i, p in zip(picked, positions)]
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
