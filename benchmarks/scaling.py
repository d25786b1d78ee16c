"""A small scaling study: models of four sizes, trained with and without the concept module for the same FLOPs.

    python benchmarks/scaling.py FOLDER --corpus STORE [--runs N]    # trains and measures the missing runs; resumable
    python benchmarks/scaling_report.py FOLDER --svg docs/results/scaling.svg

STORE is a corpus store of `steerling prepare`, in docs/results/scaling.md that of the bundled model. Every run is a
`steerling train` with a config file that is written to FOLDER, and adds one entry to FOLDER/results.json. Both arms of
a size have the same backbone. The bare one reads `TOKENS_PER_WEIGHT` tokens for every weight in the layers and the
output projection. The one with concepts stops after the same number of FLOPs, by the model's own count.

Reference machine: two cores of an Intel Xeon, 1 to 25 minutes per run; only the times depend on it. Results in
docs/results/scaling.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from steerling_jax.cli.main import main as steerling
from steerling_jax.io.atomic import atomic_path
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.json_files import read_json_array, write_json
from steerling_jax.io.weights.published_reader import read_published
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.models.steerling.flops import Flops, training_flops
from steerling_jax.models.steerling.model import param_shapes
from steerling_jax.objectives.noise import NoiseConfig, expected_masked_share
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.train.evaluation.evaluate import EvaluationConfig, evaluate_full
from steerling_jax.train.run.run_config import DataConfig, RunConfig, special_ids

CONCEPTS, BARE = "concepts", "bare"
TOKENS_PER_WEIGHT = 5.0
SEQ_LEN, BATCH = 256, 4
NOISE = NoiseConfig(clean_context=True, floor=0.2)
PEAK_RATE = 3e-3  # at width 256, the bundled model's; at smaller widths it grows with √(256 / width)
RESULTS = "results.json"
IMPORTS = """\
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ConceptConfig, DictionaryConfig, ModelConfig
from steerling_jax.objectives.dictionary import DictionaryObjective
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.parallel.sharding import MeshShape
from steerling_jax.train.run.run_config import DataConfig, RunConfig
"""


@dataclass(frozen=True)
class Size:
    """The size of a backbone and the seeds with which it is trained."""

    width: int
    layers: int
    seeds: tuple[int, ...]


SIZES = (Size(32, 2, (0, 1)), Size(48, 2, (0, 1)), Size(64, 3, (0,)), Size(96, 4, (0,)))


def model_of(size: Size, arm: str, store: CorpusStore) -> ModelConfig:
    """The model of a size, with or without the concept module."""
    known = len(store.concepts)
    concept = ConceptConfig(
        n_concepts=known,
        n_unknown_concepts=3 * known,
        concept_dim=size.width,
        topk_known=16,
        topk_known_features=16,
        factorize_rank=16,
        unknown_topk=32,
        block_size=1024,
        inject_layer=1,
    )
    return ModelConfig(
        interpretable=arm == CONCEPTS,
        n_layers=size.layers,
        n_head=4,
        n_kv_heads=2,
        n_embd=size.width,
        intermediate_size=size.width * 5 // 2,
        block_size=SEQ_LEN,
        diff_block_size=8,
        rope_base=10_000.0,
        vocab_size=store.vocab_size,
        concept=concept if arm == CONCEPTS else None,
        **special_ids(store.vocab_size),
    )


def flops_a_step(model: ModelConfig) -> Flops:
    """FLOPs of one training step of the study."""
    share = expected_masked_share(NOISE)
    return training_flops(model, batch_size=BATCH, seq_len=SEQ_LEN, clean_context=True, masked_share=share)


def weights(model: ModelConfig) -> dict[str, int]:
    """Number of parameters in the layers, the token embedding and the concept module."""
    counts = {"layers": 0, "vocabulary": 0, "concepts": 0}
    parts = {"tok_emb": "vocabulary", "known_head": "concepts", "unknown_head": "concepts"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(model)):
        counts[parts.get(path[0].key, "layers")] += leaf.size
    return counts


def steps_of(size: Size, arm: str, store: CorpusStore) -> int:
    """Number of steps of a run; both arms of a size use the same FLOPs."""
    bare = model_of(size, BARE, store)
    steps = TOKENS_PER_WEIGHT * sum(weights(bare).values()) / (SEQ_LEN * BATCH)
    return round(steps * flops_a_step(bare).total / flops_a_step(model_of(size, arm, store)).total)


def run_of(size: Size, arm: str, seed: int, store: CorpusStore) -> RunConfig:
    """The training run of a size, arm and seed."""
    steps = steps_of(size, arm, store)
    rate = PEAK_RATE * (256 / size.width) ** 0.5
    return RunConfig(
        name=f"{size.width}-{arm}-{seed}",
        model=model_of(size, arm, store),
        steps=steps,
        seed=seed,
        compute=Compute(matmul_dtype="bfloat16"),
        # The objective of configs/pydocs.py, with less forcing of labels, because a run is short.
        objective=ObjectiveConfig(
            noise=NOISE,
            token_weight="inverse_t",
            concept_weight=0.1,
            epsilon_dropout=(0.2, 0.5),
            unknown_dropout=0.2,
            known_forcing=(0.5, 0.0),
            unknown_forcing=(0.0, 0.0),
            rows=0.7,
        ),
        optimizer=OptimizerConfig(peak_rate=rate, warmup_steps=steps // 20, weight_decay=0.1, b2=0.99),
        data=DataConfig(vocab_size=store.vocab_size, seq_len=SEQ_LEN, batch_size=BATCH),
        log_every=50,
        eval_every=steps,
        checkpoint_every=250,
    )


def write_config(run: RunConfig, file: Path) -> None:
    """Writes a config file for `steerling train`."""
    with atomic_path(file) as path:
        path.write_text(f"{IMPORTS}\n\ndef config():\n    return {run!r}\n")


def planned() -> Iterator[tuple[Size, str, int]]:
    """All runs in order of priority: the first seed of every size, both arms, before the second."""
    for number in range(max(len(size.seeds) for size in SIZES)):
        for size in SIZES:
            for seed in size.seeds[number : number + 1]:
                yield from ((size, arm, seed) for arm in (CONCEPTS, BARE))


def train_run(run: RunConfig, store: CorpusStore, folder: Path) -> float:
    """Trains a run in `folder/NAME`; returns the seconds that it took."""
    config_file = folder / f"{run.name}.py"
    write_config(run, config_file)
    begin = time.perf_counter()
    code = steerling(
        ["train", "--config", str(config_file), "--corpus", str(store.folder), "--out", str(folder / run.name)]
    )
    if code:
        raise SystemExit(code)
    return time.perf_counter() - begin


def measured(run: RunConfig, store: CorpusStore, folder: Path, *, probes: bool) -> tuple[dict[str, Any], float]:
    """Trains a run; returns the held-out figures of the model and the seconds of training."""
    seconds = train_run(run, store, folder)
    config, params, _ = read_published(folder / run.name / "export", dtype="float32")
    figures = evaluate_full(params, config, Compute(), store, EvaluationConfig(SEQ_LEN, baselines=probes))
    for detection in figures.get("detection", {}).values():
        del detection["by_concept"]  # a figure per concept, which the report does not use
    return figures, seconds


def train_and_measure(size: Size, arm: str, seed: int, store: CorpusStore, folder: Path, probes: bool) -> dict:
    """Trains and measures a run; returns its entry of the results."""
    run, load = run_of(size, arm, seed, store), os.getloadavg()[0]
    figures, seconds = measured(run, store, folder, probes=probes and arm == CONCEPTS)
    flops = flops_a_step(run.model)
    return {
        "width": size.width, "layers": size.layers, "arm": arm, "seed": seed, "weights": weights(run.model),
        "steps": run.steps, "tokens": run.steps * run.tokens_per_step, "flops": run.steps * flops.total,
        "concepts_share_of_flops": flops.concepts / flops.total, "peak_rate": run.optimizer.peak_rate,
        "date": datetime.date.today().isoformat(), "train_seconds": round(seconds, 1), "load_before": load,
        "figures": figures,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--corpus", type=Path, required=True, metavar="STORE")
    parser.add_argument("--runs", type=int, metavar="N", help="end after N runs (default: all)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    store, file = CorpusStore(args.corpus), args.folder / RESULTS
    results = read_json_array(file) if file.exists() else []
    done = {(entry["width"], entry["arm"], entry["seed"]) for entry in results}
    missing = [run for run in planned() if (run[0].width, *run[1:]) not in done]
    for size, arm, seed in missing[: args.runs]:
        probed = any("probe_whole_text" in d for e in results for d in e["figures"].get("detection", {}).values())
        # The probes are baselines on the same texts with the same masks for every model, so one run measures them.
        results.append(train_and_measure(size, arm, seed, store, args.folder, probes=not probed))
        write_json(file, results)
    print(f"{len(missing[args.runs :]) if args.runs is not None else 0} runs are left.")


if __name__ == "__main__":
    main()
