"""Making an index while the explorer runs: its commands, their progress, how they are stopped, and what is used."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import steerling_jax as sj
from steerling_jax.attribution.explorer.index_job import IndexMaker
from steerling_jax.attribution.explorer.indexing import Indexing
from steerling_jax.attribution.explorer.tabs import Tabs
from steerling_jax.attribution.explorer.training_data import TrainingData
from steerling_jax.infer.server.errors import ApiError
from tests.worlds.serving_world import PATIENCE

# A command that notes its words in LOG, and then ends as its last lines say.
SCRIPT = """\
import pathlib, sys, time
log = pathlib.Path({log!r})
with log.open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
print("units 3/8, signatures 10/50, 0:00:30", file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def bundle(text_model: Path) -> sj.Bundle:
    return sj.load(text_model)


def make(bundle: sj.Bundle, folder: Path, end: str, **options: Any) -> IndexMaker:
    script = folder / "command.py"
    script.write_text(SCRIPT.format(log=str(folder / "log")) + end)
    return IndexMaker(folder / "cache", bundle, command=(sys.executable, str(script)), **options)


def ignore(*values: Any) -> None:
    pass


def test_a_command_that_fails_is_named_with_its_sentence(bundle: sj.Bundle, tmp_path: Path):
    maker = make(bundle, tmp_path, 'print("error: There is no disk.", file=sys.stderr)\nsys.exit(2)')
    seen: list[tuple[str, int, int]] = []
    with pytest.raises(sj.UserError, match=r"`steerling prepare` failed: There is no disk\."):
        maker.run(lambda *progress: seen.append(progress), ignore, threading.Event())
    assert ("signatures", 10, 50) in seen
    assert maker.made() is None


def test_a_stopped_job_ends_its_command_and_goes_on_later(bundle: sj.Bundle, tmp_path: Path):
    maker = make(bundle, tmp_path, "time.sleep(600)")
    stopped = threading.Event()

    def stop_when_it_runs(stage: str, done: int, total: int) -> None:
        if stage == "signatures":
            stopped.set()

    maker.run(stop_when_it_runs, ignore, stopped)
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.startswith("prepare --out ")
    corpus = tmp_path / "cache" / "corpus"
    corpus.mkdir(parents=True)
    (corpus / "manifest.json").write_text("{}")
    stopped.clear()
    maker.run(stop_when_it_runs, ignore, stopped)
    assert (tmp_path / "log").read_text().splitlines()[1].startswith("index "), "the corpus is not prepared again"


class Maker:
    """Stands for an `IndexMaker`: makes one index when it is allowed to, and ends when it is stopped."""

    def __init__(self) -> None:
        self.runs: list[threading.Event] = []

    def run(self, progress: Callable, ready: Callable, stopped: threading.Event) -> None:
        progress("corpus", 0, 3)
        ready(TrainingData(ignore, None, ("verbatim",)))  # type: ignore[arg-type]
        self.runs.append(stopped)
        assert stopped.wait(PATIENCE)


def test_a_job_is_shared_and_ends_with_its_last_follower():
    maker, tabs, used = Maker(), Tabs("epoch", time.monotonic), []
    indexing = Indexing(maker, tabs, used.append, lambda work, *arguments: work(*arguments))  # type: ignore[arg-type]
    first, second = tabs.create(), tabs.create()
    assert indexing.begin(first) == indexing.begin(second)
    while not maker.runs:
        time.sleep(0.01)
    assert [data.scores for data in used] == [("verbatim",)]
    assert indexing.leave(first)
    assert not maker.runs[0].is_set(), "the second tab still waits"
    assert not indexing.leave(first)
    assert indexing.leave(second)
    assert maker.runs[0].is_set()
    indexing.begin(first)
    while len(maker.runs) < 2:
        time.sleep(0.01)
    indexing.close()
    assert maker.runs[1].is_set()
    with pytest.raises(ApiError, match="start with --index"):
        Indexing(None, tabs, used.append, ignore).begin(first)


@pytest.mark.slow
def test_an_index_is_made_verbatim_first(bundle: sj.Bundle, text_model: Path, tmp_path: Path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text(f"The quick brown fox number {number} jumps over the lazy dog. " * 6)
    folder = tmp_path / "cache"
    options = ("--input", str(texts), "--concepts")
    maker = IndexMaker(folder, bundle, str(text_model), prepare=options)
    made: list[TrainingData] = []
    maker.run(ignore, made.append, threading.Event())
    assert [data.scores for data in made] == [
        ("verbatim",),
        ("verbatim", "signature", "representation", "influence"),
    ]
    ids = bundle.tokenizer.encode("The quick brown fox number 7 jumps over the lazy dog. The quick brown fox")
    best = maker.made()
    assert best is not None
    assert best.scores == made[1].scores
    found = made[0].search(ids, 0, len(ids), ("verbatim",))
    assert found.hits
    assert best.search(ids, 0, len(ids), ("verbatim",)).hits == found.hits
