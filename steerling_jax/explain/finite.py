"""The check that a model's outputs are finite, shared by the functions that explain its tokens."""

from __future__ import annotations

import numpy as np

from steerling_jax.errors import require


def require_finite(values: np.ndarray) -> None:
    """Raises `UserError` if the model's outputs contain NaN or infinity."""
    require(
        bool(np.isfinite(values).all()),
        "The model's output at an explained token is not a finite number: the weights contain NaN or infinity; load "
        "another checkpoint.",
    )
