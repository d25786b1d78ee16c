"""A request to the decoder, its events, and its state on the host: canvas, commits, trace."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import numpy as np

from steerling_jax.decoding.block_loop import BlockRecord
from steerling_jax.decoding.generation_config import GenerationConfig
from steerling_jax.decoding.policies import Policies
from steerling_jax.decoding.request_edits import check_edits
from steerling_jax.decoding.trace import Commit, Trace
from steerling_jax.errors import require
from steerling_jax.models.edits import LayerEdit
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.steering.plan import SteeringPlan


@dataclass(frozen=True)
class Request:
    """One text to write.

    prompt: ids (P,). seed: of the draws; it overrides the configuration's. policies: override what the configuration
    means. drafts: canvases that a pass reads; more than 1 for lossless drafting. record_hidden: keep the committed
    positions' hidden rows in the trace. edits: changes to layers' outputs, after those of `steering`. edit_labels: of
    those that have a name, for the trace.
    """

    prompt: np.ndarray
    generation: GenerationConfig
    seed: int
    steering: SteeringPlan | None = None
    policies: Policies = field(default_factory=Policies)
    drafts: int = 1
    record_hidden: bool = False
    edits: tuple[LayerEdit, ...] = ()
    edit_labels: tuple[str, ...] = ()

    def check(self, config: ModelConfig) -> None:
        """Raises `UserError` if this diffusion model cannot write it."""
        check_edits(self.edits, config)
        self.generation.check(config, [int(i) for i in self.prompt])
        require(0 <= self.seed < 2**32, f"seed is {self.seed}, but it must be from 0 to {2**32 - 1}.")
        most = config.diff_block_size
        require(1 <= self.drafts <= most, f"drafts is {self.drafts}, but it must be from 1 to the block, {most}.")


@dataclass(frozen=True)
class Committed:
    """Tokens committed since the last event. canvas: ids (P + canvas length,) int32 so far."""

    commits: tuple[Commit, ...]
    canvas: np.ndarray


@dataclass(frozen=True)
class BlockDone:
    """A sampler block is complete. number: from 1 to `blocks`. canvas: ids (P + canvas length,) int32 so far."""

    number: int
    blocks: int
    commits: tuple[Commit, ...]
    canvas: np.ndarray


Event = Committed | BlockDone | Trace


class RequestState:
    """A request in progress: what the host knows of it between passes."""

    def __init__(self, ticket: int, request: Request, config: ModelConfig):
        self.ticket, self.request, self.config = ticket, request, config
        generation, W, P = request.generation, config.diff_block_size, len(request.prompt)
        self.canvas = np.full(P + generation.canvas_length(config), config.mask_token_id, np.int32)
        self.canvas[:P] = request.prompt
        self.blocks = generation.sampler_blocks(config)
        self.steps = (generation.steps or generation.canvas_length(config)) // self.blocks
        if request.policies.schedule is not None:
            self.steps = W  # a schedule of its own takes at most so many steps a block
        self.policies = request.policies.completed(generation, W, self.blocks, config.eot_id)
        self.number = 0  # of the current sampler block, from 0
        self.ended = False
        self.commits: list[Commit] = []
        self.hidden: list[np.ndarray] = []
        self.passes = 0
        self.reported = 0  # commits of this block that events have reported

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt)

    @property
    def begin(self) -> int:
        """The sampler block's first position."""
        return self.prompt_length + self.number * self.config.diff_block_size

    @property
    def first(self) -> int:
        """A's first position."""
        W = self.config.diff_block_size
        return (self.begin - 1) // W * W

    @property
    def window(self) -> np.ndarray:
        """Ids (2W,) of A and B; masks past the canvas."""
        W = self.config.diff_block_size
        window = np.full(2 * W, self.config.mask_token_id, np.int32)
        inside = self.canvas[self.first : self.first + 2 * W]
        window[: len(inside)] = inside
        return window

    def written(self, committed: int) -> int:
        """Tokens written so far, `committed` of them in this block."""
        return self.number * self.config.diff_block_size + committed

    def new_commits(self, record: BlockRecord, committed: int) -> Committed | None:
        """The commits of this block that no event has reported; record: the block's, (W,) each, on the host."""
        if committed == self.reported:
            return None
        fresh = self._commits(record, self.reported, committed)
        self.reported = committed
        canvas = self.canvas.copy()
        canvas[self.begin + record.offset[:committed]] = record.token[:committed]
        return Committed(tuple(fresh), canvas)

    def finish_block(self, record: BlockRecord, committed: int, ended: bool, passes: int) -> BlockDone:
        """Writes the block to the canvas. As published, ids after an end of turn are overwritten by eos, and positions
        before it that are still masked stay masked."""
        r = jax.tree.map(lambda a: a[:committed], record)
        positions = self.begin + r.offset
        self.canvas[positions] = r.token
        if ended:
            self.canvas[positions[-1] + 1 :] = self.config.eos_token_id
        fresh = self._commits(record, 0, committed)
        self.commits += fresh
        if self.request.record_hidden:
            self.hidden.append(r.hidden.astype(np.float32))
        self.number, self.reported = self.number + 1, 0
        self.passes += passes
        text = self.canvas[self.prompt_length : self.begin]
        stopped = np.isin(text, self.request.generation.stop_tokens or ()).any()
        self.ended = ended or bool(stopped) or self.number == self.blocks
        return BlockDone(self.number, self.blocks, tuple(fresh), self.canvas.copy())

    def trace(self) -> Trace:
        """The record of the whole generation."""
        hidden = np.concatenate(self.hidden) if self.request.record_hidden else None
        request, prompt = self.request, np.asarray(self.request.prompt, np.int32)
        return Trace(
            prompt,
            self.canvas,
            tuple(self.commits),
            self.config.mask_token_id,
            hidden,
            request.steering,
            request.generation.cfg_scale,
            self.passes,
            edits=request.edits,
            edit_labels=request.edit_labels,
        )

    def _commits(self, record: BlockRecord, start: int, end: int) -> list[Commit]:
        found = []
        steps = record.step[start:end]
        for step in np.unique(steps):
            rows = start + np.flatnonzero(steps == step)
            found.append(
                Commit(
                    self.number * self.steps + int(step),
                    tuple((self.begin + record.offset[rows]).tolist()),
                    tuple(record.token[rows].tolist()),
                    tuple(record.logit[rows].tolist()),
                )
            )
        return found
