"""The published generation algorithm (`generate_full`), block by block, with finished keys and values cached.

The canvas is the prompt and then masks. Sampler blocks of W positions are filled one after the other; each runs on the
device as one program (`block_decoding`), and the few programs serve every prompt length, number of steps and setting.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax import block_decoding as bd
from steerling_jax.backbone import Params, unstack_layers
from steerling_jax.config import Compute, ModelConfig
from steerling_jax.generation_config import GenerationConfig, SteeringConfig
from steerling_jax.sampling import Adjustment, choice_of
from steerling_jax.steering import Steering, prepare_steering
from steerling_jax.trace import Commit, Trace

_CHUNK = 8  # attention blocks of a long prompt that are run at once


@dataclass(frozen=True)
class BlockDone:
    """A sampler block is written. number: 1 to blocks; canvas: ids (P + max_new_tokens,) int32 so far."""

    number: int
    blocks: int
    commits: tuple[Commit, ...]
    canvas: np.ndarray


def decode(
    params: Params, prompt: np.ndarray, *, config: ModelConfig, compute: Compute, generation: GenerationConfig,
    seed: int, steering: SteeringConfig | None = None, record_hidden: bool = True,
) -> Iterator[BlockDone | Trace]:  # fmt: skip
    """Continues `prompt` (P,): a `BlockDone` after each sampler block, at last the `Trace`.

    seed: of the draws, in place of the configuration's. Raises `UserError` where model, prompt and settings
    do not agree.
    """
    generation.check(config, [int(i) for i in prompt])
    run = _Run.start(params, prompt, config, compute, generation, seed, steering)
    commits: list[Commit] = []
    hidden: list[np.ndarray] = []
    blocks = generation.sampler_blocks(config)
    for number in range(blocks):
        fresh, rows, ended = run.fill(number, record_hidden)
        commits += fresh
        hidden += [] if rows is None else [rows]
        yield BlockDone(number + 1, blocks, tuple(fresh), run.canvas.copy())
        if ended or np.isin(run.generated(number + 1), generation.stop_tokens or ()).any():
            break
    rows = np.concatenate(hidden) if record_hidden else None
    yield Trace(np.asarray(prompt, np.int32), run.canvas, tuple(commits), config.mask_token_id, rows)


def compiled_programs() -> int:
    """Number of decoding programs compiled so far in this process."""
    programs: tuple[Any, ...] = (bd.decode_block, bd.extend_cache, bd.append_slot)
    return sum(program._cache_size() for program in programs)


def cache_capacity(blocks: int) -> int:
    """Attention blocks to make room for when `blocks` are needed: even, of few sizes, at most a quarter too many."""
    step = max(2, 1 << max(blocks.bit_length() - 3, 0))
    return max(-(-blocks // step), 1) * step


@dataclass
class _Run:
    """One generation under way. The cache holds `cached` positions, all final."""

    params: Params
    config: ModelConfig
    compute: Compute
    rules: bd.Rules
    steering: Steering
    canvas: np.ndarray
    prompt_length: int
    steps: int
    branches: int
    rebuilds: bool  # whether a change of the injection reaches the cache, through masks in finished blocks
    cache: bd.LayerCaches = ()
    cached: int = 0
    cached_alpha: float = 0.0

    @classmethod
    def start(cls, params, prompt, config, compute, generation: GenerationConfig, seed: int, steering) -> _Run:
        W, V, P = config.diff_block_size, config.vocab_size, len(prompt)
        plan = prepare_steering(params, steering, config=config, compute=compute)
        canvas = np.full(P + generation.max_new_tokens, config.mask_token_id, np.int32)
        canvas[:P] = prompt
        never = jnp.array([config.eos_token_id, config.mask_token_id, config.pad_token_id])
        banned = jnp.zeros(V, bool).at[never].set(True)
        steps = (generation.steps or generation.max_new_tokens) // generation.sampler_blocks(config)
        branches = 2 if generation.cfg_scale > 0 else 1
        rules = bd.Rules(
            adjustment=Adjustment(plan.suppression, jnp.float32(generation.repetition_penalty), banned),
            choice=choice_of(generation),
            seed=jnp.uint32(seed),
            total=jnp.int32(len(canvas)),
            prompt=jnp.int32(P),
            base=jnp.int32(W // steps),
            extra=jnp.int32(W % steps),
            eot=jnp.int32(-1 if config.eot_id is None else config.eot_id),
            guidance=jnp.float32(generation.cfg_scale),
            direction=plan.direction,
            layer=jnp.int32(plan.layer),
        )
        rebuilds = branches == 2 or bool((canvas[:P] == config.mask_token_id).any())
        return cls(unstack_layers(params), config, compute, rules, plan, canvas, P, steps, branches, rebuilds)

    def generated(self, blocks: int) -> np.ndarray:
        """Ids of the first `blocks` sampler blocks."""
        return self.canvas[self.prompt_length : self.prompt_length + blocks * self.config.diff_block_size]

    def fill(self, number: int, record_hidden: bool) -> tuple[list[Commit], np.ndarray | None, bool]:
        """Writes sampler block `number`: its commits, their hidden rows, and whether a turn has ended."""
        W = self.config.diff_block_size
        begin = self.prompt_length + number * W
        first = (begin - 1) // W * W  # A's first position
        window = np.full(2 * W, self.config.mask_token_id, np.int32)
        inside = self.canvas[first : first + 2 * W]
        window[: len(inside)] = inside
        counts = np.bincount(self.canvas, minlength=self.config.vocab_size).astype(np.int32)
        slot = bd.empty_cache(self.config, self.compute, self.branches, W)
        state = bd.start_block(jnp.asarray(window), jnp.asarray(counts), slot, self.config, self.compute)
        committed, ended = 0, False
        while committed < W and not ended:
            alpha, patience = self._strength(committed)
            self._cache_before(first, alpha)
            state = bd.decode_block(
                self.params, self.cache, state, jnp.int32(first), jnp.int32(begin), jnp.float32(alpha),
                jnp.int32(patience), self.rules, config=self.config, compute=self.compute,
            )  # fmt: skip
            committed, ended = (x.item() for x in jax.device_get((state.committed, state.ended)))
            if committed < W and not ended:
                state = state.replace(stale=jnp.bool_(True))  # the injection changes now, also in A
        self._keep_slot(state, first, ended)
        return self._write(number, begin, state.record, committed, ended, record_hidden)

    def _strength(self, committed: int) -> tuple[float, int]:
        """Injection strength now, and at how many commits in this block it changes."""
        W, steering = self.config.diff_block_size, self.steering
        unwritten = int((self.canvas == self.config.mask_token_id).sum()) - committed
        written = len(self.canvas) - self.prompt_length - unwritten
        alpha = steering.alpha_after(written) if steering.direction is not None else 0.0
        changes = alpha != 0.0 and steering.cutoff is not None
        return alpha, committed + (steering.cutoff or 0) - written if changes else W

    def _cache_before(self, end: int, alpha: float) -> None:
        """Runs what lies before position `end` and is not in the cache yet."""
        W = self.config.diff_block_size
        if not self.cache:
            last = (len(self.canvas) - W - 1) // W  # attention blocks before the last window
            self.cache = bd.empty_cache(self.config, self.compute, self.branches, cache_capacity(last) * W)
        if self.rebuilds and alpha != self.cached_alpha:
            self.cached = 0
        self.cached_alpha = alpha
        while self.cached < end:
            many = _CHUNK if end - self.cached >= _CHUNK * W else 1
            tokens = jnp.asarray(self.canvas[self.cached : self.cached + many * W])
            self.cache = bd.extend_cache(
                self.params, self.cache, tokens, jnp.int32(self.cached), jnp.float32(alpha), self.rules,
                config=self.config, compute=self.compute,
            )  # fmt: skip
            self.cached += many * W

    def _keep_slot(self, state: bd.BlockState, first: int, ended: bool) -> None:
        """A is finished now; where its keys and values are up to date they go into the cache."""
        W = self.config.diff_block_size
        capacity = self.cache[0][0].shape[2]
        if not ended and self.cached == first and first + W <= capacity and not bool(state.stale):
            self.cache = bd.append_slot(self.cache, state.slot, jnp.int32(first))
            self.cached = first + W

    def _write(self, number, begin, record: bd.Record, committed: int, ended: bool, record_hidden: bool):
        """Commits to the canvas."""
        record = record if record_hidden else dataclasses.replace(record, hidden=jnp.zeros(0))
        r = jax.tree.map(lambda a: a[:committed], jax.device_get(record))
        positions = begin + r.offset
        self.canvas[positions] = r.token
        if ended:  # what follows an end of turn is overwritten, written or not; masks before it stay
            self.canvas[positions[-1] + 1 :] = self.config.eos_token_id
        commits = []
        for step in np.unique(r.step):
            rows = r.step == step
            commits.append(
                Commit(
                    number * self.steps + int(step),
                    tuple(positions[rows].tolist()),
                    tuple(r.token[rows].tolist()),
                    tuple(r.logit[rows].tolist()),
                )
            )
        return commits, r.hidden.astype(np.float32) if record_hidden else None, ended
