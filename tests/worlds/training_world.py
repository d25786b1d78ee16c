"""Runs small enough to be trained many times: their config, a random corpus, and training processes."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.corpus.writer import corpus_writer
from steerling_jax.parallel.sharding import MeshShape, make_mesh
from steerling_jax.tokenizer import IdsOnlyTokenizer, SpecialIds
from steerling_jax.train.run.events import Event
from steerling_jax.train.run.initial_weights import find_initial_weights
from steerling_jax.train.run.loop import LoopOptions, train
from steerling_jax.train.run.processes import ProcessShare
from steerling_jax.train.run.run_config import RunConfig
from steerling_jax.train.run.run_folder import open_folder

STEPS, EVERY = 60, 5
CONFIG = f"""
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.train.run.run_config import DataConfig, RunConfig, special_ids

def config():
    concept = ConceptConfig(
        n_concepts=8, n_unknown_concepts=24, concept_dim=32, topk_known=4, topk_known_features=4, factorize_rank=16,
        unknown_topk=4, block_size=16, inject_layer=1)
    model = ModelConfig(
        n_layers=2, n_head=2, n_kv_heads=1, n_embd=32, block_size=64, diff_block_size=8, vocab_size=64, concept=concept,
        **special_ids(64))
    return RunConfig(
        name="small", model=model, steps={STEPS}, log_every=1, eval_every={STEPS}, checkpoint_every={EVERY},
        optimizer=OptimizerConfig(peak_rate=1e-3, warmup_steps=5),
        data=DataConfig(vocab_size=64, seq_len=32, batch_size=4))
"""

# For tests of processes and files alone: without concepts, tracing, most of the time of a start, takes a third of it.
BARE_CONFIG = (
    CONFIG
    + """

whole = config

def config():
    import dataclasses
    run = whole()
    return dataclasses.replace(run, model=dataclasses.replace(run.model, n_layers=1, interpretable=False, concept=None))
"""
)


class FakeTokenizer(IdsOnlyTokenizer):
    """A vocabulary without text, identified by its hash."""

    def __init__(self, sha256: str = "0" * 64, vocab_size: int = 64):
        super().__init__(SpecialIds.last_of(vocab_size), vocab_size)
        self.sha256 = sha256


def train_in(out: Path, run: RunConfig, store: CorpusStore, **options: Any) -> Iterator[Event]:
    """Trains in the folder `out`, in this process, from the weights that the run names. options: of `LoopOptions`."""
    open_folder(run, store, out)
    share = ProcessShare(make_mesh(MeshShape()), run.data.batch_size, run.accumulate)
    return train(run, store, out, share, LoopOptions(initial=find_initial_weights(run), **options))


def make_corpus(folder: Path, tokenizer: FakeTokenizer | None = None, seed: int = 0) -> Path:
    """Writes a store of 100 training and 20 held-out documents of random tokens, with labels."""
    draw = random.Random(seed)
    concepts = [{"id": i, "name": f"concept {i}", "group": "test", "description": ""} for i in range(8)]
    with corpus_writer(folder, tokenizer or FakeTokenizer(), concepts=concepts, source={"kind": "test"}) as writer:
        for number in range(120):
            chunks = [([draw.randrange(59) for _ in range(30)], [draw.randrange(8)]) for _ in range(4)]
            sha256 = hashlib.sha256(str(chunks).encode()).hexdigest()
            split = "train" if number < 100 else "heldout"
            writer.add(name=f"document {number}", source="test", sha256=sha256, split=split, chunks=chunks)
    return folder


@dataclass
class World:
    """A config, a corpus, a compilation cache, and the folder of a run that was not interrupted."""

    root: Path
    config: Path
    corpus: Path
    finished: Path

    def start(self, out: Path, *more: str, before: str = "") -> subprocess.Popen:
        """Starts `steerling train` with `more` options in its own process, after running the Python code `before`."""
        code = before + "\nimport sys; from steerling_jax.cli.main import main; sys.exit(main())"
        options = ["--config", self.config, "--out", out, "--corpus", self.corpus]
        command = [sys.executable, "-c", code, "train", *map(str, options), *more]
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(self.root / "compiled"),
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def run(self, out: Path, *more: str, before: str = "") -> tuple[int, str]:
        """As `start`, but waits; returns the exit code and standard error."""
        process = self.start(out, *more, before=before)
        _, errors = process.communicate(timeout=600)
        return process.returncode, errors

    def unfinished(self, out: Path) -> Path:
        """Copies the finished run, as it was before its last save."""
        shutil.copytree(self.finished, out)
        shutil.rmtree(out / "checkpoints" / str(STEPS))
        shutil.rmtree(out / "export")
        return out
