"""A next-token Qwen3 and a diffusion model of its size on the same corpus, trained for the same number of FLOPs.

    steerling prepare --out STORE --tokenizer steerling-pydocs
    python benchmarks/qwen3_beside_diffusion.py FOLDER --corpus STORE [--flops 3e13] [--seeds 1] [--tokens 32768]

Runs go to FOLDER and are continued from there. Both start from random weights, with the same optimizer, sequences and
batch size; the diffusion model is that of the config `pydocs_diffusion`, without concepts. FLOPs are those of the
mathematics (`train.run.clock.step_flops`). Prints a table with the bits a byte of held-out documents: exact for the
Qwen3, a bound for the diffusion model. --tokens: of the held-out split that are scored.

The results are in docs/results/open-models.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import jax

from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.models.compute import Compute
from steerling_jax.models.families import param_shapes
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.train.evaluation.evaluate import EvaluationConfig, evaluate_full
from steerling_jax.train.run.clock import step_flops
from steerling_jax.train.run.config_files import load_config
from steerling_jax.train.run.events import RunFinished, StepDone
from steerling_jax.train.run.loop import train
from steerling_jax.train.run.open_run import open_run
from steerling_jax.train.run.run_config import RunConfig

NAMES = {"qwen3_pydocs": "Qwen3, next token", "pydocs_diffusion": "diffusion, blocks of 8"}


def run_of(name: str, flops: float, seed: int) -> RunConfig:
    """The run of a config from random weights, of about so many FLOPs."""
    run = dataclasses.replace(load_config(name), name=f"{name}-{seed}", start_from=None, seed=seed)
    steps = round(flops / step_flops(run).total)
    optimizer = OptimizerConfig(kind="muon", peak_rate=8e-3, warmup_steps=min(40, steps // 10), b2=0.99)
    return dataclasses.replace(run, steps=steps, optimizer=optimizer, eval_every=steps, checkpoint_every=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--corpus", type=Path, required=True, metavar="STORE")
    parser.add_argument("--flops", type=float, default=3e13)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=32_768)
    args = parser.parse_args()
    store = CorpusStore(args.corpus)
    print("| model | seed | parameters | FLOPs a step | steps | tokens | training, processor min | bits a byte |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    baselines = True
    for seed in range(args.seeds):
        for name, label in NAMES.items():
            run = run_of(name, args.flops, seed)
            opened = open_run(run, str(args.corpus), args.folder / run.name, table=False)
            begin = time.process_time()
            params = None
            for event in train(run, opened.store, args.folder / run.name, opened.share):
                if isinstance(event, StepDone) and event.step % 100 == 0:
                    print(f"<!-- {run.name}: step {event.step}, loss {event.metrics['loss']:.3f} -->", flush=True)
                if isinstance(event, RunFinished):
                    params = event.params
            minutes = (time.process_time() - begin) / 60
            settings = EvaluationConfig(run.data.seq_len, baselines=baselines, max_tokens=args.tokens)
            figures = evaluate_full(params, run.model, Compute(), store, settings)
            for order, value in figures.get("baselines", {}).items():
                print(f"<!-- {order}: {value['bits_per_byte']:.3f} bits a byte -->", flush=True)
            baselines = False
            error = figures.get("bits_per_byte_error")
            bits = f"{figures['bits_per_byte']:.3f}" + ("" if error is None else f" ± {error:.3f}")
            size = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(run.model)))
            cells = (f"{size:,}", f"{step_flops(run).total:.3g}", run.steps, f"{run.steps * run.tokens_per_step:,}")
            print(f"| {label} | {seed} | {' | '.join(map(str, cells))} | {minutes:.1f} | {bits} |", flush=True)


if __name__ == "__main__":
    main()
