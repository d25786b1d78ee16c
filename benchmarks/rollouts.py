"""Steered rollouts against endless repetition: the figures of docs/results/rollouts.md.

    steerling train --config benchmarks/rollouts_model.py --out runs/small
    python benchmarks/rollouts.py runs/small --corpus runs/small/corpus --work runs/rollouts
    python -m benchmarks.rollouts_report

Trains an autoencoder of the model, finds its features of repetition, chooses the strength at which steered texts have
the lowest reward on training prompts, and then runs, with three seeds each, the loop with one steered rollout in each
group, the loop without it, the loop with a random direction of the same length, and sampling with a repetition penalty
without training. Every part is stored in docs/results/rollouts.json at once, and a part that is stored is not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment
from results_file import rounded, write_parts

import steerling_jax as sj
from steerling_jax.autoencoders.training_step import AutoencoderRecipe
from steerling_jax.explain.features.repetition import repetition_features
from steerling_jax.io.autoencoders.save import save_autoencoder
from steerling_jax.io.corpus.store import CorpusStore
from steerling_jax.io.json_files import read_json_object
from steerling_jax.objectives.group_relative import GroupRelativeObjective
from steerling_jax.objectives.optimizer import OptimizerConfig
from steerling_jax.train.autoencoders.layers import LayersTraining
from steerling_jax.train.autoencoders.loop import run_steps
from steerling_jax.train.autoencoders.run_config import AutoencoderRun
from steerling_jax.train.rollouts.evaluate import evaluation_texts, held_out_nats
from steerling_jax.train.rollouts.prompts import Prompts
from steerling_jax.train.rollouts.rewards import load_reward
from steerling_jax.train.rollouts.run_config import Fault, RolloutRun
from steerling_jax.train.rollouts.sampling import fault_edits, plain_sampling, sample_rollouts
from steerling_jax.train.rollouts.training import RolloutTraining
from steerling_jax.train.run.events import RunFinished, StepDone

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "rollouts.json"
SEEDS = (0, 1, 2)
LAYER, FEATURES = 1, 3
STRENGTHS = (0.5, 1.0, 2.0)  # in units of the largest latent of the first feature
PENALTY = 1.2
EVALUATED, STRENGTH_PROMPTS = 48, 24
TRAINING_TOKENS, HELD_OUT_TOKENS = 65_536, 8_192


class Benchmark:
    """The parts of the measurement. results: those that are stored."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.bundle = args, sj.load(args.model, dtype="float32")
        self.results = read_json_object(RESULTS) if RESULTS.is_file() else {}
        store = CorpusStore(args.corpus)
        self.tokens = _beginning(store, "train", TRAINING_TOKENS), _beginning(store, "heldout", HELD_OUT_TOKENS)
        self.reward = load_reward("no_repetition")

    def part(self, name: str, measure: Any) -> Any:
        """The figures of a part, measured unless they are stored."""
        if name not in self.results:
            began, processor = time.time(), time.process_time()
            figures = rounded(measure())
            figures |= {
                "seconds": round(time.time() - began),
                "processor_seconds": round(time.process_time() - processor),
                "environment": environment(),
            }
            self.results[name] = figures
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            write_parts(RESULTS, self.results)
            print(f"{name}: {figures}"[:600], flush=True)
        return self.results[name]

    def run(self, seed: int, fault: Fault | None = None) -> RolloutRun:
        args = self.args
        return RolloutRun(
            name="rollouts",
            model=args.model,
            reward="no_repetition",
            steps=args.steps,
            prompts_per_step=args.prompts,
            max_new_tokens=args.tokens,
            eval_prompts=2,  # the measured texts come from `evaluated`
            held_out=512,
            objective=GroupRelativeObjective(group_size=8, temperature=0.5),
            optimizer=OptimizerConfig(peak_rate=args.rate, warmup_steps=4, weight_decay=0.0),
            fault=fault,
            rows=args.prompts * 8,
            seed=seed,
            checkpoint_every=1000,
        )

    def prompts(self, seed: int, count: int = EVALUATED) -> Prompts:
        run = dataclasses.replace(self.run(seed), eval_prompts=count)
        return Prompts(run, self.bundle, self.tokens)

    def autoencoder(self) -> dict[str, Any]:
        """Trains the autoencoder of one layer."""
        run = AutoencoderRun(
            name="sae",
            model=self.args.model,
            layers=(LAYER,),
            recipe=AutoencoderRecipe(n_latents=512, k=16, steps=120, batch_rows=1024, learning_rate=1e-3),
            buffer_rows=16_384,
            visits=2,
        )
        training = LayersTraining(run, self.bundle, self.tokens)
        folder = self.args.work / "sae"
        shutil.rmtree(folder, ignore_errors=True)
        figures: dict[str, Any] = {}
        for event in run_steps(run, training, folder):
            if isinstance(event, RunFinished):
                save_autoencoder(event.params[LAYER], self.args.work / f"layers.{LAYER}", format="sparsify")
            figures = getattr(event, "results", figures)
        names = ("unexplained", "dead", "loss_recovered_against_zero")
        return {"layer": LAYER, "latents": 512, "k": 16} | {name: figures[f"layer{LAYER}"][name] for name in names}

    def features(self) -> dict[str, Any]:
        """The features of repetition, in beginnings of training documents repeated eight times."""
        windows = self.tokens[0][: 64 * 256].reshape(64, 256)
        autoencoder = sj.load_autoencoder(self.args.work / f"layers.{LAYER}")
        found = repetition_features(self.bundle, autoencoder, windows.tolist(), count=8)
        columns = {"feature": found.features, "first": found.first, "last": found.last, "largest": found.largest}
        rows = [{name: values[i].item() for name, values in columns.items()} for i in range(len(found.features))]
        return {"repeated_tokens": found.pairs, "features": rows}

    def fault(self, direction: Any = "features") -> Fault:
        """The steering, at the strength that was chosen."""
        return self.fault_at(self.results["strengths"]["alpha"], direction)

    def fault_at(self, alpha: float, direction: Any = "features") -> Fault:
        features = tuple(one["feature"] for one in self.results["features"]["features"][:FEATURES])
        path = str(self.args.work / f"layers.{LAYER}")
        return Fault(autoencoder=path, features=features, alpha=alpha, direction=direction)

    def strengths(self) -> dict[str, Any]:
        """Rewards and repetition of texts steered at several strengths, beside a random direction and no steering."""
        of_steps, run = self.prompts(0), self.run(0)
        prompts = [one for step in range(STRENGTH_PROMPTS) for one in of_steps.of_step(step)][:STRENGTH_PROMPTS]
        seeds = np.arange(len(prompts))[:, None]
        unit = self.results["features"]["features"][0]["largest"]
        figures: dict[str, Any] = {"unit": unit, "texts": len(prompts), "rows": []}
        cases = [(0.0, "none"), *((s, d) for s in STRENGTHS for d in ("features", "random"))]
        for strength, direction in cases:
            edits: Any = ()
            if strength:
                edits = fault_edits(self.fault_at(strength * unit, direction), self.bundle, 0)
            texts = sample_rollouts(
                self.bundle, prompts, seeds, plain_sampling(run), rows=run.rows, edits=edits, steered=int(strength > 0)
            )
            figures["rows"].append({"strength": strength, "direction": direction} | self.means(texts))
        steered = [row for row in figures["rows"] if row["direction"] == "features"]
        figures["strength"] = min(steered, key=lambda row: row["reward"])["strength"]
        return figures | {"alpha": figures["strength"] * unit}

    def means(self, texts: Any) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in self.values(texts).items()}

    def values(self, texts: Any) -> dict[str, list[float]]:
        """Of each text: reward, whether it is endless, tokens."""
        return {
            "reward": [self.reward(one.prompt.text, one.text, one.prompt.number) for one in texts],
            "repetition": [float(one.is_endless) for one in texts],
            "length": [float(len(one.written)) for one in texts],
        }

    def evaluated(self, seed: int, bundle: sj.Bundle, **sampling: float) -> dict[str, Any]:
        """Figures on held-out prompts and text: the same prompts and seeds for every arm."""
        run = self.run(seed)
        texts = evaluation_texts(run, bundle, self.prompts(seed).held_out, **sampling)
        return {"values": self.values(texts), "nats_per_token": held_out_nats(run, bundle, self.tokens[1])}

    def trained(self, seed: int, fault: Fault | None) -> dict[str, Any]:
        """The loop, and the figures of the model that it gives."""
        run = self.run(seed, fault)
        edits = () if fault is None else fault_edits(fault, self.bundle, seed)
        held_out = self.tokens[1][:512]
        training = RolloutTraining(run, self.bundle, self.reward, self.prompts(seed, 2), held_out, edits)
        folder = self.args.work / "run"
        shutil.rmtree(folder, ignore_errors=True)
        steps, model = [], self.bundle
        for event in run_steps(run, training, folder):
            if isinstance(event, StepDone):
                steps.append(dict(event.metrics))
            if isinstance(event, RunFinished):
                model = event.params
        shutil.rmtree(folder, ignore_errors=True)
        return self.evaluated(seed, model) | {"steps": steps}


def _beginning(store: CorpusStore, split: str, count: int) -> np.ndarray:
    """The first tokens of a split, (count,) int32 or fewer."""
    start, end = store.split(split)
    return store.tokens(start, min(end, start + count)).astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--corpus", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path, help="folder for the autoencoder and the runs")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=4, help="prompts of a step, each with 8 rollouts")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of a rollout")
    parser.add_argument("--rate", type=float, default=5e-4)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    benchmark = Benchmark(args)
    settings = {name: getattr(args, name) for name in ("steps", "prompts", "tokens", "rate")}
    benchmark.part("settings", lambda: settings | {"penalty": PENALTY, "evaluated": EVALUATED})
    benchmark.part("autoencoder", benchmark.autoencoder)
    benchmark.part("features", benchmark.features)
    benchmark.part("strengths", benchmark.strengths)
    for seed in SEEDS:
        benchmark.part(f"start {seed}", lambda s=seed: benchmark.evaluated(s, benchmark.bundle))
        benchmark.part(
            f"penalty {seed}", lambda s=seed: benchmark.evaluated(s, benchmark.bundle, repetition_penalty=PENALTY)
        )
        benchmark.part(f"plain {seed}", lambda s=seed: benchmark.trained(s, None))
        benchmark.part(f"steered {seed}", lambda s=seed: benchmark.trained(s, benchmark.fault()))
        benchmark.part(f"random {seed}", lambda s=seed: benchmark.trained(s, benchmark.fault("random")))


if __name__ == "__main__":
    main()
