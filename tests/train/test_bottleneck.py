"""The comparison of bottlenecks: arms of equal FLOPs, the stages of the strict one, and its table."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.objectives.dictionary import DictionaryObjective
from steerling_jax.train.run.clock import step_flops
from steerling_jax.train.run.config_files import load_config
from tests.worlds.paths import REPOSITORY
from tests.worlds.training_world import make_corpus


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # the programs import each other by these names
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def program() -> ModuleType:
    script("environment")
    script("scaling")
    return script("bottleneck")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    return CorpusStore(make_corpus(tmp_path_factory.mktemp("corpus") / "store"))


def test_all_arms_use_the_same_flops_and_the_stages_their_shares(program: ModuleType, store: CorpusStore):
    size = program.Size(64, 3, (0,))
    used = {}
    for arm in program.ARMS:
        runs = program.stages_of(size, arm, 0, store, 2.0)
        flops = [run.steps * step_flops(run).total for run in runs]
        used[arm] = sum(flops)
        if len(runs) > 1:
            assert [f / used[arm] for f in flops] == pytest.approx(list(program.STAGES.values()), abs=0.01)
            backbone, dictionary, both = runs
            assert backbone.model.concept is None
            assert both.model.concept.is_strict
            assert isinstance(dictionary.objective, DictionaryObjective)
            assert (dictionary.objective.heads_only, both.objective.heads_only) == (True, False)
            labels = {run.objective.concept_weight for run in (dictionary, both)}
            assert (labels == {0.0}) == (arm == program.UNLABELLED)
    assert used == pytest.approx(dict.fromkeys(program.ARMS, used["bare"]), rel=0.01)
    names = [run.name for arm in program.ARMS for run in program.stages_of(size, arm, 0, store, 2.0)]
    assert len(set(names)) == len(names) - 1  # the backbone is trained once for both strict arms


def test_the_config_that_is_written_is_the_run(program: ModuleType, store: CorpusStore, tmp_path: Path):
    for number, run in enumerate(program.stages_of(program.Size(64, 3, (0,)), "strict", 0, store, 2.0)):
        sys.modules["scaling"].write_config(run, tmp_path / f"{number}.py")  # type: ignore[attr-defined]
        assert load_config(tmp_path / f"{number}.py") == run


def test_seeds_come_in_turn_and_differences_are_from_the_bare_run_of_the_same_seed(program: ModuleType):
    sizes = [program.Size(64, 3, (0, 1)), program.Size(128, 4, (0,))]
    runs = [(size.width, arm, seed) for size, arm, seed in program.planned(sizes, ("bare", "strict"))]
    assert runs == [
        (64, "bare", 0),
        (64, "strict", 0),
        (128, "bare", 0),
        (128, "strict", 0),
        (64, "bare", 1),
        (64, "strict", 1),
    ]

    def entry(arm: str, seed: int, *nats: float) -> dict[str, Any]:
        batches = {"nats": nats, "tokens": [10] * len(nats)}
        return {"width": 64, "arm": arm, "seed": seed, "tokens_per_weight": 2.0, "batches": batches}

    text = program.differences(
        [entry("bare", 0, 50, 52), entry("strict", 0, 53, 54), entry("bare", 1, 60, 60), entry("strict", 1, 55, 55)]
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    (row,) = (dict(zip(rows[0], row)) for row in rows[2:])
    assert (row["nats a token more"], row["seeds"], row["each seed"]) == ("strict over bare", "2", "0.250, -0.500")
    assert row["mean (95 %)"].startswith("−0.125 (")


@pytest.mark.slow
def test_runs_are_trained_measured_and_not_repeated(store: CorpusStore, tmp_path: Path):
    """The whole program at a tiny size: figures of both arms, and a second start that trains nothing."""
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "bottleneck.py"), str(tmp_path / "runs")]
    command += ["--corpus", str(store.folder), "--sizes", "16x1", "--seeds", "0", "--arms", "bare", "strict"]
    command += ["--tokens-per-weight", "10", "--prompts", "1"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "runs" / "results.json").read_text())
    bare, strict = results
    assert (bare["arm"], strict["arm"]) == ("bare", "strict")
    names = [stage["name"] for stage in strict["stages"]]
    assert names == ["16-backbone-0-10", "16-strict-dictionary-0-10", "16-strict-0-10"]
    assert strict["flops"] == pytest.approx(bare["flops"], rel=0.1)
    assert strict["figures"]["concept_share"] == pytest.approx(1)
    assert strict["figures"]["cost_epsilon"] == 0
    assert set(strict["effects"]) == {"known", "discovered"}
    again = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert json.loads((tmp_path / "runs" / "results.json").read_text()) == results
