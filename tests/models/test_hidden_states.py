"""`sj.hidden_states`: the outputs of blocks, against the model's own layers, and what edits of them do."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import steerling_jax as sj
from steerling_jax.models.edits import inject
from steerling_jax.models.steerling.layers import Norm


@pytest.fixture(scope="module")
def bundle() -> sj.Bundle:
    return sj.load()


def final_norm(bundle: sj.Bundle, x: np.ndarray) -> np.ndarray:
    normed: Any = Norm(bundle.config).apply({"params": bundle.params["ln_f"]}, jnp.asarray(x))
    return np.asarray(normed)


def test_the_last_block_and_the_norm_give_the_hidden_states_of_forward(bundle: sj.Bundle):
    text, last = "import json", bundle.config.n_layers - 1
    states = sj.hidden_states(bundle, text, layers=[0, last])
    assert set(states) == {0, last}
    out = sj.forward(bundle, text)
    np.testing.assert_allclose(final_norm(bundle, states[last]), out.decomposition.hidden, atol=1e-4)
    ids = bundle.tokenizer.encode(text)
    np.testing.assert_array_equal(sj.hidden_states(bundle, [ids, ids], [0])[0][1], states[0][0])


def test_an_edit_of_a_block_is_what_later_blocks_read(bundle: sj.Bundle):
    """Adding a vector to the output of the last block moves the final norm's input, and nothing before it."""
    ids, last = bundle.tokenizer.encode("import json"), bundle.config.n_layers - 1
    vector = np.random.default_rng(0).normal(size=(1, 1, bundle.config.n_embd)).astype(np.float32)
    states = sj.hidden_states(bundle, ids, [last])[last]
    layers = jnp.arange(bundle.config.n_layers) == last
    edited = sj.forward(bundle, ids, edits=[inject(jnp.asarray(vector), layers=layers)])
    np.testing.assert_allclose(edited.decomposition.hidden, final_norm(bundle, states + vector), atol=1e-4)


def test_an_injection_is_scaled_and_added_after_its_layer_and_all_later_ones(bundle: sj.Bundle):
    ids, count = bundle.tokenizer.encode("import json"), bundle.config.n_layers
    vector = np.random.default_rng(0).normal(size=(len(ids), bundle.config.n_embd)).astype(np.float32)
    for layer, first in ((count, count), (2, 2), (None, count // 2)):
        layers = jnp.arange(1, count + 1) >= first
        expected = sj.forward(bundle, ids, edits=[inject(jnp.asarray(0.5 * vector[None]), layers=layers)])
        actual = sj.forward(bundle, ids, injection=vector, inject_layer=layer, inject_alpha=0.5)
        np.testing.assert_array_equal(actual.decomposition.hidden, expected.decomposition.hidden)


@pytest.mark.parametrize("layers", [[99], [-1], ["attention.3"], [True]])
def test_what_is_no_block_is_refused(bundle: sj.Bundle, layers: list):
    with pytest.raises(sj.UserError, match="numbers of blocks from 0 to"):
        sj.hidden_states(bundle, "text", layers)
