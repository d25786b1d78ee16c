"""What faster decoding costs: passes a token, likelihood bound and repetition, on the bundled model.

    python benchmarks/faster_not_exact.py

The same prompts and seeds under the published schedule (a token a step), fewer steps, and committing every position
above a confidence (`ConfidentEnough`). The text is then read by the same model: nats a token of the likelihood bound
given its prompt, and the share of its 4-grams that it has already used. Intervals: bootstrap over prompts, 95 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime

import jax
import numpy as np

import steerling_jax as sj
from steerling_jax.decoding.policies import ConfidentEnough
from steerling_jax.evaluation.intervals import bootstrap_mean
from steerling_jax.evaluation.likelihood import log_likelihoods
from steerling_jax.evaluation.text_metrics import repeated

PROMPTS = (
    "Return a list of ",
    "The following example shows how to ",
    "def read_file(path):\n",
    "Raised when ",
    "This module provides ",
    "class Connection:\n",
    "If the argument is ",
    "Changed in version 3.8: ",
    "import os\n\n",
    "Parse the string ",
    "The iterator ",
    "A subclass of ",
)


def settings(tokens: int) -> dict[str, tuple[sj.GenerationConfig, sj.Policies | None]]:
    def config(steps: int | None = None) -> sj.GenerationConfig:
        return sj.GenerationConfig(max_new_tokens=tokens, seed=0, steps=steps)

    found: dict[str, tuple[sj.GenerationConfig, sj.Policies | None]] = {
        "one token a step": (config(), None),
        "2 tokens a step": (config(tokens // 2), None),
        "4 tokens a step": (config(tokens // 4), None),
    }
    for threshold in (0.9, 0.7, 0.5, 0.3):
        found[f"confidence ≥ {threshold}"] = (config(), sj.Policies(schedule=ConfidentEnough(np.float32(threshold))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="steerling-pydocs")
    parser.add_argument("--new", type=int, default=96, metavar="N", help="new tokens (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="texts a prompt (default: %(default)s)")
    args = parser.parse_args()
    bundle = sj.load(args.model)
    print(f"{datetime.date.today().isoformat()}, {len(PROMPTS)} prompts × {args.seeds} seeds, {args.new} new tokens")
    print("| how | passes a token | nats a token | repeated 4-grams |\n| --- | --- | --- | --- |")
    for name, (config, policies) in settings(args.new).items():
        prompts = [
            sj.Prompt(text, dataclasses.replace(config, seed=seed), policies=policies)
            for text in PROMPTS
            for seed in range(args.seeds)
        ]
        done = dict(sj.generate_many(bundle, prompts, rows=12))
        ids = [done[i].tokens[done[i].trace.prompt_length :].tolist() for i in range(len(prompts))]
        written = [done[i].tokens[: done[i].trace.prompt_length].tolist() for i in range(len(prompts))]
        bounds = log_likelihoods(bundle, list(zip(written, ids)), samples=32)
        figures = {
            "passes": [done[i].trace.passes / args.new for i in range(len(prompts))],
            "nats": [-bound / args.new for bound in bounds],
            "repeated": [repeated(text, 4) or 0.0 for text in ids],
        }
        cells = []
        for values in figures.values():
            grouped = np.reshape(values, (len(PROMPTS), args.seeds))
            found = bootstrap_mean([grouped.mean(axis=1)], jax.random.key(0))
            assert found is not None
            cells.append(f"{found.mean:.3f} ({found.low:.3f}–{found.high:.3f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
