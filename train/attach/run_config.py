"""The configuration of a run that makes a bottleneck for a model (`steerling attach`)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from steerling_jax.autoencoders.training_step import AutoencoderRecipe
from steerling_jax.errors import require


@dataclass(frozen=True, kw_only=True)
class AttachRun:
    """A run that trains a TopK dictionary on a model's hidden rows after the final norm, in two stages.

    model: what `sj.load` takes.
    reconstruct: the first stage, on the rows themselves, in the coordinates of `output_metric`.
    match: the second stage, on the divergence of the model's distribution, from the first one's dictionary.
    texts: files, folders and patterns of documents; empty for the documentation and source code of this Python.
    seq_len: T, tokens of a window of text. windows: windows of a pass of the model.
    max_tokens: tokens of the texts that are used (None: all); each gives a hidden row, in memory and on disk with
    2 bytes for each of its numbers.
    held_out: tokens at the end of these that are kept for the evaluation.
    top: m, tokens of a row's distribution that the second stage counts exactly. sampled: n, tokens that stand for the
    others; both are exact from the size of the vocabulary on.
    seed: of the initial dictionary, the order of rows and the sampled tokens.
    log_every, checkpoint_every, checkpoint_minutes, keep: see `AutoencoderRun`.
    """

    model: str
    reconstruct: AutoencoderRecipe
    match: AutoencoderRecipe
    texts: tuple[str, ...] = ()
    seq_len: int = 256
    windows: int = 8
    max_tokens: int | None = None
    held_out: int = 16_384
    top: int = 64
    sampled: int = 4096
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    checkpoint_minutes: float | None = 5.0
    keep: int = 2

    def __post_init__(self) -> None:
        for field in ("seq_len", "windows", "held_out", "top", "sampled", "log_every", "checkpoint_every", "keep"):
            require(getattr(self, field) >= 1, f"{field} is {getattr(self, field)}, but it must be at least 1.", field)
        for name in ("k", "n_latents"):
            first, second = (getattr(stage, name) for stage in (self.reconstruct, self.match))
            require(first == second, f"The stages have {name} {first} and {second}, but they train one dictionary.")

    @property
    def k(self) -> int:
        return self.match.k

    @property
    def steps(self) -> int:
        return self.reconstruct.steps + self.match.steps

    def to_json(self) -> dict[str, Any]:
        """This run as JSON values, as in `run.json`."""
        return json.loads(json.dumps({"kind": "attach", **dataclasses.asdict(self)}))
