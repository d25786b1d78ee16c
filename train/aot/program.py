"""The programs that a pod runs, as values: which one, of which run, at which size."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jax.sharding import Mesh
from jax.tree_util import tree_leaves

from steerling_jax.models.decoder.config import DecoderConfig
from steerling_jax.models.families import param_shapes, param_shardings
from steerling_jax.train.aot.depths import first_layers
from steerling_jax.train.run.run_config import RunConfig

Mode = Literal["train", "decode", "attribute"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Program:
    """A program of a run.

    mode: `train` is a training step, `decode` a pass of the decoding loop, `attribute` a pass of integrated gradients.
    rows: of a decoding or attribution pass; a training step has `run.data.batch_size` sequences instead.
    """

    mode: Mode
    run: RunConfig
    rows: int = 8

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.run.name

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.run.model.n_layers

    @property
    def sequences(self) -> int:
        """Sequences of a step, or rows of a pass."""
        return self.run.data.batch_size if self.mode == "train" else self.rows

    @property
    def seq_len(self) -> int:
        """Positions of a sequence; the decoding loop keeps a cache of the whole context."""
        return self.run.model.context_length if self.mode == "decode" else self.run.data.seq_len

    def with_layers(self, layers: int) -> Program:
        """The same program of a model with so many layers."""
        model = self.run.model
        decoder = isinstance(model, DecoderConfig)
        model = first_layers(model, layers) if decoder else dataclasses.replace(model, n_layers=layers)
        return dataclasses.replace(self, run=dataclasses.replace(self.run, model=model))

    def parameter_bytes(self, mesh: Mesh) -> tuple[int, float]:
        """(number of parameters, bytes of them on one device): float32 in training, else bfloat16."""
        width = 4 if self.mode == "train" else 2
        shapes = tree_leaves(param_shapes(self.run.model))
        shardings = tree_leaves(param_shardings(self.run.model, mesh))
        on_device = sum(np.prod(s.shard_shape(leaf.shape)) for leaf, s in zip(shapes, shardings, strict=True))
        return sum(leaf.size for leaf in shapes), float(on_device * width)
