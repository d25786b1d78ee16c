"""The rows of texts of which every position is read under a mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from steerling_jax.explain.masked_rows import rows_under_masks
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.layers import Norm
from steerling_jax.models.steerling.model import init_params
from tests.worlds.topic_world import config


def test_a_row_does_not_see_its_own_token_and_captured_blocks_are_those_of_the_same_pass() -> None:
    params, tokens = init_params(config(), jax.random.key(0)), np.arange(32, dtype=np.int32).reshape(2, 16)
    run = jax.jit(lambda text: rows_under_masks(params, text, jax.random.key(1), config=config(), compute=Compute(),
                                                capture=(0, 1)))  # fmt: skip
    rows, changed = run(jnp.asarray(tokens)), tokens.copy()
    changed[0, 3] = 40
    again = run(jnp.asarray(changed))
    for one, other in zip((rows.hidden, *rows.captured.values()), (again.hidden, *again.captured.values())):
        difference = np.abs(np.asarray(one - other)).max(axis=-1)
        assert difference[0, 3] == 0
        assert difference[0, 8:].min() > 1e-4  # the next block sees the token
        assert difference[1].max() == 0
    normed = Norm(config()).apply({"params": params["ln_f"]}, rows.captured[1])
    np.testing.assert_allclose(np.asarray(rows.hidden), np.asarray(normed), atol=1e-5)
