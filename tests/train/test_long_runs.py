"""What keeps a run of weeks upright: where it begins, what it reports, when it gives up. The step itself is a stand-in
with made-up losses; real ones are in test_training.py."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.weights.published_writer import write_published
from steerling_jax.models.steerling.model import init_params
from steerling_jax.parallel.sharding import MeshShape, make_mesh
from steerling_jax.train.data.pipeline import Sequences, training_examples
from steerling_jax.train.run import loop
from steerling_jax.train.run.clock import step_flops
from steerling_jax.train.run.config_files import load_config
from steerling_jax.train.run.events import Began, Done, Evaluated, Event, Profiled, Saved, Spike, Step, Stopped
from steerling_jax.train.run.parameter_table import parameter_rows, parameter_table
from steerling_jax.train.run.processes import ProcessShare
from steerling_jax.train.run.profiler import parse_steps
from steerling_jax.train.run.run_config import RunConfig
from steerling_jax.train.run.run_folder import open_folder
from steerling_jax.train.run.show import show
from steerling_jax.train.run.start import InitialWeights, find_weights
from steerling_jax.train.run.watch import MOST_SKIPPED, SpikeRule
from tests.worlds.training_world import CONFIG, make_corpus


class World:
    """A run, a corpus, and training with made-up losses."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch):
        (root / "small.py").write_text(CONFIG)
        self.whole = load_config(root / "small.py")
        # Without concepts and with one layer: most of the time here goes into compiling the draw of parameters.
        bare = dataclasses.replace(self.whole.model, n_layers=1, interpretable=False, concept=None)
        self.config = dataclasses.replace(self.whole, model=bare)
        self.store, self.patch = CorpusStore(make_corpus(root / "corpus")), patch
        self.model = root / "model"
        self.params = self.draw(7)
        write_published(self.model, self.config.model, self.params)

    def draw(self, seed: int) -> Any:
        return jax.jit(partial(init_params, self.config.model))(jax.random.key(seed))

    def train(self, out: Path, loss: Callable[[int], float] = lambda step: 3.0, **how: Any) -> Iterator[Event]:
        """Events of a run whose step only counts; a loss that is not finite is skipped. how: settings of the run, and
        `stop`, `profile` and `evaluate`."""
        options = {name: how.pop(name) for name in ("stop", "profile", "evaluate") if name in how}
        run = dataclasses.replace(self.config, checkpoint_every=1000, **how)

        def step(state: Any, batch: Any, base: Any) -> tuple[Any, dict[str, jax.Array]]:
            value = loss(int(state.step) + 1)
            skipped = state.skipped + (not math.isfinite(value))
            new = state.replace(step=state.step + 1, skipped=skipped)
            return new, {"loss": jnp.float32(value), "skipped": skipped}

        self.patch.setattr(loop, "compile_step", lambda *_: step)
        open_folder(run, self.store, out)
        share = ProcessShare(make_mesh(MeshShape()), run.data.batch_size)
        return loop.train(run, self.store, out, share, other=find_weights(run), **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        yield World(tmp_path_factory.mktemp("long"), patch)


def lines(out: Path, kind: str) -> list[dict]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def sequences_of(run: RunConfig, store: CorpusStore, step: int) -> list[int]:
    """Independently of `batches.py`: the batches one after the other."""
    batches = training_examples(store, seq_len=run.data.seq_len, batch_size=run.data.batch_size, seed=run.seed)
    for number, batch in enumerate(batches, start=1):
        if number == step:
            return batch["sequence"].tolist()
    raise AssertionError


# Where a run begins.


def test_the_order_of_what_comes_from_where(world: World, tmp_path: Path) -> None:
    """Fresh, stopped after 3 steps, gone on with: said, and written down with the step it belongs to."""
    asked = iter([False, False, True])
    first, *_, last = world.train(tmp_path, steps=6, stop=lambda: next(asked))
    assert isinstance(first, Began)
    assert first.order == (
        "parameters: drawn, seed 0",
        "optimizer: fresh",
        "data: batch 0 on, of the order drawn with seed 0",
    )
    assert isinstance(last, Stopped)
    assert last.step == 3
    first, *_, last = world.train(tmp_path, steps=6)
    assert isinstance(first, Began)
    assert first.order == (
        f"state and clock, step 3: {tmp_path / 'checkpoints/3'}",
        "data: batch 3 on, of the order drawn with seed 0",
        "metrics.jsonl: its lines up to step 3",
    )
    assert isinstance(last, Done)
    assert last.clock["starts"] == 2
    assert [(line["step"], line["order"]) for line in lines(tmp_path, "start")][1] == (3, list(first.order))


def test_other_weights(world: World, tmp_path: Path) -> None:
    """From a published folder, and from the training folder that makes of it: the very numbers, a fresh optimizer."""
    before = str(world.model)
    for name in ("first", "second"):
        began, *_, done = world.train(tmp_path / name, steps=2, start_from=before)
        assert isinstance(began, Began)
        assert began.order[0].startswith(f"parameters: {before}, fingerprint ")
        assert began.order[1] == "optimizer: fresh"
        assert isinstance(done, Done)
        jax.tree.map(np.testing.assert_array_equal, done.params, world.params)
        before = str(tmp_path / name)
    run = json.loads((tmp_path / "first/run.json").read_text())
    assert run["start"]["folder"] == str(world.model)
    assert run["start"]["fingerprint"] in began.order[0]


def test_other_weights_that_change_are_refused(world: World, tmp_path: Path) -> None:
    out, model = tmp_path / "out", tmp_path / "model"
    write_published(model, world.config.model, world.params)
    next(world.train(out, steps=2, start_from=str(model)))  # killed before anything was saved
    write_published(model, world.config.model, world.draw(8))
    with pytest.raises(UserError, match=r"out began with .*/model, fingerprint \w+, but .*/model now has \w+: restore"):
        next(world.train(out, steps=2, start_from=str(model)))
    with pytest.raises(UserError, match="run of another config: start_from is null, was"):
        world.train(out, steps=2)


def test_other_weights_that_do_not_fit_are_refused(world: World, tmp_path: Path) -> None:
    run = dataclasses.replace(world.config, start_from=str(world.model))
    wider = dataclasses.replace(run, model=dataclasses.replace(run.model, intermediate_size=100))
    with pytest.raises(UserError, match=r"model has blocks.mlp.c_fc.weight of shape \(1, 2, 128, 32\), but the model"):
        find_weights(wider)
    whole = dataclasses.replace(run, model=dataclasses.replace(world.whole.model, n_layers=1))
    with pytest.raises(UserError, match=r"has no known_head\S+, but the model of config 'small' has known_head"):
        find_weights(whole)
    with pytest.raises(UserError, match="no folder and no bundled model 'absent'"):
        find_weights(dataclasses.replace(run, start_from="absent"))


def test_other_weights_with_other_words_or_concepts_are_refused(world: World, tmp_path: Path) -> None:
    other = InitialWeights(tmp_path, world.whole.model)
    other.check_corpus(world.store)
    concepts = [concept | {"name": f"renamed {concept['id']}"} for concept in world.store.concepts]
    (tmp_path / "concepts.json").write_text(json.dumps(concepts))
    with pytest.raises(UserError, match=r"calls concept 0 'renamed 0', the corpus .* 'concept 0'"):
        other.check_corpus(world.store)
    (tmp_path / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(UserError, match="has another tokenizer than the corpus"):
        other.check_corpus(world.store)


def test_a_damaged_training_folder_is_no_start(world: World, tmp_path: Path) -> None:
    *_, done = world.train(tmp_path / "out", steps=1)
    assert isinstance(done, Done)
    path = max((tmp_path / "out/checkpoints/1/state").rglob("*"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"checkpoints/1 is damaged: state/\S+ is not what was saved"):
        next(world.train(tmp_path / "next", steps=1, start_from=str(tmp_path / "out")))


# What it reports.


def test_saved_by_the_clock(world: World, tmp_path: Path) -> None:
    events = list(world.train(tmp_path, steps=3, keep=9, checkpoint_minutes=1e-9))
    assert [event.step for event in events if isinstance(event, Saved)] == [1, 2, 3]


def test_speed_is_in_every_line(world: World, tmp_path: Path) -> None:
    *events, _ = world.train(tmp_path, steps=4)
    assert [event.mfu for event in events if isinstance(event, Step)] == [None] * 4  # nobody knows a CPU's peak
    first, *_, last = lines(tmp_path, "step")
    assert "tokens_per_second" not in first, "one step says nothing of the time between steps"
    run = world.config
    by_token = step_flops(run).total / (run.data.batch_size * run.data.seq_len)
    assert last["model_flops_per_second"] / last["tokens_per_second"] == pytest.approx(by_token, rel=0.01)
    assert "mfu" not in last


def test_evaluations_know_the_mesh(world: World, tmp_path: Path) -> None:
    """As steps do: kernels have to be told how their operands are split."""

    def evaluate(_: Any) -> dict[str, Any]:
        return {"axes": list(jax.sharding.get_abstract_mesh().axis_names)}

    events = list(world.train(tmp_path, steps=2, eval_every=1, evaluate=evaluate))
    assert [event.results["axes"] for event in events if isinstance(event, Evaluated)] == 2 * [
        ["data", "fsdp", "tensor"]
    ]


def test_a_spike_is_reported_with_its_batch(world: World, tmp_path: Path) -> None:
    events = list(world.train(tmp_path, lambda step: 9.0 if step in (40, 41) else 3.0, steps=44))
    (spike,) = (event for event in events if isinstance(event, Spike))
    assert (spike.step, spike.loss, spike.median) == (40, 9.0, 3.0)
    assert list(spike.sequences) == sequences_of(world.config, world.store, 40)
    (line,) = lines(tmp_path, "spike")
    assert (line["step"], line["sequences"]) == (40, list(spike.sequences))


def test_ordinary_noise_is_no_spike() -> None:
    draw, rule = random.Random(0), SpikeRule()
    falling = [10 * math.exp(-step / 300) + 2 + 0.1 * draw.gauss(0, 1) for step in range(2000)]
    assert [rule.median_below(loss) for loss in falling] == [None] * 2000
    assert rule.median_below(math.nan) is None
    assert rule.median_below(4.0) == pytest.approx(2.0, abs=0.1)
    assert rule.median_below(4.0) is None  # told already


def test_a_profiler_trace_on_request(world: World, tmp_path: Path) -> None:
    events = list(world.train(tmp_path, steps=4, profile=(2, 3)))
    (profiled,) = (event for event in events if isinstance(event, Profiled))
    # Told when its last step is done, which is before the metrics of that step are fetched.
    assert [event.step for event in events[: events.index(profiled)] if isinstance(event, Step)] == [1, 2]
    assert any(path.stat().st_size for path in profiled.folder.rglob("*.xplane.pb"))


def test_what_a_person_is_told(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    clock = {"starts": 2, "seconds": {"init": 1.0, "step": 2.5, "other": 0.5}}
    told = [
        Began(300, ("state and clock, step 300: here", "data: batch 300 on"), ((350, "d/x has 3 bytes instead of 7"),)),
        Step(301, {"loss": 2.0}, 1234.0, 0.432),
        Spike(302, 9.0, 2.0, tuple(range(20))),
        Profiled(Path("out/profile")),
        Done(world.config.steps, None, clock),
    ]
    assert list(show(iter(told), world.config)) == told
    text = capsys.readouterr().err
    for line in (
        "The checkpoint of step 350 cannot be read (d/x has 3 bytes instead of 7); passed over.",
        "Going on from step 300.\n  1. state and clock, step 300: here\n  2. data: batch 300 on\n",
        "The loss leapt at step 302: 9.000, where 2.000 is usual; its sequences were 0, 1, 2, 3, 4, 5, 6, 7, ….",
        "A profiler trace is in out/profile.",
        "Time, 2 starts",
        "step      2.5 62.5%",
        "all       4.0",
    ):
        assert line in text
    list(show(iter([Done(1, None, clock)]), world.config, tables=False))
    assert "Time" not in capsys.readouterr().err


def test_the_table_of_parameters(world: World) -> None:
    rows = parameter_rows(world.config, make_mesh(MeshShape()))
    assert sum(row.count for row in rows) == sum(leaf.size for leaf in jax.tree.leaves(world.params))
    assert {row.name for row in rows if row.decays} >= {"blocks/attn/c_proj", "blocks/mlp/c_fc"}
    assert {row.name for row in rows if not row.decays} >= {"tok_emb", "ln_f", "blocks/ln_1"}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(parameter_table(rows))
    text = console.export_text()
    assert "…" not in text, "it fits a terminal"
    assert f"all{sum(row.count for row in rows):,}" in text.replace(" ", "")


@pytest.mark.parametrize("text", ["3", "3:2", "0:4", "a:b", "1:2:3"])
def test_steps_to_profile(text: str) -> None:
    assert parse_steps("10:13") == (10, 13)
    with pytest.raises(UserError, match=r"--profile is .*, but it must be FIRST:LAST"):
        parse_steps(text)


# When it gives up.


def test_too_many_bad_steps_in_a_row(world: World, tmp_path: Path) -> None:
    bad = 4
    with pytest.raises(UserError, match=rf"not been finite for {MOST_SKIPPED} steps .* in .*nonfinite.json") as error:
        list(world.train(tmp_path, lambda step: math.nan if step > bad or step == 2 else 3.0, steps=100))
    assert str(tmp_path / "nonfinite.json") in str(error.value)
    written = json.loads((tmp_path / "nonfinite.json").read_text())
    assert [entry["step"] for entry in written] == list(range(bad + 1, bad + 1 + MOST_SKIPPED))
    run = world.config
    assert written[0]["sequences"] == sequences_of(run, world.store, bad + 1)
    source = Sequences(world.store, "train", run.data.seq_len)
    for number, (first, end) in zip(written[0]["sequences"], written[0]["chunks"], strict=True):
        spans = world.store.read("chunk_spans", first, end)
        start, stop = source.span(number)
        assert all(a < stop and b > start for a, b in spans), "chunks that the sequence has tokens of"
    assert [line["skipped"] for line in lines(tmp_path, "step")][:4] == [0, 1, 1, 1]
