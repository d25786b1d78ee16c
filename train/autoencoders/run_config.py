"""The configuration of a run that trains sparse autoencoders on the hidden states of a model."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from steerling_jax.autoencoders.training_step import AutoencoderRecipe
from steerling_jax.errors import require
from steerling_jax.parallel.sharding import MeshShape


@dataclass(frozen=True, kw_only=True)
class AutoencoderRun:
    """A run that trains one TopK autoencoder for each of several layers, from the same passes of a model.

    name: of the run; the default folder is `runs/NAME`.
    model: what `sj.load` takes: a folder, a file, a bundled model's name or a Hub id.
    layers: the blocks whose outputs are read, counted from 0.
    recipe: of every autoencoder's update.
    texts: files, folders and patterns of documents, as `steerling prepare --input` takes them; empty for the
    documentation and source code of this Python.
    seq_len: T, tokens of a window of text.
    windows: windows of a pass of the model.
    buffer_rows: hidden rows of a layer that are held and shuffled together; memory is this times the width times the
    number of layers times 4 bytes.
    visits: how often the rows of a buffer are used, each time in another order, before the next buffer is captured.
    Capturing a row costs several times what a step costs for it, so more visits give a better autoencoder in the same
    time, as long as the texts have enough tokens.
    max_tokens: tokens of the texts that are used (None: all).
    held_out: tokens at the end of these that are kept for the evaluation.
    from_rows: whether the first features point to rows of the data, which in short runs leaves much less unexplained
    than random directions do, with more latents that hardly ever fire.
    mesh: the devices of all processes over which the model and the autoencoders are sharded, latents over `tensor` and
    rows over the other axes; None for one device.
    seed: of the initial autoencoders, and of the order of windows and rows.
    log_every, checkpoint_every: in steps. The last step is always evaluated and saved.
    checkpoint_minutes: also save when this much time has passed since the last save (None: never).
    keep: the number of newest checkpoints that are kept.
    """

    name: str
    model: str
    layers: tuple[int, ...]
    recipe: AutoencoderRecipe
    texts: tuple[str, ...] = ()
    seq_len: int = 256
    windows: int = 8
    buffer_rows: int = 65_536
    visits: int = 1
    max_tokens: int | None = None
    held_out: int = 16_384
    from_rows: bool = False
    mesh: MeshShape | None = None
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    checkpoint_minutes: float | None = 10.0
    keep: int = 2

    def __post_init__(self) -> None:
        counts = ("seq_len", "windows", "buffer_rows", "visits", "held_out", "log_every", "checkpoint_every", "keep")
        for field in counts:
            require(getattr(self, field) >= 1, f"{field} is {getattr(self, field)}, but it must be at least 1.")
        require(bool(self.layers), "layers is empty; name at least one block, counted from 0.")
        require(len(set(self.layers)) == len(self.layers), "layers names a block twice; name each once.")
        rows = self.windows * self.seq_len
        require(
            self.buffer_rows % rows == 0 and self.buffer_rows % self.recipe.batch_rows == 0,
            f"buffer_rows is {self.buffer_rows}, but it must be a multiple of windows · seq_len ({rows}) and of "
            f"recipe.batch_rows ({self.recipe.batch_rows}).",
        )

    @property
    def steps(self) -> int:
        return self.recipe.steps

    def to_json(self) -> dict[str, Any]:
        """This run as JSON values, as in `run.json`."""
        return json.loads(json.dumps({"kind": "autoencoders", **dataclasses.asdict(self)}))
