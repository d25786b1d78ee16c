"""The training step skips an update whose loss or gradient is not finite."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.train.run.config_files import load_config
from steerling_jax.train.run.run_config import RunConfig
from steerling_jax.train.run.step import init_state, train_step
from tests.worlds.training_world import CONFIG, make_corpus


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG)
    return load_config(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    return CorpusStore(make_corpus(tmp_path_factory.mktemp("parts") / "corpus"))


def batch_of(run: RunConfig, store: CorpusStore) -> dict[str, np.ndarray]:
    from steerling_jax.train.data.pipeline import training_examples

    examples = training_examples(store, seq_len=run.data.seq_len, batch_size=run.data.batch_size, seed=0)
    return next(iter(examples))


def test_a_non_finite_step_is_counted_and_changes_nothing(run: RunConfig, store: CorpusStore) -> None:
    step, batch = jax.jit(partial(train_step, run=run)), batch_of(run, store)
    state = jax.jit(partial(init_state, run))()
    good, metrics = step(state, batch)
    assert int(good.skipped) == 0
    assert np.isfinite(metrics["loss"])
    assert not np.array_equal(good.params["tok_emb"]["weight"], state.params["tok_emb"]["weight"])
    state.params["ln_f"]["weight"] = jnp.full_like(state.params["ln_f"]["weight"], np.inf)
    bad, metrics = step(state, batch)
    assert (int(bad.step), int(bad.skipped), int(metrics["skipped"])) == (1, 1, 1)
    for new, old in zip(jax.tree.leaves((bad.params, bad.opt_state)), jax.tree.leaves((state.params, state.opt_state))):
        np.testing.assert_array_equal(new, old)
