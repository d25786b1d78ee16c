"""The quality that decoding in fewer steps costs: passes per token, likelihood bound and repetition.

    python benchmarks/faster_not_exact.py

The bundled model continues the same prompts with the same seeds under the published schedule (one token per step), with
fewer steps, and with a schedule that commits every position above a confidence (`ConfidentEnough`). For each: passes
per token; the model's own likelihood bound of the text given its prompt, in nats per token (lower is more likely); and
the share of 4-grams that occurred before in the same text. In brackets: 95 % bootstrap intervals over prompts.

The figures do not depend on the machine; some minutes on two cores. Results in docs/results/decoding.md.
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
    """The schedules to compare for texts of `tokens` tokens, by name."""

    def config(steps: int | None = None) -> sj.GenerationConfig:
        return sj.GenerationConfig(max_new_tokens=tokens, seed=0, steps=steps)

    schedules: dict[str, tuple[sj.GenerationConfig, sj.Policies | None]] = {
        "one token a step": (config(), None),
        "2 tokens a step": (config(tokens // 2), None),
        "4 tokens a step": (config(tokens // 4), None),
    }
    for threshold in (0.9, 0.7, 0.5, 0.3):
        schedules[f"confidence ≥ {threshold}"] = (
            config(),
            sj.Policies(schedule=ConfidentEnough(np.float32(threshold))),
        )
    return schedules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="steerling-pydocs")
    parser.add_argument("--new", type=int, default=96, metavar="N", help="new tokens (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="texts per prompt (default: %(default)s)")
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
        generations = dict(sj.stream_many(bundle, prompts, rows=12))
        ordered = [generations[i] for i in range(len(prompts))]
        before = [one.tokens[: one.trace.prompt_length].tolist() for one in ordered]
        texts = [one.tokens[one.trace.prompt_length :].tolist() for one in ordered]
        bounds = log_likelihoods(bundle, list(zip(before, texts)), samples=32)
        figures = {
            "passes": [one.trace.passes / args.new for one in ordered],
            "nats": [-bound / args.new for bound in bounds],
            "repeated": [repeated(text, 4) or 0.0 for text in texts],
        }
        cells = []
        for values in figures.values():
            grouped = np.reshape(values, (len(PROMPTS), args.seeds))
            estimate = bootstrap_mean([grouped.mean(axis=1)], jax.random.key(0))
            assert estimate is not None
            cells.append(f"{estimate.mean:.3f} ({estimate.low:.3f}–{estimate.high:.3f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
