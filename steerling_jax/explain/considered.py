"""What a step had to choose from: the candidates of every open position, replayed from the snapshots of a trace.

A snapshot, the canvas before a step, follows from the trace, and so does all that the step saw. The layers run on it
with the text's steering, guidance and clamps, and the logits go through the ranking of decoding itself
(`decoding.step.rank_positions`). The replay's logits differ from those of the run by rounding, so positions that are
nearly equally confident can change places; `ConsideredStep.agrees` says whether the replay chose the same.

Legend: S steps of a call, N branches (2 under guidance), T canvas positions, W the sampler block, D width, V
vocabulary, K candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.bundle import Bundle
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.policies import Policies
from steerling_jax.decoding.text_ids import TextIds
from steerling_jax.decoding.trace import Commit, Trace
from steerling_jax.errors import require
from steerling_jax.explain.finite import require_finite
from steerling_jax.explain.hidden_rows import snapshot_rows, text_hidden
from steerling_jax.explain.replay_programs import Replayed, StepInputs, replay_steps, replay_tokens
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.progress import Progress, no_progress

_STEPS = 8  # steps of a call; one step alone has a program of its own, since it is what a slider asks for


class Candidate(NamedTuple):
    """A token that could have been written at a position.

    probability: after suppression, repetition penalty and bans, as the ranking reads it; the draw also applies the
    temperature. raw_probability: of the model's logits alone.
    """

    token_id: int
    probability: float
    raw_probability: float


class OpenPosition(NamedTuple):
    """A position of the sampler block that was still empty before the step.

    candidates: the most likely tokens, most likely first. entropy: of all their probabilities, in bits. confidence: the
    largest probability. temperature: at which the token would be drawn, 0 for the most likely one, None for a choice of
    the caller's own.
    """

    position: int
    candidates: tuple[Candidate, ...]
    entropy: float
    confidence: float
    temperature: float | None


@dataclass(frozen=True)
class ConsideredStep:
    """What one step had to choose from.

    positions: the open positions of the sampler block, from left to right. order: the same positions in the order in
    which they would be committed. agrees: whether the replay commits the positions of the trace, in its order and,
    where the seed is given, with its tokens; None for a text that was not generated here.
    """

    step: int
    positions: tuple[OpenPosition, ...]
    order: tuple[int, ...]
    agrees: bool | None


def considered(
    bundle: Bundle,
    trace: Trace,
    generation: GenerationConfig | None,
    steps: Sequence[int] | None = None,
    *,
    top: int = 5,
    policies: Policies | None = None,
    progress: Progress = no_progress,
) -> tuple[ConsideredStep, ...]:
    """Returns what each step of a trace had to choose from, by replaying it.

    Args:
        generation: how the text was generated; with its `seed`, the replay also draws the tokens. None for a text that
            was not generated here, whose candidates are those of the model without a penalty.
        steps: numbers of the steps, as in the commits; default, all of them.
        top: the number of candidates for each position.
        policies: those that the text was generated with, in place of what `generation` means.
        progress: called as (stage, done, total) before every call of the device; raising in it cancels the replay.

    Raises `UserError` for a trace of another model, other settings than the trace's, and a step without a commit.

    Example:
        >>> config = sj.GenerationConfig(max_new_tokens=16, seed=1)
        >>> trace = sj.generate(bundle, "Return True if", config).trace
        >>> (first,) = sj.considered(bundle, trace, config, steps=[0])
        >>> len(first.positions), first.agrees
        (8, True)
    """
    trace.check(bundle.config)
    V = bundle.config.vocab_size
    require(1 <= top <= V, f"top is {top}, but it must be from 1 to the vocabulary's size, {V}.", "top")
    by_step = {commit.step: commit for commit in trace.commits}
    numbers = sorted(by_step) if steps is None else list(steps)
    for step in numbers:
        require(step in by_step, f"No token was committed in step {step}; give a step of one of the commits.", "steps")
    commits = [by_step[step] for step in numbers]
    diffusion = isinstance(bundle.config, ModelConfig)
    settings = generation or _neutral(trace)
    if not diffusion:
        settings = settings.plain(bundle.config.context_length, trace.prompt_length)
    elif generation is not None:
        length = settings.canvas_length(bundle.config)
        require(
            trace.prompt_length + length == len(trace.tokens),
            f"The settings are of a canvas of {length} tokens, and the trace's has "
            f"{len(trace.tokens) - trace.prompt_length}; give the settings that it was generated with.",
            "generation",
        )
    replay = _replay_diffusion if diffusion else _replay_tokens
    found: list[ConsideredStep] = []
    for part, positions, result in replay(bundle, trace, commits, settings, policies or Policies(), top, progress):
        for row, commit in enumerate(part):
            own: Replayed = jax.tree.map(lambda leaf, row=row: leaf[row], result)
            step = _considered_step(commit, positions[row], own, settings.seed, TextIds.of(bundle.config).ends)
            found.append(step if generation is not None else dataclasses.replace(step, agrees=None))
    progress("considered", len(commits), len(commits))
    return tuple(found)


_Batches = Iterator[tuple[list[Commit], np.ndarray, Replayed]]  # commits (S,), positions (S, W), results of each


def _neutral(trace: Trace) -> GenerationConfig:
    """Settings that leave the logits as they are, for a text that was not generated here."""
    length = len(trace.tokens) - trace.prompt_length
    return GenerationConfig(max_new_tokens=length, temperature=0.0, repetition_penalty=1.0, use_entropy_sampling=False)


def _replay_diffusion(
    bundle: Bundle,
    trace: Trace,
    commits: list[Commit],
    generation: GenerationConfig,
    policies: Policies,
    top: int,
    progress: Progress,
) -> _Batches:
    """The steps of a diffusion model, some at a time."""
    config, compute = bundle.config, bundle.compute
    W, V, T, P = config.diff_block_size, config.vocab_size, len(trace.tokens), trace.prompt_length
    complete = policies.completed(generation, W, generation.sampler_blocks(config), config.eot_id)
    first_steps: dict[int, int] = {}  # of each sampler block; every step commits, so it is where the block began
    for commit in trace.commits:
        first_steps.setdefault((commit.positions[0] - P) // W, commit.step)
    suppression = jnp.zeros(V) if trace.plan is None else trace.plan.suppression
    for start, part, padded in _parts(commits):
        progress("considered", start, len(commits))
        blocks = np.asarray([(commit.positions[0] - P) // W for commit in padded])
        positions = P + blocks[:, None] * W + np.arange(W)[None, :]
        inside = np.minimum(positions, T - 1)  # a given text can end within a block
        steps = [commit.step for commit in padded]
        canvases = np.stack([trace.snapshot(step) for step in steps])
        inputs = StepInputs(
            hidden=tuple(
                snapshot_rows(bundle, trace, steps, canvases, inside, unconditional=unconditional)
                for unconditional in (False, True)[: 1 + (trace.guidance > 0)]
            ),
            open=(np.take_along_axis(canvases, inside, axis=1) == trace.mask_id) & (positions < T),
            position=positions.astype(np.int32),
            counts=np.stack([np.bincount(canvas, minlength=V).astype(np.int32) for canvas in canvases]),
            step=np.asarray([c.step - first_steps[int(b)] for c, b in zip(padded, blocks)], np.int32),
        )
        result = replay_steps(
            bundle.params,
            inputs,
            complete,
            suppression,
            np.uint32(generation.seed or 0),
            np.float32(trace.guidance),
            np.int32(P),
            trace.clamps,
            top=top,
            config=config,
            compute=compute,
        )
        yield part, positions, jax.device_get(result)


def _replay_tokens(
    bundle: Bundle,
    trace: Trace,
    commits: list[Commit],
    generation: GenerationConfig,
    policies: Policies,
    top: int,
    progress: Progress,
) -> _Batches:
    """The steps of an autoregressive model, whose one open position is the next: one pass serves all of them."""
    config, V = bundle.config, bundle.config.vocab_size
    complete = policies.completed_for_tokens(generation, (*config.eos_token_ids, *(generation.stop_tokens or ())))
    progress("considered", 0, len(commits))
    hidden = text_hidden(bundle, trace)
    for start, part, padded in _parts(commits):
        if start:
            progress("considered", start, len(commits))
        at = np.asarray([commit.positions[0] for commit in padded])
        inputs = StepInputs(
            hidden=hidden[at - 1],
            open=np.ones((len(at), 1), bool),
            position=at[:, None].astype(np.int32),
            counts=np.stack([np.bincount(trace.tokens[:p], minlength=V).astype(np.int32) for p in at]),
            step=(at - trace.prompt_length).astype(np.int32),
        )
        seed = np.uint32(generation.seed or 0)
        result = replay_tokens(bundle.params, inputs, complete, seed, top=top, backbone=bundle.backbone)
        yield part, at[:, None], jax.device_get(result)


def _parts(commits: list[Commit]) -> Iterator[tuple[int, list[Commit], list[Commit]]]:
    """Commits of one call: the number of the first, the commits, and the same padded to the shape of the program."""
    size = 1 if len(commits) == 1 else _STEPS
    for start in range(0, len(commits), size):
        part = commits[start : start + size]
        yield start, part, part + part[:1] * (size - len(part))


def _considered_step(
    commit: Commit, positions: np.ndarray, own: Replayed, seed: int | None, ends: frozenset[int]
) -> ConsideredStep:
    """One step's result; positions (W,), own: leaves of this step."""
    is_open = np.flatnonzero(own.open)
    require_finite(own.confidence[is_open])
    found = []
    for i in is_open.tolist():
        columns = zip(own.token_ids[i].tolist(), own.probabilities[i].tolist(), own.raw_probabilities[i].tolist())
        temperature = float(own.temperature[i])
        found.append(
            OpenPosition(
                int(positions[i]),
                tuple(Candidate(*column) for column in columns),
                float(own.entropy[i]),
                float(own.confidence[i]),
                None if np.isnan(temperature) else temperature,
            )
        )
    order = tuple(positions[own.ranking[: len(is_open)]].tolist())
    n = len(commit.positions)
    # A step ends with the token that ends the turn, even where its schedule has more tokens.
    agrees = order[:n] == commit.positions and (n == own.quota or commit.token_ids[-1] in ends)
    if seed is not None:
        agrees = agrees and tuple(own.drawn[:n].tolist()) == commit.token_ids
    return ConsideredStep(commit.step, tuple(found), order, bool(agrees))
