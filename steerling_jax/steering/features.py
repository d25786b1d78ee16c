"""`FeatureSteering`: steering by a feature of an autoencoder, `h + α d` on the output of the block that it reads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp

from steerling_jax.errors import require
from steerling_jax.models.backbone import BackboneConfig
from steerling_jax.models.edits import LayerEdit, push_output
from steerling_jax.steering.composition import Composable
from steerling_jax.steering.rules import POSITIONS, Positions


@dataclass(frozen=True)
class FeatureSteering(Composable):
    """A feature's direction, added to the output of a block in every pass.

    A rule that names a feature becomes one of these, with all that is needed to repeat it without the autoencoder.

    feature: its number. alpha: the factor of the direction. layer: the block, counted from 0. positions: "all", or
    "generated" for those after the prompt. direction: the feature's row of the decoder, D numbers. label: the name of
    this steering in traces.
    Raises `UserError` for values that are no such steering.
    """

    feature: int
    alpha: float
    layer: int
    direction: tuple[float, ...]
    positions: Positions = "all"
    label: str = ""

    def __post_init__(self) -> None:
        for name in ("feature", "layer"):
            value = getattr(self, name)
            require(type(value) is int and value >= 0, f"{name} is {value!r}, but it must be a whole number from 0.")
        numbers = (self.alpha, *self.direction)
        finite = all(isinstance(one, int | float) and math.isfinite(one) for one in numbers)
        require(finite, "alpha and direction must be finite numbers.", "direction")
        require(self.positions in POSITIONS, f"positions is {self.positions!r}; give 'all' or 'generated'.")

    def check(self, config: BackboneConfig) -> None:
        """Raises `UserError` where the model has another width or lacks the block."""
        D, L = config.width, config.n_layers
        require(
            len(self.direction) == D,
            f"The direction of feature {self.feature} has {len(self.direction)} numbers, but the model's width is {D}; "
            "give an autoencoder of this model.",
        )
        require(self.layer < L, f"Feature {self.feature} is of block {self.layer}, but this model's are 0 to {L - 1}.")

    def edit(self) -> LayerEdit:
        """The change that it makes."""
        vector = jnp.float32(self.alpha) * jnp.asarray(self.direction, jnp.float32)
        return push_output(vector, self.layer, self.positions == "generated")

    def describe(self) -> str:
        """`label`, or a description where there is none."""
        place = " at generated tokens" if self.positions == "generated" else ""
        return self.label or f"feature {self.feature} of block {self.layer} at {self.alpha:g}{place}"
