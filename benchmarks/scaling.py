"""A small scaling study: models of four sizes, with and without the concept module, at equal FLOPs.

    python benchmarks/scaling.py FOLDER --corpus STORE [--runs N]    # trains and measures what is missing; resumes
    python benchmarks/scaling_report.py FOLDER --svg docs/scaling.svg

STORE is a corpus of `steerling prepare`, that of the bundled model in docs/scaling.md. Every run is a `steerling train`
of the config that is written beside it, and ends as one entry of FOLDER/results.json.
At each size the backbone is the same. The bare one reads `TOKENS_A_WEIGHT` tokens for every weight that a token meets
(layers and output projection); the one with concepts stops when it has used as many FLOPs, by the model's own count.
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
from steerling_jax.train.evaluation.evaluate import evaluate_full
from steerling_jax.train.run.run_config import DataConfig, RunConfig, special_ids

CONCEPTS, BARE = "concepts", "bare"
TOKENS_A_WEIGHT = 5.0
SEQ_LEN, BATCH = 256, 4
NOISE = NoiseConfig(clean_context=True, floor=0.2)
WIDEST_RATE = 3e-3  # at width 256, the bundled model's; narrower models take more, by the square root
RESULTS = "results.json"
IMPORTS = """\
from steerling_jax.models.compute import Compute
from steerling_jax.models.steerling.config import ConceptConfig, ModelConfig
from steerling_jax.objectives.noise import NoiseConfig
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.objectives.pretraining import ObjectiveConfig
from steerling_jax.parallel.sharding import MeshShape
from steerling_jax.train.run.run_config import DataConfig, RunConfig
"""


@dataclass(frozen=True)
class Size:
    """One backbone, and the seeds that it is trained with."""

    width: int
    layers: int
    seeds: tuple[int, ...]


SIZES = (Size(32, 2, (0, 1)), Size(48, 2, (0, 1)), Size(64, 3, (0,)), Size(96, 4, (0,)))


def model_of(size: Size, arm: str, store: CorpusStore) -> ModelConfig:
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
    share = expected_masked_share(NOISE)
    return training_flops(model, batch_size=BATCH, seq_len=SEQ_LEN, clean_context=True, masked_share=share)


def weights(model: ModelConfig) -> dict[str, int]:
    """How many parameters the layers, the vocabulary's table and the concept module have."""
    counts = {"layers": 0, "vocabulary": 0, "concepts": 0}
    parts = {"tok_emb": "vocabulary", "known_head": "concepts", "unknown_head": "concepts"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(model)):
        counts[parts.get(path[0].key, "layers")] += leaf.size
    return counts


def steps_of(size: Size, arm: str, store: CorpusStore) -> int:
    bare = model_of(size, BARE, store)
    steps = TOKENS_A_WEIGHT * sum(weights(bare).values()) / (SEQ_LEN * BATCH)
    return round(steps * flops_a_step(bare).total / flops_a_step(model_of(size, arm, store)).total)


def run_of(size: Size, arm: str, seed: int, store: CorpusStore) -> RunConfig:
    steps = steps_of(size, arm, store)
    rate = WIDEST_RATE * (256 / size.width) ** 0.5
    return RunConfig(
        name=f"{size.width}-{arm}-{seed}",
        model=model_of(size, arm, store),
        steps=steps,
        seed=seed,
        compute=Compute(matmul_dtype="bfloat16"),
        # That of configs/pydocs.py, with fewer labels forced, since a run is short.
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


def write_config(run: RunConfig, place: Path) -> None:
    """A config file for `steerling train`."""
    with atomic_path(place) as path:
        path.write_text(f"{IMPORTS}\n\ndef config():\n    return {run!r}\n")


def planned() -> Iterator[tuple[Size, str, int]]:
    """All runs, those first without which nothing can be said."""
    for number in range(max(len(size.seeds) for size in SIZES)):
        for size in SIZES:
            for seed in size.seeds[number : number + 1]:
                yield from ((size, arm, seed) for arm in (CONCEPTS, BARE))


def measured(run: RunConfig, store: CorpusStore, folder: Path, *, probes: bool) -> tuple[dict[str, Any], float]:
    """Held-out figures of the trained model, and the seconds of its training."""
    place = folder / f"{run.name}.py"
    write_config(run, place)
    begin = time.perf_counter()
    code = steerling(["train", "--config", str(place), "--corpus", str(store.folder), "--out", str(folder / run.name)])
    if code:
        raise SystemExit(code)
    seconds = time.perf_counter() - begin
    config, params, _ = read_published(folder / run.name / "export", dtype="float32")
    found = evaluate_full(params, config, Compute(), store, seq_len=SEQ_LEN, baselines=probes)
    for detected in found.get("detection", {}).values():
        del detected["by_concept"]
    return found, seconds


def train_and_measure(size: Size, arm: str, seed: int, store: CorpusStore, folder: Path, probes: bool) -> dict:
    run, load = run_of(size, arm, seed, store), os.getloadavg()[0]
    found, seconds = measured(run, store, folder, probes=probes and arm == CONCEPTS)
    flops = flops_a_step(run.model)
    return {
        "width": size.width, "layers": size.layers, "arm": arm, "seed": seed, "weights": weights(run.model),
        "steps": run.steps, "tokens": run.steps * run.tokens_per_step, "flops": run.steps * flops.total,
        "concepts_share_of_flops": flops.concepts / flops.total, "peak_rate": run.optimizer.peak_rate,
        "date": datetime.date.today().isoformat(), "train_seconds": round(seconds, 1), "load_before": load,
        "figures": found,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--corpus", type=Path, required=True, metavar="STORE")
    parser.add_argument("--runs", type=int, metavar="N", help="end after N runs (default: all)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    store, place = CorpusStore(args.corpus), args.folder / RESULTS
    results = read_json_array(place) if place.exists() else []
    done = {(entry["width"], entry["arm"], entry["seed"]) for entry in results}
    missing = [run for run in planned() if (run[0].width, *run[1:]) not in done]
    for size, arm, seed in missing[: args.runs]:
        probed = any("probe_whole_text" in d for e in results for d in e["figures"].get("detection", {}).values())
        # The probes see the same texts under the same masks each time: once is enough.
        results.append(train_and_measure(size, arm, seed, store, args.folder, probes=not probed))
        write_json(place, results)
    print(f"{len(missing[args.runs :]) if args.runs is not None else 0} runs are left.")


if __name__ == "__main__":
    main()
