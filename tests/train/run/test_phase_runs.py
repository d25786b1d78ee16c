"""Runs of other phases: adapters that are resumed, weights that gain turn tokens, steering from corpus labels."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from steerling_jax.cli.console import plain
from steerling_jax.cli.main import main
from steerling_jax.errors import UserError
from steerling_jax.io.checkpoints.parameters import load_checkpoint_params
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.weights.published_writer import write_published
from steerling_jax.models.lora import LoraConfig
from steerling_jax.models.steerling.config import ModelConfig
from steerling_jax.models.steerling.model import init_params
from steerling_jax.objectives.instruction import InstructionObjective
from steerling_jax.objectives.steering import SteeringObjective
from steerling_jax.parallel.sharding import MeshShape, make_mesh
from steerling_jax.train.corpus.documents import Document
from steerling_jax.train.data.batches import Batches, batch_shapes
from steerling_jax.train.data.steering_examples import lift_table
from steerling_jax.train.prepare.config import CorpusInputs, PrepareConfig
from steerling_jax.train.prepare.prepare import prepare
from steerling_jax.train.run.config_files import load_config
from steerling_jax.train.run.events import Event, RunFinished
from steerling_jax.train.run.initial_weights import find_initial_weights
from steerling_jax.train.run.processes import ProcessShare
from steerling_jax.train.run.run_config import RunConfig, instruct_ids
from steerling_jax.train.run.run_folder import check_corpus, open_folder
from tests.worlds.paths import REPOSITORY
from tests.worlds.training_world import BARE_CONFIG, CONFIG, make_corpus, train_in


@dataclasses.dataclass
class World:
    """A run of a few steps that starts from a model with the parameters `params`."""

    run: RunConfig
    store: CorpusStore
    params: Any
    whole: ModelConfig  # with concepts; the run's has none

    def train(self, out: Path, run: RunConfig, **options: Any) -> Iterator[Event]:
        return train_in(out, run, self.store, **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("phases")
    (root / "small.py").write_text(CONFIG)
    run = load_config(root / "small.py")
    whole = run.model
    bare = dataclasses.replace(whole, n_layers=1, interpretable=False, concept=None)
    run = dataclasses.replace(run, model=bare, steps=4, checkpoint_every=2, start_from=str(root / "model"))
    params = init_params(bare, jax.random.key(7))
    write_published(root / "model", bare, params)
    return World(run, CorpusStore(make_corpus(root / "corpus")), params, whole)


def test_adapters_are_resumed(world: World, tmp_path: Path) -> None:
    run = dataclasses.replace(world.run, lora=LoraConfig(rank=2, modules=("attn/c_q",)), accumulate=2)
    *_, whole = world.train(tmp_path / "whole", run)
    stops = iter([False, True])
    list(world.train(tmp_path / "halves", run, stop=lambda: next(stops)))
    began, *_, halves = world.train(tmp_path / "halves", run)
    assert "parameters under the adapters" in str(began)
    assert isinstance(whole, RunFinished)
    assert isinstance(halves, RunFinished)
    jax.tree.map(np.testing.assert_array_equal, whole.params, halves.params)
    changed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, same in jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda a, b: np.array_equal(a, b), whole.params, world.params)
        )
        if not same
    }
    assert changed == {"blocks/attn/c_q/weight"}
    saved = sum(path.stat().st_size for path in (tmp_path / "whole/checkpoints/4/state").rglob("*") if path.is_file())
    assert saved < 4 * world.params["tok_emb"]["weight"].size * 4, "the weights under the adapters are not saved again"
    with pytest.raises(UserError, match=r"holds adapters to other weights, not a whole model; give .*whole/export"):
        load_checkpoint_params(tmp_path / "whole")


def test_a_text_model_gains_turn_tokens(world: World, tmp_path: Path) -> None:
    model = dataclasses.replace(world.run.model, vocab_size=67, **instruct_ids(67))
    data = dataclasses.replace(world.run.data, messages=str(tmp_path / "talk.jsonl"))
    run = dataclasses.replace(world.run, model=model, data=data, objective=InstructionObjective())
    check_corpus(run, world.store)
    other = find_initial_weights(run)
    assert other is not None
    table = other.read(model, make_mesh(MeshShape()))["tok_emb"]["weight"]
    np.testing.assert_array_equal(table[:64], world.params["tok_emb"]["weight"])
    assert table.shape == (67, 32)
    with pytest.raises(UserError, match="Cannot read the conversations"):
        open_folder(run, world.store, tmp_path / "out")
    with pytest.raises(UserError, match="has no tokenizer to encode"):
        Batches(run, world.store)


def test_instruction_tuning_with_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Invalid conversations are refused before the folder is written, so that the corrected file can be used there."""
    texts = [f"{word} jumps over the lazy dog, {i} times\n" * 6 for i, word in enumerate(["the fox", "a cat"] * 20)]
    documents = [Document(f"d{i}", "code", text) for i, text in enumerate(texts)]
    config = PrepareConfig(vocab_size=300, heldout_share=0.3)
    prepare(tmp_path / "corpus", CorpusInputs(documents=documents), config)
    talk, out = tmp_path / "talk.jsonl", tmp_path / "out"
    (tmp_path / "talk.py").write_text(
        BARE_CONFIG
        + f"""
bare = config

def config():
    import dataclasses
    from steerling_jax.objectives.instruction import InstructionObjective
    from steerling_jax.train.run.run_config import instruct_ids
    run = bare()
    return dataclasses.replace(
        run, steps=2, eval_every=2, model=dataclasses.replace(run.model, vocab_size=303, **instruct_ids(303)),
        objective=InstructionObjective(),
        data=dataclasses.replace(run.data, vocab_size=300, seq_len=48, messages={str(talk)!r}))
"""
    )
    command = ["train", "--config", str(tmp_path / "talk.py"), "--corpus", str(tmp_path / "corpus"), "--out", str(out)]
    short, long = (
        [{"role": "user", "content": "who jumps?" * n}, {"role": "assistant", "content": "a cat"}] for n in (1, 9)
    )
    talk.write_text(json.dumps({"messages": short}) + "\n{\n")
    assert main(command) == 2
    assert "talk.jsonl, line 2 is not JSON" in plain(capfd.readouterr().err)
    assert not out.exists()
    talk.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in [short] * 4 + [long]))
    assert main(command) == 0
    assert "1 of 5 answers are left out" in plain(capfd.readouterr().err)
    assert (out / "export").is_dir()


def test_steering_batches_come_from_the_labels(world: World) -> None:
    objective = SteeringObjective(support=1, least_lift=0.5, most_lifted=4)
    run = dataclasses.replace(world.run, model=world.whole, objective=objective)
    table, share = lift_table(world.store, objective), ProcessShare(make_mesh(MeshShape()), 4)
    assert table.shape == (8, 4)
    batches = Batches(run, world.store).placed(share, 0)
    _, batch = next(batches), next(batches)
    assert {name: array.shape for name, array in batch.items()} == batch_shapes(run)
    plain = next(Batches(world.run, world.store).placed(share, 0))
    assert {name: array.shape for name, array in plain.items()} == batch_shapes(world.run)
    again = next(Batches(run, world.store).placed(share, 1))
    jax.tree.map(np.testing.assert_array_equal, batch, again)
    concept, lifted = np.asarray(batch["concept"]), np.asarray(batch["lifted"])
    assert (concept >= 0).any()
    np.testing.assert_array_equal(lifted[concept >= 0], table[concept[concept >= 0]])
    with pytest.raises(UserError, match=r"No concept of the corpus .* has tokens with a lift of 1000"):
        lift_table(world.store, dataclasses.replace(objective, least_lift=1000.0))


def test_a_batch_must_divide_by_devices_and_parts() -> None:
    with pytest.raises(UserError, match=r"data.batch_size is 6, .* the devices .* times accumulate \(4\)"):
        ProcessShare(make_mesh(MeshShape()), 6, accumulate=4)


SHARDED = """
import sys
from functools import partial
import jax, numpy as np
from steerling_jax.models.lora import LoraConfig
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.models.steerling.sharding import param_shardings
from steerling_jax.parallel.sharding import MeshShape, batch_sharding, make_mesh
from steerling_jax.objectives.training_step import Recipe, init_state, state_shardings, update
from steerling_jax.models.steerling.model import init_params
from tests.objectives.test_phases import CONFIG, KEY, STEERING, steering_batch

mesh, batch = make_mesh(MeshShape(2, 2, 2)), steering_batch(8)
optimizer = OptimizerConfig(kind="muon", peak_rate=1e-2, warmup_steps=0)
lora = LoraConfig(rank=2) if sys.argv[1] == "lora" else None
recipe = Recipe(CONFIG, 10, objective=STEERING, optimizer=optimizer, accumulate=2, lora=lora)
state, base = init_state(recipe, KEY), None if lora is None else init_params(CONFIG, KEY)
plain, metrics = jax.jit(partial(update, recipe=recipe))(state, batch, KEY, base=base)
places = state_shardings(recipe, mesh)
moments = {str(leaf.spec) for leaf in jax.tree.leaves(places.opt_state)}
assert len(moments) > 3, moments
with jax.set_mesh(mesh):
    state = jax.device_put(state, places)
    batch = jax.device_put(batch, batch_sharding(mesh))
    base = None if base is None else jax.device_put(base, param_shardings(CONFIG, mesh))
    split, split_metrics = jax.jit(partial(update, recipe=recipe))(state, batch, KEY, base=base)
for name in metrics:
    np.testing.assert_allclose(split_metrics[name], metrics[name], rtol=1e-4, err_msg=name)
# An entry moves by at most about the rate, and Muon's iteration turns rounding into some thousandths of that.
limit = 5e-3 * optimizer.peak_rate
jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=limit), plain.params, split.params)
"""


@pytest.mark.parametrize("how", ["whole", pytest.param("lora", marks=pytest.mark.slow)])
def test_an_update_on_eight_devices_equals_that_on_one(how: str) -> None:
    """Muon, micro-batches and adapters on a mesh of (2, 2, 2)."""
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    root = REPOSITORY
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, how], env=env, cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
