"""What the training loop reports, displays and refuses. Runs in separate processes are in test_training.py."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from rich.console import Console

from steerling_jax.errors import UserError
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.parallel.sharding import MeshShape, make_mesh
from steerling_jax.train.data.pipeline import Sequences, training_examples
from steerling_jax.train.run.clock import step_flops
from steerling_jax.train.run.display import display
from steerling_jax.train.run.events import (
    CheckpointSaved,
    Evaluated,
    LossSpike,
    RunFinished,
    RunStarted,
    StepDone,
    TraceWritten,
)
from steerling_jax.train.run.loss_monitor import MAX_SKIPPED, SpikeDetector
from steerling_jax.train.run.parameter_table import parameter_rows, parameter_table
from steerling_jax.train.run.profiler import parse_steps
from steerling_jax.train.run.run_config import RunConfig
from tests.worlds.counting_runs import CountingRuns, metrics_lines


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountingRuns]:
    with pytest.MonkeyPatch.context() as patch:
        yield CountingRuns(tmp_path_factory.mktemp("long"), patch)


def sequences_of(run: RunConfig, store: CorpusStore, step: int) -> list[int]:
    """The sequences of a step, independently of `batches.py`: from all batches in order."""
    batches = training_examples(store, seq_len=run.data.seq_len, batch_size=run.data.batch_size, seed=run.seed)
    for number, batch in enumerate(batches, start=1):
        if number == step:
            return batch["sequence"].tolist()
    raise AssertionError


def test_checkpoint_minutes(world: CountingRuns, tmp_path: Path) -> None:
    events = list(world.train(tmp_path, steps=3, keep=9, checkpoint_minutes=1e-9))
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [1, 2, 3]


def test_the_speed_is_in_the_metrics(world: CountingRuns, tmp_path: Path) -> None:
    *events, _ = world.train(tmp_path, steps=4)
    assert [event.mfu for event in events if isinstance(event, StepDone)] == [None] * 4  # the peak of a CPU is unknown
    first, *_, last = metrics_lines(tmp_path, "step")
    assert "tokens_per_second" not in first, "one step says nothing of the time between steps"
    run = world.config
    by_token = step_flops(run).total / (run.data.batch_size * run.data.seq_len)
    assert last["model_flops_per_second"] / last["tokens_per_second"] == pytest.approx(by_token, rel=0.01)
    assert "mfu" not in last


def test_evaluations_run_with_the_mesh_of_the_run(world: CountingRuns, tmp_path: Path) -> None:
    """Kernels look up there how their operands are sharded."""

    def evaluate(_: Any) -> dict[str, Any]:
        return {"axes": list(jax.sharding.get_abstract_mesh().axis_names)}

    events = list(world.train(tmp_path, steps=2, eval_every=1, evaluate=evaluate))
    assert [event.results["axes"] for event in events if isinstance(event, Evaluated)] == 2 * [
        ["data", "fsdp", "tensor"]
    ]


def test_a_spike_is_reported_with_its_batch(world: CountingRuns, tmp_path: Path) -> None:
    events = list(world.train(tmp_path, lambda step: 9.0 if step in (40, 41) else 3.0, steps=44))
    (spike,) = (event for event in events if isinstance(event, LossSpike))
    assert (spike.step, spike.loss, spike.median) == (40, 9.0, 3.0)
    assert list(spike.sequences) == sequences_of(world.config, world.store, 40)
    (line,) = metrics_lines(tmp_path, "spike")
    assert (line["step"], line["sequences"]) == (40, list(spike.sequences))


def test_noise_is_not_a_spike() -> None:
    draw, detector = random.Random(0), SpikeDetector()
    falling = [10 * math.exp(-step / 300) + 2 + 0.1 * draw.gauss(0, 1) for step in range(2000)]
    assert [detector.check(loss) for loss in falling] == [None] * 2000
    assert detector.check(math.nan) is None
    assert detector.check(4.0) == pytest.approx(2.0, abs=0.1)
    assert detector.check(4.0) is None  # of consecutive high losses the first counts


def test_a_profiler_trace_on_request(world: CountingRuns, tmp_path: Path) -> None:
    events = list(world.train(tmp_path, steps=4, profile=(2, 3)))
    (profiled,) = (event for event in events if isinstance(event, TraceWritten))
    # The event comes when the last traced step is done, before the metrics of that step are fetched.
    assert [event.step for event in events[: events.index(profiled)] if isinstance(event, StepDone)] == [1, 2]
    assert any(path.stat().st_size for path in profiled.folder.rglob("*.xplane.pb"))


def test_messages_on_standard_error(world: CountingRuns, capsys: pytest.CaptureFixture[str]) -> None:
    clock = {"starts": 2, "seconds": {"init": 1.0, "step": 2.5, "other": 0.5}}
    sources = ("state and clock, step 300: here", "data: from batch 300 on")
    events = [
        RunStarted(300, sources, unreadable=((350, "d/x has 3 bytes instead of 7"),)),
        StepDone(301, {"loss": 2.0}, 1234.0, 0.432),
        LossSpike(302, 9.0, 2.0, tuple(range(20))),
        TraceWritten(Path("out/profile")),
        RunFinished(world.config.steps, None, clock),
    ]
    assert list(display(iter(events), world.config.steps)) == events
    text = capsys.readouterr().err
    for line in (
        "The checkpoint of step 350 cannot be read (d/x has 3 bytes instead of 7); skipping it.",
        "Resuming from step 300.\n  1. state and clock, step 300: here\n  2. data: from batch 300 on\n",
        "Loss spike at step 302: 9.000, where the recent median is 2.000; "
        "sequences of the batch: 0, 1, 2, 3, 4, 5, 6, 7, ….",
        "The profiler trace is in out/profile.",
        "Time, 2 starts",
        "step      2.5 62.5%",
        "all       4.0",
    ):
        assert line in text
    list(display(iter([RunFinished(1, None, clock)]), world.config.steps, tables=False))
    assert "Time" not in capsys.readouterr().err


def test_the_table_of_parameters(world: CountingRuns) -> None:
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


def test_many_consecutive_non_finite_steps_end_the_run(world: CountingRuns, tmp_path: Path) -> None:
    bad = 4
    with pytest.raises(
        UserError, match=rf"not finite in the last {MAX_SKIPPED} steps.* listed in .*nonfinite.json"
    ) as error:
        list(world.train(tmp_path, lambda step: math.nan if step > bad or step == 2 else 3.0, steps=100))
    assert str(tmp_path / "nonfinite.json") in str(error.value)
    written = json.loads((tmp_path / "nonfinite.json").read_text())
    assert [entry["step"] for entry in written] == list(range(bad + 1, bad + 1 + MAX_SKIPPED))
    run = world.config
    assert written[0]["sequences"] == sequences_of(run, world.store, bad + 1)
    source = Sequences(world.store, "train", run.data.seq_len)
    for number, (first, end) in zip(written[0]["sequences"], written[0]["chunks"], strict=True):
        spans = world.store.read("chunk_spans", first, end)
        start, stop = source.span(number)
        assert all(a < stop and b > start for a, b in spans), "chunks that the sequence has tokens of"
    assert [line["skipped"] for line in metrics_lines(tmp_path, "step")][:4] == [0, 1, 1, 1]
