"""The TPU kernel, interpreted: both masks are the reference's, forward and backward; unsupported lengths raise."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.errors import UserError
from steerling_jax.models.attention import attend, block_causal_mask
from steerling_jax.models.compute import Compute
from steerling_jax.models.splash_attention import BlockCausalMask, TwoCopyMask, attend_block_causal, attend_two_copies
from tests.worlds.attention_masks import two_copy_mask

LENGTH, BLOCK = 384, 24  # three tiles of 128, whose ends cut blocks
AT = jnp.arange(LENGTH)
PATTERNS = {
    "block-causal": (attend_block_causal, BlockCausalMask, block_causal_mask(AT, AT, BLOCK)),
    "two copies": (attend_two_copies, TwoCopyMask, two_copy_mask(LENGTH // 2, BLOCK)),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_forward_and_backward_are_those_of_the_reference(pattern: str) -> None:
    function, kind, allowed = PATTERNS[pattern]
    np.testing.assert_array_equal(kind(LENGTH, BLOCK)[:, :], allowed)
    q, k, v = (jax.random.normal(jax.random.key(i), (2, LENGTH, heads, 16)) for i, heads in enumerate((4, 2, 2)))

    def loss(run, q, k, v):
        out = run(q, k, v)
        return jnp.sum(jnp.sin(out)), out

    ours, theirs = (
        jax.jit(jax.value_and_grad(partial(loss, run), argnums=(0, 1, 2), has_aux=True))(q, k, v)
        for run in (partial(function, block=BLOCK, interpret=True), partial(attend, mask=allowed))
    )
    chex.assert_trees_all_close(ours[0][1], theirs[0][1], atol=3e-6)
    chex.assert_trees_all_close(ours[1], theirs[1], atol=2e-5)


def test_lengths_that_do_not_fit_the_kernel_raise() -> None:
    q = jnp.zeros((1, 96, 2, 16))
    with pytest.raises(UserError, match="'splash', which needs a multiple of 128 positions and got 96"):
        attend_block_causal(q, q, q, 8)


def test_other_attention_raises() -> None:
    with pytest.raises(UserError, match="'flash', but it must be 'xla' or 'splash'"):
        Compute(attention="flash")  # type: ignore[arg-type]
